"""Connections, streams, dialling, the protocol registry and the peerstore."""
