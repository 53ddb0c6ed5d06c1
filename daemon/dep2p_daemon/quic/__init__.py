"""QUIC v1 with libp2p TLS: our driver of aioquic."""
