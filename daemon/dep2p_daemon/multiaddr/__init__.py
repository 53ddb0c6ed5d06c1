"""Multiaddrs, and what users may write where an address or a peer is asked for."""

from __future__ import annotations

from dep2p_daemon.multiaddr.address import Multiaddr, site_of
from dep2p_daemon.multiaddr.dial_target import (
    DialTarget,
    parse_dial_target,
    parse_relay_address,
)

__all__ = ["DialTarget", "Multiaddr", "parse_dial_target", "parse_relay_address", "site_of"]
