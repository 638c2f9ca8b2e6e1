"""User studies: a voting page, and what its votes say."""
