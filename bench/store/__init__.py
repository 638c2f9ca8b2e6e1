"""The folder of weights, all verified before use."""
