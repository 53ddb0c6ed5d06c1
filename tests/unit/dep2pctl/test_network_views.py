"""A check of the network as people see it."""

from __future__ import annotations

from dep2p.v1 import network_pb2 as pb
from dep2pctl.network_views import report_fields

REPORT = pb.NetworkReport(
    verdict=pb.NetworkReport.VERDICT_UDP_BLOCKED,
    summary="UDP does not get through",
    udp=pb.TransportCheck(
        works=False,
        dials=[pb.DialCheck(address="/ip4/1.2.3.4/udp/1/quic-v1", error="no answer")],
        mapping=pb.MAPPING_UNKNOWN,
        filtering=pb.FILTERING_UNKNOWN,
    ),
    tcp=pb.TransportCheck(
        works=True,
        dials=[pb.DialCheck(address="/ip4/1.2.3.4/tcp/1", connect_ms=12.34)],
        mapping=pb.MAPPING_ENDPOINT_INDEPENDENT,
        filtering=pb.FILTERING_ADDRESS_AND_PORT_DEPENDENT,
    ),
    hairpin=False,
    port_mapping="upnp",
    gateways=[
        pb.Gateway(ip_version=4, address="192.168.1.1", protocol="upnp"),
        pb.Gateway(ip_version=6, error="NO_GATEWAY"),
    ],
    reachability=pb.REACHABILITY_PRIVATE,
    addresses=[
        pb.AddressReachability(
            address="/ip4/5.6.7.8/tcp/2", reachability=pb.REACHABILITY_PRIVATE, confidence=2
        )
    ],
    observed_addresses=["/ip4/5.6.7.8/tcp/2"],
    relays=[
        pb.RelayCheck(peer_id="12D3A", transport="tcp", rtt_ms=40),
        pb.RelayCheck(peer_id="12D3B"),
    ],
    ipv6=pb.Ipv6Check(address=True, works=False),
    elapsed_seconds=2.5,
)


def test_every_line_of_a_report() -> None:
    assert dict(report_fields(REPORT)) == {
        "verdict": "udp blocked: UDP does not get through",
        "UDP": ["no", "/ip4/1.2.3.4/udp/1/quic-v1  no answer"],
        "UDP mapping": "unknown",
        "UDP filtering": "unknown",
        "TCP": ["yes", "/ip4/1.2.3.4/tcp/1  12.3 ms"],
        "TCP mapping": "endpoint-independent",
        "TCP filtering": "address-and-port-dependent",
        "hairpin": "no",
        "port mapping": [
            "upnp",
            "IPv4 by upnp at 192.168.1.1: being tried",
            "IPv6: NO_GATEWAY",
        ],
        "IPv6": "global address; works: no",
        "reachability": "private",
        "addresses": ["/ip4/5.6.7.8/tcp/2  private (2 of 3)"],
        "seen as": ["/ip4/5.6.7.8/tcp/2"],
        "relays": ["12D3A  40.0 ms over TCP", "12D3B  no answer"],
        "took": "2.5 s",
    }


def test_what_is_not_known_is_said() -> None:
    fields = dict(report_fields(pb.NetworkReport()))
    assert fields["UDP"] == ["unknown"]
    assert fields["hairpin"] == "unknown"
    assert fields["port mapping"] == ["unknown"]
    assert fields["IPv6"] == "no global address"
    assert fields["verdict"] == "unknown: "
