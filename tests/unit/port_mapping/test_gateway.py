"""Linux' routing tables as text."""

from __future__ import annotations

import sys
from ipaddress import ip_address

import pytest

from dep2p_daemon.nat.port_mapping.gateway import Route, parse_ipv4_routes, parse_ipv6_routes

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


@pytest.mark.skipif(sys.byteorder != "little", reason="the text is a little-endian machine's")
def test_the_ipv4_default_route_with_the_lowest_metric_is_first() -> None:
    text = HEAD + (
        "wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0\n"  # no gateway
        "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
        "vpn0\t00000000\t0103A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n"  # half of the Internet
        "down0\t00000000\t0104A8C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"
        "nonsense\n"
        "eth1\tzz\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert parse_ipv4_routes(text) == [
        Route(ip_address("192.168.1.1"), "eth0", 100),
        Route(ip_address("192.168.2.1"), "wlan0", 600),
    ]
    assert parse_ipv4_routes("") == []


def test_the_ipv6_default_route() -> None:
    zero = "0" * 32
    text = (
        f"fd{zero[2:]} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n"
        f"{zero} 00 {zero} 00 fe80{zero[5:]}1 00000400 00000002 00000000 00000003     eth0\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        f"{zero} 00 {zero} 00 fd{zero[3:]}1 00000001 00000001 00000000 00000203     bad\n"
        f"{zero} 00 {zero} 00 short 00000001 00000001 00000000 00000003     eth1\n"
        "nonsense\n"
    )
    assert parse_ipv6_routes(text) == [Route(ip_address("fe80::1"), "eth0", 0x400)]
