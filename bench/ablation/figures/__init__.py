"""Figures 3 to 6 of the paper, measured and drawn of any domain that gives its process, teacher, critic and latents."""
