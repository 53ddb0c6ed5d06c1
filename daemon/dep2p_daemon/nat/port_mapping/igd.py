"""UPnP-IGD, sans-IO: https://openconnectivity.org/upnp-specs/UPnP-gw-WANIPConnection-v2-Service.pdf

The gateway's description, and the actions of WANIPConnection 1 and 2 and of WANPPPConnection.

XML comes from a stranger: no document types, hence no entities to expand; depth and number of
elements are bounded. A URL counts only if it leads to the gateway itself.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit
from xml.parsers import expat

from dep2p_daemon.errors import ProtocolViolationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dep2p_daemon.nat.port_mapping.terms import IPAddress

SERVICES: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
"""Those that map ports, the best first."""
MAX_SERVICES: Final = 4
"""Of one gateway that are tried; one for each of its lines to the Internet."""
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 4096
MAX_URL: Final = 512
"""Characters."""
_PATH: Final = re.compile(r"/[\x21-\x7e]*\Z")
_ERRORS: Final = {
    401: "INVALID_ACTION",
    402: "INVALID_ARGS",
    501: "ACTION_FAILED",
    606: "NOT_AUTHORIZED",
    714: "NO_SUCH_ENTRY_IN_ARRAY",
    715: "WILD_CARD_NOT_PERMITTED_IN_SRC_IP",
    716: "WILD_CARD_NOT_PERMITTED_IN_EXT_PORT",
    718: "CONFLICT_IN_MAPPING_ENTRY",
    724: "SAME_PORT_VALUES_REQUIRED",
    725: "ONLY_PERMANENT_LEASES_SUPPORTED",
    726: "REMOTE_HOST_ONLY_SUPPORTS_WILDCARD",
    727: "EXTERNAL_PORT_ONLY_SUPPORTS_WILDCARD",
    728: "NO_PORT_MAPS_AVAILABLE",
    729: "CONFLICT_WITH_OTHER_MECHANISMS",
    732: "WILD_CARD_NOT_PERMITTED_IN_INT_PORT",
}
INVALID_ACTION: Final = 401
INVALID_ARGS: Final = 402
ACTION_FAILED: Final = 501
NO_SUCH_ENTRY: Final = 714
CONFLICT: Final = 718
SAME_PORTS: Final = 724
ONLY_PERMANENT: Final = 725


@dataclass(frozen=True, slots=True)
class Url:
    """Something at the gateway; there are no others."""

    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Service:
    """A line to the Internet whose ports can be mapped."""

    type: str
    control: Url


@dataclass(frozen=True, slots=True)
class Fault:
    """The gateway refused an action."""

    code: int

    @property
    def name(self) -> str:
        """The standard's name of the code."""
        return _ERRORS.get(self.code, f"ERROR_{self.code}")


@dataclass(slots=True)
class Element:
    """A node of an XML document. Namespaces and attributes are left out."""

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def each(self, name: str) -> Iterator[Element]:
        """Every element of that name below this one, in the document's order."""
        for child in self.children:
            if child.name == name:
                yield child
            yield from child.each(name)

    def value(self, name: str) -> str:
        """The text of a direct child; empty without one."""
        return next((one.text.strip() for one in self.children if one.name == name), "")


def parse_xml(data: bytes) -> Element:
    """Parse a document.

    Raises:
        ProtocolViolationError: it is none, has a document type, or too many elements.
    """
    document = Element("")
    open_elements = [document]
    count = 0

    def start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal count
        count += 1
        if len(open_elements) > MAX_DEPTH or count > MAX_ELEMENTS:
            raise _violation("too many elements")
        element = Element(name.rpartition(":")[2])
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(name: str) -> None:
        open_elements.pop()

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def doctype(*args: object) -> None:
        raise _violation("a document type")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        # The latter two: an encoding that Python does not know, or cannot use.
        raise _violation(f"not XML ({error})") from None
    return document


def parse_url(text: str, gateway: IPAddress, base: Url | None = None) -> Url:
    """Take a URL, which may be relative to `base`.

    Raises:
        ProtocolViolationError: it leads to anybody but the gateway, or is no plain HTTP.
    """
    if len(text) > MAX_URL:
        raise _violation("a URL that is too long")
    host = str(gateway)
    try:
        joined = text if base is None else urljoin(f"http://{host}:{base.port}{base.path}", text)
        parts = urlsplit(joined)
        port = 80 if parts.port is None else parts.port
        # A name is no address: resolving it would ask somebody else.
        own = parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "") == gateway
    except ValueError:
        own, port = False, 0
    if not own or "@" in parts.netloc or not port:
        raise ProtocolViolationError(
            "the gateway's UPnP names a URL that does not lead to the gateway itself",
            reason="UPNP_FOREIGN_URL",
            url=text,
        )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _PATH.match(path) is None:
        raise _violation("a URL with odd characters")
    return Url(port, path)


def parse_description(data: bytes, location: Url, gateway: IPAddress) -> tuple[Service, ...]:
    """Return the services that map ports, the best first; those that are elsewhere are left out.

    Raises:
        ProtocolViolationError: it is no description, or all its services are elsewhere.
    """
    document = parse_xml(data)
    stated = next((one.text.strip() for one in document.each("URLBase")), "")
    found: list[Service] = []
    foreign: ProtocolViolationError | None = None
    for element in document.each("service"):
        kind = element.value("serviceType")
        if kind in SERVICES and len(found) < MAX_SERVICES:
            try:
                base = parse_url(stated, gateway, location) if stated else location
                control = parse_url(element.value("controlURL"), gateway, base)
            except ProtocolViolationError as error:
                foreign = error
            else:
                found.append(Service(kind, control))
    if foreign is not None and not found:
        raise foreign
    return tuple(sorted(found, key=lambda one: SERVICES.index(one.type)))


def encode_action(service: Service, action: str, arguments: Mapping[str, object]) -> bytes:
    """The body that asks for an action; arguments are ours and need no escaping."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service.type}">{inner}</u:{action}>'
        "</s:Body></s:Envelope>\r\n"
    ).encode()


def action_headers(service: Service, action: str) -> dict[str, str]:
    """What goes with the body."""
    return {
        "Content-Type": 'text/xml; charset="utf-8"',
        "SOAPAction": f'"{service.type}#{action}"',
    }


def decode_action(status: int, body: bytes, action: str) -> dict[str, str] | Fault:
    """Return an action's results, or why it was refused.

    Raises:
        ProtocolViolationError: it is no answer to that action.
    """
    document = parse_xml(body) if status in (200, 500) else Element("")
    for error in document.each("errorCode"):
        code = error.text.strip()
        if len(code) <= 4 and code.isascii() and code.isdigit():
            return Fault(int(code))
    answer = next(document.each(f"{action}Response"), None)
    if status != 200 or answer is None:
        raise _violation(f"no answer to {action} (status {status})")
    return {child.name: child.text.strip() for child in answer.children}


def _violation(what: str) -> ProtocolViolationError:
    return ProtocolViolationError(
        f"the gateway's UPnP cannot be used: {what}", reason="UPNP_MALFORMED"
    )
