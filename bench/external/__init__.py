"""A competitor's official repository, run in an environment of its own. What differs between methods is in their cards.

`install` makes checkout and environment; `command` says how the script is called, `process` runs it, `collect` looks at
what came out. `bench/methods/external.py` makes a method of it.
"""
