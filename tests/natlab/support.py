"""What this kernel supports, found by trying in a throw-away namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.natlab import namespaces, rules
from tests.natlab.kinds import NATS


@dataclass(frozen=True)
class Finding:
    """One thing that a laboratory needs."""

    what: str
    works: bool
    why_not: str = ""


def kernel_support() -> list[Finding]:
    """Try each thing."""
    namespace = f"natlab-check{os.getpid()}"
    attempts = {
        "veth": "ip link add v0 type veth peer name v1",
        "bridge": "ip link add br0 type bridge",
        "IPv6": "ip addr add 2a0e:aaaa::1/128 dev lo nodad",
        "TUN, for delay, loss and rate": "ip tuntap add dev t0 mode tun",
    }
    programs = {
        f"nftables rules of {kind}": rules.nat(kind, "45.8.2.101", 30, preserve_ports=False)
        for kind in NATS
    } | {"nftables rules of ipv6-firewall": rules.IPV6_FIREWALL}
    namespaces.run(["ip", "netns", "add", namespace])
    try:
        namespaces.run(["ip", "link", "set", "lo", "up"], namespace=namespace)
        found = [_try(what, command.split(), namespace) for what, command in attempts.items()]
        found += [
            _try(what, ["nft", "-f", "-"], namespace, stdin=f"flush ruleset\n{program}")
            for what, program in programs.items()
        ]
        with namespaces.inside(namespace):
            setting = os.path.exists("/proc/sys/net/netfilter/nf_conntrack_udp_timeout")
        found.append(Finding("conntrack UDP timeout, for --nat-timeout", setting))
    finally:
        namespaces.attempt(["ip", "netns", "del", namespace])
    return found


def _try(what: str, argv: list[str], namespace: str, *, stdin: str | None = None) -> Finding:
    done = namespaces.attempt(argv, stdin=stdin, namespace=namespace)
    first, _, _ = done.stdout.strip().partition("\n")
    return Finding(what, done.returncode == 0, first)
