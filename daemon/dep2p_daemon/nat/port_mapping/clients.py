"""The protocols behind one face: map a port, end a mapping, ask whether the gateway lives.

A client counts only answers that fit its question: PCP's with our nonce, NAT-PMP's (which has
none) for the same transport and port. UPnP's client is in `upnp.py`.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar
from typing import Protocol as TypingProtocol

from dep2p_daemon.errors import ProtocolNotSupportedError
from dep2p_daemon.nat.port_mapping import nat_pmp, pcp
from dep2p_daemon.nat.port_mapping.terms import (
    MAX_RETRY,
    Endpoint,
    Granted,
    Port,
    Protocol,
    Refused,
    granted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.nat.port_mapping.gateway import Gateway

_NONCE_KEY: Final = secrets.token_bytes(32)
"""Of this process: nobody else can guess a nonce."""
PCP_ATTEMPTS: Final = 3
"""Packets before the gateway counts as silent: 3 s, 6 s, 12 s."""
FAREWELL: Final = (0.25, 0.5)
"""Seconds to wait for the confirmation that a mapping has ended; it dies by itself at worst."""
MIN_RETRY: Final = 30.0
"""Seconds after a refusal; PCP's short one (RFC 6887, 7.4)."""
NAT_PMP_RETRY: Final = {
    nat_pmp.Result.NETWORK_FAILURE: 30.0,
    nat_pmp.Result.OUT_OF_RESOURCES: 60.0,
}
"""Seconds; NAT-PMP's refusals do not tell. A router that starts has no outer address yet."""
NAT_PMP_LONG_RETRY: Final = 600.0
NAT_PMP_WAITS: Final = nat_pmp.RETRANSMISSIONS[:5]
"""7.75 s instead of RFC 6886's 127.75 s: whoever asks has other ports, and other protocols."""


class PcpClient:
    """RFC 6887."""

    protocol: ClassVar = Protocol.PCP

    def __init__(
        self, channel: Channel, gateway: Gateway, now: Callable[[], float], random: Random
    ) -> None:
        self._channel = channel
        self._client = gateway.local
        self._server = gateway.address
        self._now = now
        self._random = random
        self._epoch = pcp.Epoch()
        self.restarted = False
        """The gateway has lost its mappings; whoever makes them anew clears this."""

    async def map(self, port: Port, lifetime: int, last: Endpoint | None) -> Granted | Refused:
        """Ask for `port` to be mapped, if possible where it was `last`.

        Raises:
            UnreachableError: silence.
            ProtocolNotSupportedError: the gateway does not speak PCP.
        """
        nonce = self._nonce(port)
        suggested = last or Endpoint(self._anywhere(), port.number)
        data = pcp.encode_map_request(
            self._client, nonce, port, suggested=suggested, lifetime=lifetime
        )
        answer = await self._ask(data, self._acceptor(nonce, port), self._waits())
        if answer.result != pcp.Result.SUCCESS:
            return Refused(
                pcp.result_name(answer.result), min(max(answer.lifetime, MIN_RETRY), MAX_RETRY)
            )
        return granted(answer.external, answer.lifetime, self._client.version)

    async def unmap(self, port: Port) -> None:
        """End a mapping.

        Raises:
            UnreachableError: silence.
            ProtocolNotSupportedError: see `map`.
        """
        nonce = self._nonce(port)
        data = pcp.encode_map_request(
            self._client, nonce, port, suggested=Endpoint(self._anywhere(), 0), lifetime=0
        )
        await self._ask(data, self._acceptor(nonce, port), FAREWELL)

    async def look(self) -> None:
        """Ask for the epoch, which maps nothing; sets `restarted`.

        Raises:
            UnreachableError: silence.
            ProtocolNotSupportedError: see `map`.
        """

        def accept(data: bytes) -> pcp.AnnounceResponse | pcp.OtherVersion | None:
            answer = pcp.decode_response(data)
            return None if isinstance(answer, pcp.MapResponse) else answer

        await self._ask(pcp.encode_announce_request(self._client), accept, self._waits())

    def _nonce(self, port: Port) -> bytes:
        """The same each time, also of the next client.

        With another one the gateway would refuse to change (11.3) what it still maps from before
        the route was gone.
        """
        which = f"{self._client} {self._server} {port.transport} {port.number}"
        return hmac.digest(_NONCE_KEY, which.encode(), "sha256")[: pcp.NONCE_BYTES]

    def _acceptor(
        self, nonce: bytes, port: Port
    ) -> Callable[[bytes], pcp.MapResponse | pcp.OtherVersion | None]:
        def accept(data: bytes) -> pcp.MapResponse | pcp.OtherVersion | None:
            answer = pcp.decode_response(data)
            if isinstance(answer, pcp.MapResponse):
                return answer if answer.answers(nonce, port) else None
            return answer if isinstance(answer, pcp.OtherVersion) else None

        return accept

    async def _ask(
        self,
        data: bytes,
        accept: Callable[[bytes], _PcpAnswer | pcp.OtherVersion | None],
        waits: Iterable[float],
    ) -> _PcpAnswer:
        answer: _PcpAnswer | pcp.OtherVersion = await self._channel.request(data, accept, waits)
        if isinstance(answer, pcp.OtherVersion):
            raise ProtocolNotSupportedError(
                f"the gateway speaks version {answer.version}, not PCP's {pcp.VERSION}",
                reason="UNSUPP_VERSION",
                version=answer.version,
            )
        self.restarted |= self._epoch.restarted(answer.epoch, self._now())
        return answer

    def _waits(self) -> Iterable[float]:
        return itertools.islice(pcp.retransmissions(self._random.random), PCP_ATTEMPTS)

    def _anywhere(self) -> IPv4Address | IPv6Address:
        return IPv4Address(0) if self._client.version == 4 else IPv6Address(0)


