"""The verbs of the `tsd` command, one module each."""
