"""SSDP, sans-IO: https://openconnectivity.org/upnp-specs/UPnP-arch-DeviceArchitecture-v1.1.pdf

Finding the gateway's UPnP description (UPnP Device Architecture 1.1, section 1.3).
"""

from __future__ import annotations

from typing import Final

from dep2p_daemon.errors import ProtocolViolationError

PORT: Final = 1900
GROUP: Final = "239.255.255.250"
MAX_RESPONSE: Final = 2048
"""Bytes; responses in the field have 300 to 600."""
TARGETS: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
    "upnp:rootdevice",
)
"""What to ask for: a gateway of version 2 has to answer for version 1 too (1.3.2). Some routers
know only some of them, so all are asked for; the description tells what there is."""


def encode_search(target: str) -> bytes:
    """Ask all devices, or the one that it is sent to, for `target` within a second (1.3.2)."""
    return (
        "M-SEARCH * HTTP/1.1\r\n"
        f"HOST: {GROUP}:{PORT}\r\n"
        'MAN: "ssdp:discover"\r\n'
        "MX: 1\r\n"
        f"ST: {target}\r\n\r\n"
    ).encode()


def decode_response(data: bytes) -> str:
    """Return the LOCATION of a search response (1.3.3): where the description is, unchecked.

    Raises:
        ProtocolViolationError: it is no such response.
    """
    if len(data) > MAX_RESPONSE:
        raise _violation("too long", data)
    try:
        status, *lines = data.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise _violation("not ASCII", data) from None
    if status.split(" ")[:2] not in (["HTTP/1.1", "200"], ["HTTP/1.0", "200"]):
        raise _violation("not a response", data)
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() == "location":
            return value.strip()
    raise _violation("it names no description", data)


def _violation(what: str, data: bytes) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the gateway sent an SSDP message that cannot be used: {what}",
        reason="UPNP_MALFORMED",
        length=len(data),
    )
