"""The daemon's program."""
