"""One module per verb of `bench`: `add_parser(subparsers)` and `run(args) -> exit status`."""
