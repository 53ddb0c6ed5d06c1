"""From prometheus-client's metrics to the API's; names are those of the text format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dep2p.v1 import node_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

_TYPES: Final = {
    "counter": node_service_pb2.METRIC_TYPE_COUNTER,
    "gauge": node_service_pb2.METRIC_TYPE_GAUGE,
}


def metrics_message(families: Iterable[Metric], prefix: str) -> node_service_pb2.GetMetricsResponse:
    """Return the families whose names begin with `prefix`, sorted by name."""
    messages = [
        node_service_pb2.MetricFamily(
            name=f"{family.name}_total" if family.type == "counter" else family.name,
            type=_TYPES[family.type],
            help=family.documentation,
            samples=[
                node_service_pb2.MetricSample(labels=sample.labels, value=sample.value)
                for sample in family.samples
            ],
        )
        for family in families
    ]
    return node_service_pb2.GetMetricsResponse(
        families=sorted(
            (one for one in messages if one.name.startswith(prefix)), key=lambda one: one.name
        )
    )
