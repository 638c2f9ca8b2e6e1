"""The competitors as data: one TOML file each, and its reader."""
