"""Port mapping by UPnP-IGD: the third client; most home routers speak nothing else.

UPnP has no epoch: that the gateway has lost its mappings shows when it is asked for one of them.
It has no secrets either; `lan.py` sees to it that only the gateway is asked and believed.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, ClassVar, Final

import structlog

from dep2p_daemon.errors import Dep2pError, ProtocolViolationError, UnreachableError
from dep2p_daemon.nat.port_mapping import igd, ssdp
from dep2p_daemon.nat.port_mapping.lan import GatewayLan, Lan
from dep2p_daemon.nat.port_mapping.terms import (
    NO_OUTER_ADDRESS,
    SILENT,
    Endpoint,
    Granted,
    Port,
    Protocol,
    Refused,
    granted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from random import Random

    from dep2p_daemon.nat.port_mapping.channel import Channel
    from dep2p_daemon.nat.port_mapping.gateway import Gateway
    from dep2p_daemon.nat.port_mapping.igd import Fault, Service
    from dep2p_daemon.nat.port_mapping.terms import IPAddress

_log = structlog.get_logger(__name__)

MAX_DESCRIPTIONS: Final = 2
"""Of one gateway that are read; some have one for media beside the one that counts."""
OTHER_PORTS: Final = 3
"""Outer ports that are tried when the one we want is another host's."""
_DYNAMIC_PORTS: Final = (49152, 65535)
RETRY: Final = 120.0
"""Seconds after a refusal that may pass by itself: a router that starts has no address yet."""
LONG_RETRY: Final = 600.0
"""Seconds after any other; UPnP does not tell."""
_DESCRIPTION: Final = "dep2pd"
"""What the router shows for the mapping in its settings."""


