"""What mDNS says of a peer: https://github.com/libp2p/specs/blob/master/discovery/mdns.md

The answer to `_p2p._udp.local` is a random name, whose TXT record has strings of the form
`dnsaddr=<multiaddr>/p2p/<peer id>`. Here they are made and read; `mdns` does the sending.
"""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import MultiaddrError
from dep2p_daemon.multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dep2p_daemon.identity.peer_id import PeerId
    from dep2p_daemon.swarm.ranking import IPNetwork

SERVICE: Final = "_p2p._udp.local."
NAME_CHARS: Final = 40
"""Of the random name: at least 32, below 64."""
MAX_STRING_BYTES: Final = 255
"""Of one string of a TXT record (RFC 1035)."""
MAX_ADDRESSES: Final = 8
"""Of one peer, told and taken; ours: they fit into one packet."""
MAX_TEXT_BYTES: Final = 4096
"""Of a TXT record that is read; ours."""

_PREFIX: Final = b"dnsaddr="


def random_name() -> str:
    """Return a name that tells nothing of the peer."""
    alphabet = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(NAME_CHARS))


def is_local(address: Multiaddr, networks: Iterable[IPNetwork]) -> bool:
    """Whether `address` is of a private network that this machine is in.

    What anybody on the network can claim must not make us send packets elsewhere.
    """
    ip = address.ip
    return (
        address.transport in ("quic-v1", "tcp")
        and ip is not None
        and ip.is_private
        and not ip.is_loopback
        and not ip.is_unspecified
        and any(ip in network for network in networks if network.version == ip.version)
    )


def encode_text(addresses: Sequence[Multiaddr], peer: PeerId) -> bytes:
    """Return the TXT record's data; addresses that do not fit are left out."""
    strings = [_PREFIX + str(address.with_peer_id(peer)).encode() for address in addresses]
    fitting = [text for text in strings if len(text) <= MAX_STRING_BYTES][:MAX_ADDRESSES]
    return b"".join(bytes((len(text),)) + text for text in fitting)


def decode_text(data: bytes) -> dict[PeerId, list[Multiaddr]]:
    """Return the addresses in a TXT record's data, without `/p2p`; what is malformed is skipped."""
    found: dict[PeerId, list[Multiaddr]] = {}
    count = offset = 0
    while offset < len(data[:MAX_TEXT_BYTES]) and count < MAX_ADDRESSES:
        end = offset + 1 + data[offset]
        text, offset = data[offset + 1 : end], end
        if not text.startswith(_PREFIX):
            continue
        try:
            address = Multiaddr.parse(text.removeprefix(_PREFIX).decode("ascii"))
        except (MultiaddrError, UnicodeDecodeError):
            continue
        if address.peer_id is not None and not address.is_circuit:
            found.setdefault(address.peer_id, []).append(address.without_peer_id())
            count += 1
    return found
