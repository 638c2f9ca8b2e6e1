"""The folder on the path of a competitor's script, which can import `bench_seed` and nothing else of the harness."""