class UpnpClient:
    """WANIPConnection or WANPPPConnection of the gateway. Holds nothing open between calls."""

    protocol: ClassVar = Protocol.UPNP

    def __init__(
        self,
        channel: Channel | None,
        gateway: Gateway,
        now: Callable[[], float],
        random: Random,
        lan: Lan | None = None,
    ) -> None:
        """`channel` and `now` are the other clients'. `lan` is a parameter for tests."""
        self._gateway = gateway
        self._random = random
        self._lan: Lan = lan or GatewayLan(gateway)
        self._service: Service | None = None
        self._permanent = False
        """The gateway knows no leases that end."""
        self._external: dict[Port, Endpoint] = {}
        self.restarted = False
        """The gateway has lost a mapping; whoever makes them anew clears this."""

    async def map(self, port: Port, lifetime: int, last: Endpoint | None) -> Granted | Refused:
        """Ask for `port` to be mapped, if possible where it was `last`.

        A mapping for ever is granted for `lifetime` too, so that it is renewed like others: that
        makes it anew if it got lost.

        Raises:
            UnreachableError: there is no UPnP gateway, or it is silent or speaks nonsense.
        """
        address = await self._ask_address()
        if isinstance(address, Refused):
            return address
        refusal = igd.Fault(igd.CONFLICT)
        for wanted in self._wanted(port, last):
            answer = await self._add(port, wanted, lifetime)
            if isinstance(answer, igd.Fault):
                refusal = answer
                if answer.code == igd.CONFLICT:
                    continue
                break
            external = Endpoint(address, answer)
            self._external[port] = external
            return granted(external, lifetime, 4)
        return Refused(refusal.name, LONG_RETRY)

    async def unmap(self, port: Port) -> None:
        """End a mapping.

        Raises:
            UnreachableError: see `map`.
        """
        external = self._external.pop(port, None)
        if external is not None:
            await self._ask("DeletePortMapping", _entry(port, external.port))

    async def look(self) -> None:
        """Ask for the mappings; sets `restarted`.

        Raises:
            UnreachableError: see `map`.
        """
        address = await self._ask_address()
        for port, external in tuple(self._external.items()):
            answer = await self._ask("GetSpecificPortMappingEntry", _entry(port, external.port))
            if isinstance(answer, igd.Fault):
                # Any other refusal tells nothing: not all routers know the action well.
                lost = answer.code == igd.NO_SUCH_ENTRY
            else:
                lost = _is_other(answer.get("NewInternalClient", ""), self._gateway.local)
            if lost or (not isinstance(address, Refused) and address != external.ip):
                self.restarted = True
                return

    # ------------------------------------------------------------------ actions

    async def _ask_address(self) -> IPAddress | Refused:
        answer = await self._ask("GetExternalIPAddress", {})
        if isinstance(answer, igd.Fault):
            failed = answer.code == igd.ACTION_FAILED
            return Refused(NO_OUTER_ADDRESS if failed else answer.name, RETRY)
        return _address(answer) or Refused(NO_OUTER_ADDRESS, RETRY)

    def _wanted(self, port: Port, last: Endpoint | None) -> Iterator[int]:
        yield port.number if last is None else last.port
        for _ in range(OTHER_PORTS):
            yield self._random.randint(*_DYNAMIC_PORTS)

    async def _add(self, port: Port, wanted: int, lifetime: int) -> int | Fault:
        """Add a mapping, in the ways that gateways insist on; returns the outer port."""
        while True:
            lease = 0 if self._permanent else lifetime
            answer = await self._add_entry(port, wanted, lease)
            if not isinstance(answer, igd.Fault):
                return answer
            # Some say of a lease that ends only that the arguments are wrong.
            if answer.code in (igd.ONLY_PERMANENT, igd.INVALID_ARGS) and not self._permanent:
                self._permanent = True
            elif answer.code == igd.SAME_PORTS and wanted != port.number:
                wanted = port.number
            else:
                return answer

    async def _add_entry(self, port: Port, wanted: int, lease: int) -> int | Fault:
        arguments = {
            **_entry(port, wanted),
            "NewInternalPort": port.number,
            "NewInternalClient": self._gateway.local,
            "NewEnabled": 1,
            "NewPortMappingDescription": _DESCRIPTION,
            "NewLeaseDuration": lease,
        }
        service = await self._find()
        if service.type == igd.SERVICES[0]:
            answer = await self._ask("AddAnyPortMapping", arguments)
            if not isinstance(answer, igd.Fault):
                return _port(answer.get("NewReservedPort", ""))
            if answer.code != igd.INVALID_ACTION:
                return answer
        answer = await self._ask("AddPortMapping", arguments)
        return answer if isinstance(answer, igd.Fault) else wanted

    async def _ask(self, action: str, arguments: Mapping[str, object]) -> dict[str, str] | Fault:
        """Ask the gateway, and look for it anew if it is no longer where it was."""
        known = self._service
        if known is not None:
            try:
                return await self._call(known, action, arguments)
            except UnreachableError as error:
                _log.debug("the gateway's UPnP moved or is gone", error=error.message)
                self._service = None
        return await self._call(await self._find(), action, arguments)

    async def _call(
        self, service: Service, action: str, arguments: Mapping[str, object]
    ) -> dict[str, str] | Fault:
        try:
            response = await self._lan.request(
                service.control,
                headers=igd.action_headers(service, action),
                body=igd.encode_action(service, action, arguments),
            )
            return igd.decode_action(response.status, response.body, action)
        except ProtocolViolationError as error:
            raise _unusable(error) from error

    # ---------------------------------------------------------------- discovery

    async def _find(self) -> Service:
        """Find the line to the Internet that has an address."""
        if self._service is not None:
            return self._service
        services = await self._services()
        for service in services:
            answer = await self._call(service, "GetExternalIPAddress", {})
            if not isinstance(answer, igd.Fault) and _address(answer) is not None:
                self._service = service
                return service
        # None has one now: the first will say why.
        self._service = services[0]
        return services[0]

    async def _services(self) -> tuple[Service, ...]:
        """The services of the gateway that map ports; at least one."""
        last_error: Dep2pError | None = None
        for location in (await self._locations())[:MAX_DESCRIPTIONS]:
            try:
                url = igd.parse_url(location, self._gateway.address)
                response = await self._lan.request(url)
                if response.status != 200:
                    # Redirects too: they are the way to somebody else.
                    raise UnreachableError(
                        f"the gateway's UPnP description is not there ({response.status})",
                        reason="UPNP_MALFORMED",
                    )
                services = igd.parse_description(response.body, url, self._gateway.address)
            except (ProtocolViolationError, UnreachableError) as error:
                last_error = error
                continue
            if services:
                return services
        if last_error is not None:
            raise _unusable(last_error) from last_error
        raise UnreachableError(
            f"the gateway {self._gateway.address} has no UPnP service that maps ports",
            reason=SILENT,
            gateway=self._gateway.address,
        )

    async def _locations(self) -> list[str]:
        locations: list[str] = []
        for data in await self._lan.search():
            try:
                location = ssdp.decode_response(data)
            except ProtocolViolationError as error:
                _log.debug("a gateway's answer was ignored", reason=error.reason, error=str(error))
                continue
            if location not in locations:
                locations.append(location)
        return locations


def _entry(port: Port, external_port: int) -> dict[str, object]:
    """What names a mapping."""
    return {
        "NewRemoteHost": "",
        "NewExternalPort": external_port,
        "NewProtocol": port.transport.name,
    }


def _address(answer: Mapping[str, str]) -> IPAddress | None:
    try:
        address = ipaddress.IPv4Address(answer.get("NewExternalIPAddress", ""))
    except ValueError:
        return None
    return None if address.is_unspecified else address


def _is_other(text: str, address: IPAddress) -> bool:
    """Whether that is another host; some routers tell names, which say nothing."""
    try:
        return ipaddress.ip_address(text) != address
    except ValueError:
        return False


def _port(text: str) -> int:
    """0: no port."""
    return int(text) if len(text) <= 5 and text.isascii() and text.isdigit() else 0


def _unusable(error: Dep2pError) -> UnreachableError:
    """A gateway that speaks nonsense is as good as none."""
    return UnreachableError(error.message, reason=error.reason)
