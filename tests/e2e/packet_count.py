"""Counts the IPv4 packets that this network namespace sends, by protocol, address and port.

Run as a program; prints "ready", and when its standard input ends the counts as JSON.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
from collections import Counter

ETH_P_ALL = 3


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    counts: Counter[str] = Counter()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sniffer:
        say("ready")
        while True:
            readable, _, _ = select.select([sniffer, sys.stdin], [], [])
            if sniffer in readable:
                packet, address = sniffer.recvfrom(65535)
                if address[2] == socket.PACKET_OUTGOING and packet[0] >> 4 == 4:
                    kind = {6: "tcp", 17: "udp"}.get(packet[9])
                    header = (packet[0] & 15) * 4
                    if kind is not None:
                        (port,) = struct.unpack_from("!H", packet, header + 2)
                        counts[f"{kind} {socket.inet_ntoa(packet[16:20])} {port}"] += 1
            elif not sys.stdin.read(1):
                say(json.dumps(counts))
                return


if __name__ == "__main__":
    main()
