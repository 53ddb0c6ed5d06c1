"""What is known of the network, from the daemon's objects to the API's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dep2p.v1 import network_pb2
from dep2p_daemon.nat.port_mapping.terms import multiaddr_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dep2p_daemon.nat.netcheck_report import NetworkReport, TransportCheck
    from dep2p_daemon.nat.port_mapping.status import GatewayStatus, PortMapping
    from dep2p_daemon.nat.reachability import AddressReachability, Verdict


def reachability_value(verdict: Verdict) -> network_pb2.Reachability.ValueType:
    """Whether strangers can connect."""
    return network_pb2.Reachability.Value(f"REACHABILITY_{verdict.value}")


def reachability_changed(
    verdict: Verdict, addresses: Iterable[AddressReachability]
) -> network_pb2.ReachabilityChanged:
    """The verdict on the node and its addresses."""
    return network_pb2.ReachabilityChanged(
        reachability=reachability_value(verdict), addresses=_addresses(addresses)
    )


def port_mapping_changed(status: Iterable[GatewayStatus]) -> network_pb2.PortMappingChanged:
    """What the gateways map."""
    return network_pb2.PortMappingChanged(gateways=[_gateway(one) for one in status])


def report_message(report: NetworkReport) -> network_pb2.NetworkReport:
    """What a check of the network found."""
    return network_pb2.NetworkReport(
        verdict=network_pb2.NetworkReport.Verdict.Value(f"VERDICT_{report.conclusion.value}"),
        summary=report.words,
        udp=_transport(report.udp),
        tcp=_transport(report.tcp),
        hairpin=report.hairpin,
        port_mapping=report.port_mapping,
        reachability=reachability_value(report.reachability),
        addresses=_addresses(report.addresses),
        observed_addresses=[str(address) for address in report.observed],
        relays=[
            network_pb2.RelayCheck(
                peer_id=str(relay.peer),
                address=str(relay.address),
                transport=relay.path,
                rtt_ms=_milliseconds(relay.rtt),
            )
            for relay in report.relays
        ],
        ipv6=network_pb2.Ipv6Check(address=report.ipv6.address, works=report.ipv6.works),
        elapsed_seconds=report.seconds,
        gateways=[_gateway(one) for one in report.gateways],
    )


def _gateway(status: GatewayStatus) -> network_pb2.Gateway:
    return network_pb2.Gateway(
        ip_version=status.version,
        address="" if status.gateway is None else str(status.gateway),
        protocol="" if status.protocol is None else status.protocol.word,
        mappings=[_port_mapping(one) for one in status.mappings],
        error=status.error,
        message=status.detail,
    )


def _port_mapping(mapping: PortMapping) -> network_pb2.PortMapping:
    message = network_pb2.PortMapping(
        transport=mapping.port.transport.name.lower(),
        port=mapping.port.number,
        error=mapping.error,
    )
    if mapping.external is not None:
        message.external_address = str(multiaddr_of(mapping.port, mapping.external))
        message.expire_time.FromSeconds(int(mapping.expires_at))
    return message


def _addresses(
    addresses: Iterable[AddressReachability],
) -> list[network_pb2.AddressReachability]:
    return [
        network_pb2.AddressReachability(
            address=str(one.address),
            reachability=reachability_value(one.verdict),
            confidence=one.confidence,
        )
        for one in addresses
    ]


def _transport(check: TransportCheck) -> network_pb2.TransportCheck:
    return network_pb2.TransportCheck(
        works=check.works,
        dials=[
            network_pb2.DialCheck(
                peer_id=str(one.peer),
                address=str(one.address),
                connect_ms=_milliseconds(one.seconds),
                error=one.error,
            )
            for one in check.targets
        ],
        mapping=network_pb2.Mapping.Value(f"MAPPING_{check.mapping.value}"),
        filtering=network_pb2.Filtering.Value(f"FILTERING_{check.filtering.value}"),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
