"""One component of a multiaddr, and its binary form."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from dep2p_daemon.errors import MultiaddrError, ProtocolViolationError
from dep2p_daemon.multiaddr import codes
from dep2p_daemon.wire import varint


@dataclass(frozen=True, slots=True)
class Component:
    """A protocol and its value in binary; empty when the protocol has none."""

    protocol: codes.Protocol
    data: bytes

    @property
    def text(self) -> str:
        """The value in text, "" when the protocol has none."""
        return self.protocol.codec.to_text(self.data) if self.protocol.codec else ""

    def encode(self) -> bytes:
        """Return the binary form."""
        code = varint.encode(self.protocol.code)
        codec = self.protocol.codec
        if codec is not None and codec.size == codes.VARIABLE:
            return code + varint.encode_prefixed(self.data)
        return code + self.data

    @override
    def __str__(self) -> str:
        if self.protocol.is_path:
            return f"/{self.protocol.name}{self.text}"
        return f"/{self.protocol.name}/{self.text}" if self.data else f"/{self.protocol.name}"


def decode_component(data: bytes, offset: int) -> tuple[Component, int]:
    """Return the component at `offset` of a binary multiaddr, and the offset behind it.

    Raises:
        MultiaddrError: cut off, too long, of an unknown protocol or with a bad value.
    """
    try:
        code, offset = varint.decode(data, offset)
    except ProtocolViolationError as error:
        raise MultiaddrError(f"a multiaddr's protocol code: {error.message}") from error
    protocol = codes.BY_CODE.get(code)
    if protocol is None:
        raise MultiaddrError(
            f"a multiaddr has a component of unknown protocol code {code}",
            reason="MULTIADDR_UNKNOWN_PROTOCOL",
            component=code,
        )
    if protocol.codec is None:
        return Component(protocol, b""), offset
    if protocol.codec.size == codes.VARIABLE:
        try:
            value, offset = varint.decode_prefixed(data, offset, max_bytes=codes.MAX_VALUE_BYTES)
        except ProtocolViolationError as error:
            raise MultiaddrError(
                f"the value of /{protocol.name} in a multiaddr: {error.message}",
                component=protocol.name,
            ) from error
    else:
        end = offset + protocol.codec.size
        value, offset = data[offset:end], end
        if end > len(data):
            raise MultiaddrError(
                f"the value of /{protocol.name} in a multiaddr is cut off",
                component=protocol.name,
            )
    try:
        protocol.codec.to_text(value)
    except ValueError as error:
        raise MultiaddrError(
            f"the value of /{protocol.name} in a multiaddr {error}", component=protocol.name
        ) from error
    return Component(protocol, value), offset
