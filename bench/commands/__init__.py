"""The verbs of the `bench` command, one module each."""
