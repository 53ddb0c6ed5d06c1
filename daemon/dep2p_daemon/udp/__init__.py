"""The batched UDP socket and its demultiplexer."""
