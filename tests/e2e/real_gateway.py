"""A real home router's daemon, miniupnpd, in a box of the laboratory: PCP, NAT-PMP and UPnP-IGD.

It writes nftables rules of its own beside the laboratory's, as it does on a router.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.requires import require_miniupnpd

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator

    from tests.natlab.lab import Lab

TABLES: Final = """\
table inet miniupnpd {
 chain miniupnpd { }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
 chain forward { type filter hook forward priority -1; jump miniupnpd; }
 chain prerouting { type nat hook prerouting priority dstnat - 2; jump prerouting_miniupnpd; }
}
"""
"""Its postrouting chain is left out: there it would masquerade as the box's own address, which no
packet may have in the laboratory."""

DROPS_PCP: Final = """\
table inet miniupnpd {
 chain input { type filter hook input priority -1; udp dport 5351 drop; }
}
"""

CONFIGURATION: Final = """\
ext_ifname=wan
{external}
listening_ip=lan
http_port=0
ipv6_disable=yes
enable_upnp={upnp}
enable_natpmp={pcp}
min_lifetime=4
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
secure_mode=yes
system_uptime=no
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class RealGateway:
    """miniupnpd in the NAT box of a host. Made by `real_gateway`, which ends it."""

    def __init__(self, lab: Lab, host: str, directory: Path) -> None:
        self._lab = lab
        self._box = f"nat-{host[0]}"
        self._directory = directory
        self._process: subprocess.Popen[Any] | None = None
        self.external = lab.public_address(host)

    async def start(
        self,
        *,
        pcp: bool = True,
        drops_pcp: bool = False,
        upnp: bool = True,
        private: str | None = None,
    ) -> None:
        """Run it, and wait until it listens.

        `pcp` is NAT-PMP too: there is one switch for both. `drops_pcp`: without a word, where else
        the closed port is told. `private` is an outer address that is no public one: it says no to
        everything then.
        """
        self._nft(TABLES + DROPS_PCP * drops_pcp)
        if private is not None:
            added = self._lab.run(self._box, ["ip", "address", "add", private, "dev", "wan"])
            assert added.returncode == 0
        configuration = self._directory / "miniupnpd.conf"
        words = {True: "yes", False: "no"}
        configuration.write_text(
            CONFIGURATION.format(
                # Of a private address it wants to see that it is the interface's own.
                external=f"ext_ip={self.external}" if private is None else "",
                pcp=words[pcp],
                upnp=words[upnp],
            )
        )
        program = [require_miniupnpd(), "-d", "-f", str(configuration)]
        # To a file: it says a lot, and would wait for whoever does not read a pipe.
        log = self._directory / "log"
        with log.open("w") as output:
            self._process = self._lab.popen(
                self._box,
                [*program, "-P", str(self._directory / "pid")],
                stdout=output,
                stderr=output,
            )
        last = "Listening for NAT-PMP/PCP traffic" if pcp else "HTTP listening on port"
        while last not in log.read_text():
            assert self._process.poll() is None, log.read_text()
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End it as a power cut does: its mappings are gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self._nft("delete table inet miniupnpd\n")

    def forwarded(self) -> str:
        """Its rules, as nft shows them."""
        command = ["nft", "list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"]
        done = self._lab.run(self._box, command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def _nft(self, program: str) -> None:
        done = self._lab.run(self._box, ["nft", "-f", "-"], input=program, text=True)
        assert done.returncode == 0


@contextlib.asynccontextmanager
async def real_gateway(lab: Lab, host: str = "alice") -> AsyncIterator[RealGateway]:
    """A gateway in the box of `host`, not started yet; skips where there is no miniupnpd."""
    require_miniupnpd()
    with tempfile.TemporaryDirectory(prefix="miniupnpd-") as directory:
        gateway = RealGateway(lab, host, Path(directory))
        try:
            yield gateway
        finally:
            gateway.stop()
