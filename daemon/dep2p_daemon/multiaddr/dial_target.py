"""What a user may write where a peer or a relay is asked for, and what to say to a mistake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dep2p_daemon.errors import MultiaddrError
from dep2p_daemon.identity.peer_id import PeerId
from dep2p_daemon.multiaddr.address import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Sequence

_TARGET_ID: Final = "<target's peer id>"
_RELAY_ID: Final = "<relay's peer id>"
_WHERE_IDS_COME_FROM: Final = "; `dep2pctl id` on that machine prints it"
_ADDRESS_FORM: Final = "/ip4/203.0.113.10/udp/4001/quic-v1"


@dataclass(frozen=True, slots=True)
class DialTarget:
    """A peer, and where it was said to be."""

    peer: PeerId
    addresses: tuple[Multiaddr, ...]
    """Without the trailing `/p2p`; empty when only the peer id was given."""


def parse_dial_target(text: str) -> DialTarget:
    """Parse a peer id, an address ending in `/p2p/<peer>`, or a circuit address.

    Raises:
        PeerIdError: the text is neither a multiaddr nor a peer id.
        MultiaddrError: says which part is missing and shows the right form.
    """
    text = text.strip()
    if not text.startswith("/") and not _looks_like_host_and_port(text):
        return DialTarget(PeerId.parse(text), ())
    address = _parse(text, "<peer id>")
    if address.is_circuit:
        relay, rest = address.split_circuit()
        _refuse_two_peers(relay)
        _refuse_undialable(relay)
        if rest.peer_id is None or len(rest.protocols) != 1:
            raise _missing(
                address,
                "the target's peer id behind /p2p-circuit",
                "TARGET_ID_MISSING",
                f"{relay}/p2p-circuit/p2p/{_TARGET_ID}",
            )
        return DialTarget(rest.peer_id, (address.without_peer_id(),))
    _refuse_two_peers(address)
    peer = address.peer_id
    if peer is None:
        raise _missing(
            address, "the peer's id at the end", "PEER_ID_MISSING", f"{address}/p2p/<peer id>"
        )
    _refuse_undialable(address)
    place = address.without_peer_id()
    return DialTarget(peer, (place,) if place.protocols else ())


def parse_relay_address(text: str) -> Multiaddr:
    """Parse a relay's address, which ends in the relay's `/p2p/<id>`.

    Raises:
        MultiaddrError: says which part is missing or too many, and shows the right form.
    """
    text = text.strip()
    if text and not text.startswith("/") and not _looks_like_host_and_port(text):
        raise MultiaddrError(
            f'"{text[:300]}" is no relay address: it does not begin with "/"',
            remedy=f"write the relay's full address, such as {_ADDRESS_FORM}/p2p/{_RELAY_ID}; "
            "the relay prints it when it starts",
        )
    address = _parse(text, _RELAY_ID)
    if address.is_circuit:
        relay = str(address).partition("/p2p-circuit")[0]
        raise MultiaddrError(
            f"{address} is the address of a peer behind a relay, not of a relay",
            reason="RELAY_ADDRESS_IS_CIRCUIT",
            remedy=f"write what is before /p2p-circuit: {relay}",
            address=address,
        )
    peer = address.peer_id
    if peer is None:
        raise _missing(
            address,
            "the relay's peer id at the end",
            "PEER_ID_MISSING",
            f"{address}/p2p/{_RELAY_ID}",
        )
    _refuse_two_peers(address)
    if len(address.protocols) == 1:
        raise MultiaddrError(
            f"{address} says who the relay is, but not where",
            reason="ADDRESS_MISSING",
            remedy=f"write {_ADDRESS_FORM}{address} with the relay's own IP address and port",
            address=address,
        )
    _refuse_undialable(address)
    return address


def _looks_like_host_and_port(text: str) -> bool:
    """Whether to complain about a multiaddr rather than about a peer id."""
    return any(character in text for character in "/:.") and "..." not in text


def _parse(text: str, whose_id: str) -> Multiaddr:
    """Parse an address; what to write instead of a host and port is complete at once."""
    try:
        return Multiaddr.parse(text)
    except MultiaddrError as error:
        if not text or text.startswith("/"):
            raise
        raise MultiaddrError(
            error.message, reason=error.reason, remedy=f"{error.remedy}/p2p/{whose_id}"
        ) from error


def _missing(address: Multiaddr, what: str, reason: str, right: str) -> MultiaddrError:
    return MultiaddrError(
        f"the address {address} is missing {what}",
        reason=reason,
        remedy=f"write {right}{_WHERE_IDS_COME_FROM}",
        address=address,
    )


def _refuse_two_peers(address: Multiaddr) -> None:
    """Refuse `/.../p2p/R/p2p/T`, and other addresses that go on behind a peer id."""
    protocols = address.protocols
    if "p2p" not in protocols[:-1]:
        return
    at = protocols.index("p2p")
    texts = [str(component) for component in address.components]
    right = "".join([*texts[: at + 1], "/p2p-circuit", *texts[at + 1 :]])
    raise MultiaddrError(
        f"the address {address} is missing /p2p-circuit between the relay's peer id and what "
        "follows it",
        reason="CIRCUIT_MISSING",
        remedy=f"write {right} to reach the peer through the relay",
        address=address,
    )


def _refuse_undialable(address: Multiaddr) -> None:
    """Refuse an address that no transport of ours can ever dial."""
    place = address.without_peer_id()
    protocols = place.protocols
    if place.transport is None and protocols and protocols != ("dnsaddr",):
        raise MultiaddrError(
            f"the address {address} {_why_undialable(protocols)}",
            reason="ADDRESS_NOT_DIALABLE",
            remedy=f"write it like {_ADDRESS_FORM} or /ip4/203.0.113.10/tcp/4001",
            address=address,
        )
    if place.is_unspecified:
        raise MultiaddrError(
            f"the address {address} is one to listen on, not one to dial",
            reason="ADDRESS_NOT_DIALABLE",
            remedy=f"replace {place.host} by the IP address of the peer's machine",
            address=address,
        )
    if place.port == 0:
        raise MultiaddrError(
            f"the address {address} has the port 0, which cannot be dialled",
            reason="ADDRESS_NOT_DIALABLE",
            remedy="write the port that the peer listens on",
            address=address,
        )


def _why_undialable(protocols: Sequence[str]) -> str:
    if protocols[0] == "ip6zone":
        protocols = protocols[1:]
    match protocols:
        case [_, "udp"]:
            return "is missing /quic-v1 behind the UDP port"
        case [*_, "quic"]:
            return "says /quic, which is an old draft; today's is /quic-v1"
        case [_]:
            return "is missing a port and a transport"
    return f"is for a transport that is not spoken here: /{'/'.join(protocols[1:])}"
