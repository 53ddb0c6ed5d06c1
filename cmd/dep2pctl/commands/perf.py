"""`perf`: throughput with libp2p's /perf/1.0.0."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

import dep2p
from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.output import byte_count, write_fields, write_json
from dep2pctl.param_types import DURATION, SIZE
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from dep2p.v1.peer_service_pb2 import MeasureThroughputResponse


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl perf 12D3KooW...
    dep2pctl perf --upload 1GB --download 0 12D3KooW...
    dep2pctl -o json perf 12D3KooW... | jq 'select(.final).download_bytes_per_second'
    """,
)
@click.argument("peer")
@click.option("--upload", type=SIZE, default="100MB", help="Bytes to send first. [100MB]")
@click.option("--download", type=SIZE, default="100MB", help="Bytes to receive then. [100MB]")
@click.option("--timeout", type=DURATION, help="Give up after this time. [none]")
@pass_session
def perf(
    session: Session, peer: str, upload: float, download: float, timeout: float | None
) -> None:
    """Measure the throughput to a peer.

    PEER is a peer id or an address; it is dialled if needed. It must serve it: `perf.enabled =
    true` in its configuration, or DEP2P_PERF__ENABLED=true.
    """

    async def work(node: dep2p.Node) -> None:
        reports = node.measure_throughput(
            peer, upload_bytes=int(upload), download_bytes=int(download)
        )
        done = 0
        try:
            async with asyncio.timeout(timeout):
                async for report in reports:
                    done = report.uploaded_bytes + report.downloaded_bytes
                    if session.json:
                        write_json(report_json(report), one_line=True)
                    elif report.final:
                        _progress("")
                        write_fields(report_fields(report))
                    else:
                        _progress(progress_text(report, upload, download))
        except TimeoutError:
            raise dep2p.DeadlineError(
                f"{byte_count(done)} in {timeout:g} s",
                reason="DEADLINE_EXCEEDED",
                remedy="give it more --timeout, or fewer bytes",
            ) from None

    session.run(work)


def report_json(report: MeasureThroughputResponse) -> dict[str, Any]:
    """A report with its rates; null until they are known."""
    return as_json(report) | {
        "upload_bytes_per_second": _rate(report.uploaded_bytes, report.upload_seconds),
        "download_bytes_per_second": _rate(report.downloaded_bytes, report.download_seconds),
    }


def report_fields(report: MeasureThroughputResponse) -> list[tuple[str, object]]:
    """The last report as labels and values."""
    from dep2pctl.views import path_name

    return [
        ("upload", _text(report.uploaded_bytes, report.upload_seconds)),
        ("download", _text(report.downloaded_bytes, report.download_seconds)),
        ("path", path_name(report.path)),
    ]


def progress_text(report: MeasureThroughputResponse, upload: float, download: float) -> str:
    """How far it is."""
    done = report.uploaded_bytes + report.downloaded_bytes
    total = max(1.0, upload + download)
    rate = byte_count(done / report.elapsed_seconds) if report.elapsed_seconds else "-"
    return (
        f"{done / total:4.0%}  up {byte_count(report.uploaded_bytes)}, "
        f"down {byte_count(report.downloaded_bytes)}, {rate}/s"
    )


def _progress(text: str) -> None:
    """Show progress on standard error: in place on a terminal, as lines elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
    elif text:
        click.echo(text, err=True)


def _rate(size: int, seconds: float) -> float | None:
    return size / seconds if seconds and size else None


def _text(size: int, seconds: float) -> str:
    rate = _rate(size, seconds)
    if rate is None:
        return "-"
    return (
        f"{byte_count(size)} in {seconds:.2f} s: {byte_count(rate)}/s ({rate * 8 / 1e6:.1f} Mbit/s)"
    )
