"""The nftables programs of the NAT boxes and firewalls.

A NAT's external address is no local address of the box (but for `masquerade`): every packet to
it is forwarded or dropped, so an unsolicited one never makes a conntrack entry. The outside
interfaces are wan, hp0 and hp1 (out and in of the hairpin loop); all others are inside.
"""

from __future__ import annotations

from typing import Final

_MASQUERADE: Final = """\
table ip natlab {
 chain post {
  type nat hook postrouting priority srcnat;
  oifname "wan" masquerade
 }
}
"""

IPV6_FIREWALL: Final = """\
table ip6 natlab {
 set pinholes { type inet_proto . ipv6_addr . inet_service; }
 chain forwarding {
  type filter hook forward priority filter; policy drop;
  ct state established,related accept
  iifname != "wan" accept
  meta l4proto . ip6 daddr . th dport @pinholes accept
 }
}
"""
"""Out, what answers it in, and pinholes; the rest is dropped in silence."""

_WHO_MAY_SEND: Final = {
    "full-cone": "",
    "restricted-cone": "meta l4proto . th dport . ip saddr @perm ",
}
"""What must hold beside the mapping for a packet from a stranger to come in."""


def nat(kind: str, external: str, timeout: int, *, preserve_ports: bool) -> str:
    """The program of a NAT of this kind: mappings idle for `timeout` seconds are forgotten.

    Endpoint-independent mapping is three tables that the box learns from its own traffic:
    eim: inside socket -> external socket; rev: external port -> inside socket; perm: who was
    sent to from an external port.
    """
    if kind == "masquerade":
        return _MASQUERADE
    independent = kind != "symmetric"
    lines = [
        "table ip natlab {",
        " map ports { type inet_proto . inet_service : ipv4_addr . inet_service; }",
        " chain mapped {",
        "  type nat hook prerouting priority dstnat - 1;",
        f'  iifname {{ "wan", "hp1" }} ip daddr {external} meta l4proto {{ tcp, udp }} '
        "dnat ip to meta l4proto . th dport map @ports",
        " }",
    ]
    if independent:
        lines += _tables(timeout)
    if kind in _WHO_MAY_SEND:
        lines += [
            " chain pre {",
            "  type nat hook prerouting priority dstnat;",
            f'  iifname {{ "wan", "hp1" }} ip daddr {external} meta l4proto {{ tcp, udp }} '
            f"{_WHO_MAY_SEND[kind]}dnat ip to meta l4proto . th dport map @rev",
            " }",
        ]
    lines += [
        " chain post {",
        "  type nat hook postrouting priority srcnat;",
        '  oifname != { "wan", "hp0" } accept',
    ]
    if independent:
        lines.append(
            "  meta l4proto { tcp, udp } snat ip to meta l4proto . ip saddr . th sport map @eim"
        )
        if not preserve_ports:  # ranges such that the external port always differs
            lines += [
                f"  meta l4proto {{ tcp, udp }} th sport < 32768 snat to {external}:33000-65000",
                f"  meta l4proto {{ tcp, udp }} snat to {external}:2000-32000",
            ]
    else:
        lines.append(f"  meta l4proto {{ tcp, udp }} snat to {external}:2000-65000 fully-random")
    lines += [
        f"  snat to {external}",
        " }",
        " chain forwarding {",
        "  type filter hook forward priority filter; policy drop;",
        *(["  meta l4proto udp drop"] if kind == "udp-blocked" else []),
        "  ct state established,related accept",
        '  iifname { "wan", "hp1" } ct status dnat accept',
        '  iifname != { "wan", "hp1" } accept',
        " }",
    ]
    if independent:
        lines += _learning()
    return "\n".join(lines) + "\n}\n"


def _tables(timeout: int) -> list[str]:
    size = f"size 65535; flags dynamic,timeout; timeout {timeout}s;"
    endpoint = "ipv4_addr . inet_service"
    return [
        f" map eim {{ type inet_proto . {endpoint} : {endpoint}; {size} }}",
        f" map rev {{ type inet_proto . inet_service : {endpoint}; {size} }}",
        f" set perm {{ type inet_proto . inet_service . ipv4_addr; {size} }}",
    ]


def _learning() -> list[str]:
    """A chain behind the translation, which is known there."""
    lines = [" chain track {", "  type filter hook postrouting priority 110;"]
    for protocol, life in (("udp", ""), ("tcp", " timeout 2h")):
        match = f"  meta l4proto {protocol}"
        from_inside = "ct original ip saddr . ct original proto-src"
        from_outside = "ct reply ip saddr . ct reply proto-src"
        mapped_out = "ct reply ip daddr . ct reply proto-dst"
        mapped_in = "ct original ip daddr . ct original proto-dst"
        lines += [
            f"{match} ct status snat update @eim "
            f"{{ meta l4proto . {from_inside}{life} : {mapped_out} }}",
            f"{match} ct status snat update @rev "
            f"{{ meta l4proto . ct reply proto-dst{life} : {from_inside} }}",
            f"{match} ct status dnat update @eim "
            f"{{ meta l4proto . {from_outside}{life} : {mapped_in} }}",
            f"{match} ct status dnat update @rev "
            f"{{ meta l4proto . ct original proto-dst{life} : {from_outside} }}",
            f'{match} oifname {{ "wan", "hp0" }} update @perm '
            f"{{ meta l4proto . th sport . ip daddr{life} }}",
        ]
    return [*lines, " }"]


def forget(kind: str) -> str:
    """The program that empties what a box has learnt, and its port mappings."""
    if kind == "masquerade":
        return ""
    if kind == "ipv6-firewall":
        return "flush set ip6 natlab pinholes\n"
    learnt = "flush map ip natlab ports\n"
    if kind != "symmetric":
        learnt += "flush map ip natlab eim\nflush map ip natlab rev\nflush set ip natlab perm\n"
    return learnt


def map_port(protocol: str, port: int, inside: tuple[str, int]) -> str:
    """The program that has a box let everybody in at a port, as a gateway protocol asks for."""
    address, inside_port = inside
    if ":" in address:
        return f"add element ip6 natlab pinholes {{ {protocol} . {address} . {inside_port} }}\n"
    return f"add element ip natlab ports {{ {protocol} . {port} : {address} . {inside_port} }}\n"


def leave_from(protocol: str, external: str, port: int, inside: tuple[str, int]) -> str:
    """The program for what the inside socket sends; fails if it has another mapping already."""
    address, inside_port = inside
    return (
        f"add element ip natlab eim {{ {protocol} . {address} . {inside_port} "
        f": {external} . {port} }}\n"
    )


def unmap_port(protocol: str, port: int, inside: tuple[str, int]) -> str:
    """The program that ends it; the socket's own mapping dies when it is idle."""
    address, inside_port = inside
    if ":" in address:
        return f"delete element ip6 natlab pinholes {{ {protocol} . {address} . {inside_port} }}\n"
    return f"delete element ip natlab ports {{ {protocol} . {port} }}\n"
