"""Test sets read and verified by their manifests."""
