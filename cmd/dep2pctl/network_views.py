"""A check of the network as labels and values for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dep2p.v1.network_pb2 import Filtering, Mapping, NetworkReport, Reachability
from dep2pctl.as_json import enum_name
from dep2pctl.output import milliseconds

if TYPE_CHECKING:
    from dep2p.v1.network_pb2 import (
        AddressReachability,
        DialCheck,
        Gateway,
        Ipv6Check,
        PortMapping,
        RelayCheck,
        TransportCheck,
    )


def report_fields(report: NetworkReport) -> list[tuple[str, object]]:
    """What was found, the verdict first."""
    verdict = enum_name(NetworkReport.Verdict.DESCRIPTOR, report.verdict) or "unknown"
    return [
        ("verdict", f"{verdict.replace('_', ' ')}: {report.summary}"),
        *_transport_fields("UDP", report.udp),
        *_transport_fields("TCP", report.tcp),
        ("hairpin", _known(report.hairpin if report.HasField("hairpin") else None)),
        (
            "port mapping",
            [report.port_mapping or "unknown", *(gateway_text(one) for one in report.gateways)],
        ),
        ("IPv6", _ipv6_text(report.ipv6)),
        ("reachability", _word(enum_name(Reachability.DESCRIPTOR, report.reachability))),
        ("addresses", [_address_text(one) for one in report.addresses]),
        ("seen as", list(report.observed_addresses)),
        ("relays", [_relay_text(one) for one in report.relays]),
        ("took", f"{report.elapsed_seconds:.1f} s"),
    ]


def gateway_text(gateway: Gateway) -> str:
    """A router, and what it maps or why it does not."""
    router = f" by {gateway.protocol} at {gateway.address}" if gateway.protocol else ""
    parts = [_mapping_text(one) for one in gateway.mappings]
    if gateway.error:
        parts.append(gateway.message or gateway.error)
    return f"IPv{gateway.ip_version}{router}: {', '.join(parts) or 'being tried'}"


def _mapping_text(mapping: PortMapping) -> str:
    error = f" ({mapping.error})" if mapping.error else ""
    return (mapping.external_address or f"{mapping.transport} {mapping.port} not mapped") + error


def _transport_fields(name: str, check: TransportCheck) -> list[tuple[str, object]]:
    works = _known(check.works if check.HasField("works") else None)
    return [
        (name, [works, *(_dial_text(dial) for dial in check.dials)]),
        (f"{name} mapping", _word(enum_name(Mapping.DESCRIPTOR, check.mapping))),
        (f"{name} filtering", _word(enum_name(Filtering.DESCRIPTOR, check.filtering))),
    ]


def _dial_text(dial: DialCheck) -> str:
    took = milliseconds(dial.connect_ms) if dial.HasField("connect_ms") else dial.error
    return f"{dial.address}  {took}"


def _address_text(one: AddressReachability) -> str:
    verdict = _word(enum_name(Reachability.DESCRIPTOR, one.reachability))
    return f"{one.address}  {verdict} ({one.confidence} of 3)"


def _relay_text(relay: RelayCheck) -> str:
    rtt = milliseconds(relay.rtt_ms) if relay.HasField("rtt_ms") else "no answer"
    over = f" over {'UDP' if relay.transport == 'quic-v1' else 'TCP'}" if relay.transport else ""
    return f"{relay.peer_id}  {rtt}{over}"


def _ipv6_text(check: Ipv6Check) -> str:
    if not check.address:
        return "no global address"
    return f"global address; works: {_known(check.works if check.HasField('works') else None)}"


def _known(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _word(name: str | None) -> str:
    return (name or "unknown").replace("_", "-")
