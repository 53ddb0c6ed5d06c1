"""The daemon's library: one package ("room") per concern, wired together in `daemon.py`."""

__version__ = "0.1.0"
