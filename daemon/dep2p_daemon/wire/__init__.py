"""Varint framing and the generated libp2p messages. No I/O."""
