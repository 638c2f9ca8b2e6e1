"""The folder of weights, where every file is verified before use."""