_PcpAnswer = TypeVar("_PcpAnswer", pcp.MapResponse, pcp.AnnounceResponse)


class NatPmpClient:
    """RFC 6886."""

    protocol: ClassVar = Protocol.NAT_PMP

    def __init__(
        self, channel: Channel, gateway: Gateway, now: Callable[[], float], random: Random
    ) -> None:
        self._channel = channel
        self._now = now
        self._epoch = nat_pmp.Epoch()
        self.restarted = False
        """The gateway has lost its mappings; whoever makes them anew clears this."""

    async def map(self, port: Port, lifetime: int, last: Endpoint | None) -> Granted | Refused:
        """Ask for the gateway's address, and for `port` to be mapped; see `PcpClient.map`."""
        address = await self._ask_address()
        if address.address is None:
            return _refused(address.result)
        answer = await self._ask_map(
            port, port.number if last is None else last.port, lifetime, NAT_PMP_WAITS
        )
        if answer.result != nat_pmp.Result.SUCCESS:
            return _refused(answer.result)
        external = Endpoint(address.address, answer.external_port or 0)
        return granted(external, answer.lifetime or 0, 4)

    async def unmap(self, port: Port) -> None:
        """End a mapping; see `PcpClient.unmap`."""
        await self._ask_map(port, 0, 0, FAREWELL)

    async def look(self) -> None:
        """Ask for the outer address, which comes with the epoch; see `PcpClient.look`."""
        await self._ask_address()

    async def _ask_address(self) -> nat_pmp.AddressResponse:
        def accept(data: bytes) -> nat_pmp.AddressResponse | None:
            answer = _answer_to_nat_pmp(data)
            return answer if isinstance(answer, nat_pmp.AddressResponse) else None

        data = nat_pmp.encode_address_request()
        answer = await self._channel.request(data, accept, NAT_PMP_WAITS)
        self._note(answer.epoch)
        return answer

    async def _ask_map(
        self, port: Port, external_port: int, lifetime: int, waits: Iterable[float]
    ) -> nat_pmp.MapResponse:
        def accept(data: bytes) -> nat_pmp.MapResponse | None:
            answer = _answer_to_nat_pmp(data)
            if not isinstance(answer, nat_pmp.MapResponse) or answer.transport != port.transport:
                return None
            return answer if answer.internal_port in (port.number, None) else None

        data = nat_pmp.encode_map_request(
            port.transport, port.number, external_port=external_port, lifetime=lifetime
        )
        answer = await self._channel.request(data, accept, waits)
        self._note(answer.epoch)
        return answer

    def _note(self, epoch: int) -> None:
        self.restarted |= self._epoch.restarted(epoch, self._now())


class Client(TypingProtocol):
    """A protocol that is spoken with one gateway."""

    restarted: bool
    """The gateway has lost its mappings; whoever makes them anew clears this."""

    @property
    def protocol(self) -> Protocol:
        """Which one."""
        ...

    async def map(self, port: Port, lifetime: int, last: Endpoint | None) -> Granted | Refused:
        """See `PcpClient.map`."""
        ...

    async def unmap(self, port: Port) -> None:
        """See `PcpClient.unmap`."""
        ...

    async def look(self) -> None:
        """See `PcpClient.look`."""
        ...


@dataclass(frozen=True, slots=True)
class ClientKind:
    """A protocol that may be tried."""

    protocol: Protocol
    versions: tuple[int, ...]
    """Of IP."""
    make: Callable[[Channel, Gateway, Callable[[], float], Random], Client]


def _answer_to_nat_pmp(
    data: bytes,
) -> nat_pmp.AddressResponse | nat_pmp.MapResponse | None:
    answer = nat_pmp.decode_response(data)
    # Never said to a question of this version, but to PCP's, which is asked from the same socket.
    return None if answer.result == nat_pmp.Result.UNSUPPORTED_VERSION else answer


def _upnp(channel: Channel, gateway: Gateway, now: Callable[[], float], random: Random) -> Client:
    # Here, because it is of no use to servers, which have no gateway that translates.
    from dep2p_daemon.nat.port_mapping.upnp import UpnpClient

    return UpnpClient(channel, gateway, now, random)


CLIENTS: Final = (
    ClientKind(Protocol.PCP, (4, 6), PcpClient),
    ClientKind(Protocol.NAT_PMP, (4,), NatPmpClient),
    ClientKind(Protocol.UPNP, (4,), _upnp),
)
"""The best first."""


def _refused(result: int) -> Refused:
    known = next((one for one in nat_pmp.Result if one == result), None)
    retry = NAT_PMP_LONG_RETRY if known is None else NAT_PMP_RETRY.get(known, NAT_PMP_LONG_RETRY)
    return Refused(nat_pmp.result_name(result), retry)
