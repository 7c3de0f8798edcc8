"""How auth limits, as Prometheus metrics."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infermesh.auth.v1 import limit_service_pb2 as pb

_PART = "auth"
_PREFIX = "LIMITER_MODE_"
_MODES = {
    number: name.removeprefix(_PREFIX).lower() for name, number in pb.LimiterMode.items() if number
}
_MAX_ALERTS = 1000


class LimiterMetrics(Collector):
    """Makes metrics of what auth said last.

    Attributes:
        status: What it said; None where it did not answer, and then there are no metrics.
    """

    status: pb.LimiterStatus | None = None

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        status = self.status
        if status is None:
            return
        mode = GaugeMetricFamily(
            "infermesh_limiter_mode",
            "1 for how auth limits: by Redis, by a share of its own, or by refusing.",
            labels=("part", "mode"),
        )
        for number, name in _MODES.items():
            mode.add_metric((_PART, name), status.mode == number)
        yield mode
        yield CounterMetricFamily(
            "infermesh_limiter_local_admitted",
            "Calls that auth let in by a share of its own, while Redis was away.",
            status.local_admitted_count,
        )
        yield CounterMetricFamily(
            "infermesh_limiter_unavailable_refused",
            "Calls that auth refused because Redis was away.",
            status.unavailable_refused_count,
        )
        refused = CounterMetricFamily(
            "infermesh_limiter_refused", "Calls that auth refused by a limit.", labels=("limit",)
        )
        for limit, count in sorted(status.refused_counts.items()):
            refused.add_metric((limit,), count)
        yield refused
        yield _alerts(status)


def _alerts(status: pb.LimiterStatus) -> Metric:
    alerts = GaugeMetricFamily(
        "infermesh_limit_alert",
        "The highest percentage with an alert that the use of the limit has passed.",
        labels=("tenant", "project", "key", "model", "limit"),
    )
    # The fullest first, in case there are too many.
    for each in sorted(status.alerts, key=lambda each: -each.percent)[:_MAX_ALERTS]:
        scope = each.scope
        labels = (scope.tenant, scope.project, scope.key_id, scope.model, each.limit)
        alerts.add_metric(labels, each.percent)
    return alerts
