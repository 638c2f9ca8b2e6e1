"""The mini model: a small SD3-like backbone trained here from nothing, and the recipe that makes it again."""
