"""`metrics`: the daemon's counters and gauges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from dep2pctl.app import ApiCommand
from dep2pctl.as_json import as_json
from dep2pctl.session import Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import dep2p
    from dep2p.v1.node_service_pb2 import MetricFamily, MetricSample

_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
_ESCAPES_IN_QUOTES: Final = {**_ESCAPES, ord('"'): r"\""}


@click.command(
    cls=ApiCommand,
    examples="""
    dep2pctl metrics
    dep2pctl metrics dep2p_hole_punches
    dep2pctl -o json metrics | jq '.families[] | select(.type == "counter") | .name'
    """,
)
@click.argument("prefix", default="")
@pass_session
def metrics(session: Session, prefix: str) -> None:
    """Print counters and gauges.

    In Prometheus' text format, as at `metrics.listen`. PREFIX is what the names begin with.
    """

    async def work(node: dep2p.Node) -> None:
        families = await node.get_metrics(prefix)
        session.show(
            {"families": [as_json(family) for family in families]},
            lambda: click.echo("".join(exposition(families)), nl=False),
        )

    session.run(work)


def exposition(families: Iterable[MetricFamily]) -> Iterator[str]:
    """Yield the lines of Prometheus' text format, version 0.0.4.

    https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
    """
    from dep2p.v1 import node_service_pb2 as pb

    types = {pb.METRIC_TYPE_COUNTER: "counter", pb.METRIC_TYPE_GAUGE: "gauge"}
    for family in families:
        yield f"# HELP {family.name} {family.help.translate(_ESCAPES)}\n"
        yield f"# TYPE {family.name} {types.get(family.type, 'untyped')}\n"
        for sample in family.samples:
            yield f"{family.name}{_labels(sample)} {_number(sample.value)}\n"


def _labels(sample: MetricSample) -> str:
    pairs = [
        f'{name}="{text.translate(_ESCAPES_IN_QUOTES)}"'
        for name, text in sorted(sample.labels.items())
    ]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
