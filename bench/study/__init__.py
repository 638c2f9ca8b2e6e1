"""User studies: a voting page from a run, and what its votes say."""
