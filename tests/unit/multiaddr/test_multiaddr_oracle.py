"""Our codec and the `multiaddr` package of PyPI agree."""

from __future__ import annotations

import multiaddr as oracle  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dep2p_daemon.errors import MultiaddrError
from dep2p_daemon.identity.keys import PrivateKey
from dep2p_daemon.multiaddr import Multiaddr

PEER = PrivateKey.from_seed(bytes(32)).peer_id
HASHED = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"

hosts = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: f"/ip4/{ip}"),
    st.ip_addresses(v=6).map(lambda ip: f"/ip6/{ip}"),
    st.ip_addresses(v=6).map(lambda ip: f"/ip6zone/eth0/ip6/{ip}"),
    st.sampled_from(["dns", "dns4", "dns6", "dnsaddr"]).flatmap(
        lambda name: st.from_regex(r"[a-z]{1,9}\.example", fullmatch=True).map(
            lambda host: f"/{name}/{host}"
        )
    ),
)
ports = st.integers(0, 65535)
transports = st.one_of(
    ports.map(lambda port: f"/udp/{port}/quic-v1"),
    ports.map(lambda port: f"/udp/{port}/quic"),
    ports.map(lambda port: f"/udp/{port}/webrtc-direct"),
    ports.map(
        lambda port: (
            f"/udp/{port}/quic-v1/webtransport"
            "/certhash/uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ"
        )
    ),
    ports.map(lambda port: f"/tcp/{port}"),
    ports.map(lambda port: f"/tcp/{port}/tls/sni/example.com/ws"),
    ports.map(lambda port: f"/tcp/{port}/wss"),
    ports.map(lambda port: f"/tcp/{port}/http"),
    ports.map(lambda port: f"/tcp/{port}/https"),
    ports.map(lambda port: f"/tcp/{port}/noise"),
    st.just(""),
)
ends = st.sampled_from(
    [
        "",
        f"/p2p/{PEER}",
        f"/p2p/{HASHED}",
        f"/p2p/{PEER}/p2p-circuit",
        f"/p2p/{PEER}/p2p-circuit/p2p/{HASHED}",
        f"/p2p/{PEER}/p2p-circuit/webrtc/p2p/{HASHED}",
    ]
)


@given(hosts, transports, ends)
def test_same_bytes_and_same_text(host: str, transport: str, end: str) -> None:
    text = host + transport + end
    ours, theirs = Multiaddr.parse(text), oracle.Multiaddr(text)
    assert bytes(ours) == theirs.to_bytes()
    assert Multiaddr.from_bytes(theirs.to_bytes()) == ours
    assert str(oracle.Multiaddr(bytes(ours))) == str(theirs)


@pytest.mark.parametrize(
    "text",
    [
        "/ip4",
        "/ip4/1.2.3",
        "/ip4/1.2.3.256",
        "/ip6/::g",
        "/ip4/1.2.3.4/tcp",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/x",
        "/nonsense/1",
        "/p2p/Qm0",
        "/ip4/1.2.3.4/udp/1/quic-v1/webtransport/certhash/b",
    ],
)
def test_both_refuse(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of its errors
        oracle.Multiaddr(text)
    with pytest.raises(MultiaddrError):
        Multiaddr.parse(text)
