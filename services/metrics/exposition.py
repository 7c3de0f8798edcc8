"""The Prometheus metrics of inference, counted from what is newly in the ledger.

The names of the histograms and their buckets are those of OpenTelemetry's conventions for
generative AI (`gen_ai.server.request.duration`, `gen_ai.server.time_to_first_token`).
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from infermesh.auth.v1 import limit_service_pb2
from infermesh.metrics.v1 import usage_service_pb2
from services.metrics.limiter_metrics import LimiterMetrics
from services.metrics.usage import Usage

# Prometheus keeps each `…_created` as a series of its own. The library has one switch for all.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

MAX_LABEL_SETS = 1000
"""Of one metric; what comes beyond is counted under `other`."""

_OTHER = "other"
_Labels = tuple[str, ...]

_DURATION_BUCKETS_S = tuple(0.01 * 2**power for power in range(14))
_FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)

_OPERATIONS: dict[int, str] = {
    number: name.removeprefix("OPERATION_").lower()
    for name, number in usage_service_pb2.Operation.items()
}
_OUTCOMES: dict[int, str] = {
    number: name.removeprefix("OUTCOME_").lower()
    for name, number in usage_service_pb2.Outcome.items()
}


class Exposition:
    """Counts events and prints the counts in Prometheus' text format."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "infermesh_requests",
            "Recorded requests; one that was tried on two nodes may count for each.",
            ("model", "node", "operation", "outcome"),
            registry=self._registry,
        )
        self._tokens = Counter(
            "infermesh_tokens",
            "Tokens of recorded requests as far as they are known.",
            ("model", "type"),
            registry=self._registry,
        )
        labels = ("gen_ai_request_model", "gen_ai_operation_name")
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the node's receipt of the request to its end.",
            labels,
            buckets=_DURATION_BUCKETS_S,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the node's receipt of the request to the first content.",
            labels,
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._part_up = Gauge(
            "infermesh_part_up",
            "Whether the part of the mesh answers its health check.",
            ("part",),
            registry=self._registry,
        )
        self._cost = Counter(
            "infermesh_cost_usd",
            "US dollars of recorded requests as far as they are known; the ledger is exact.",
            ("model",),
            registry=self._registry,
        )
        self._unpriced = Counter(
            "infermesh_unpriced_requests",
            "Recorded requests whose cost is not known.",
            ("model",),
            registry=self._registry,
        )
        self._limiter = LimiterMetrics()
        self._registry.register(self._limiter)
        self._request_sets: set[_Labels] = set()
        self._model_sets: set[_Labels] = set()
        # To look a series up takes longer than to count in it.
        self._series = functools.lru_cache(8 * MAX_LABEL_SETS)(_series)

    def count(self, events: Iterable[Usage]) -> None:
        """Counts events that are newly in the ledger."""
        found = self._series
        sums: defaultdict[Counter, float] = defaultdict(float)
        for event in events:
            operation, outcome = _OPERATIONS[event.operation], _OUTCOMES[event.outcome]
            request_labels = (event.model, event.node_id, operation, outcome)
            if not _admit(self._request_sets, request_labels):
                request_labels = (_OTHER, _OTHER, operation, outcome)
            sums[found(self._requests, *request_labels)] += 1

            is_known = _admit(self._model_sets, (event.model, operation))
            model = event.model if is_known else _OTHER
            for kind, count in (
                ("prompt", event.prompt_tokens),
                ("completion", event.completion_tokens),
                ("cached", event.cached_tokens),
            ):
                if count is not None:
                    sums[found(self._tokens, model, kind)] += count
            if event.cost is None:
                sums[found(self._unpriced, model)] += 1
            else:
                sums[found(self._cost, model)] += float(event.cost)
            if event.duration_us is not None:
                found(self._duration, model, operation).observe(event.duration_us / 1e6)
            if event.time_to_first_token_us is not None:
                seconds = event.time_to_first_token_us / 1e6
                found(self._first_token, model, operation).observe(seconds)
        for series, amount in sums.items():
            series.inc(amount)

    def text(
        self,
        parts: Mapping[str, bool],
        limiting: limit_service_pb2.LimiterStatus | None = None,
    ) -> bytes:
        """Prints the counts, which parts are up, and how auth limits; None where it is unknown."""
        self._limiter.status = limiting
        for part, is_up in parts.items():
            self._part_up.labels(part).set(is_up)
        return generate_latest(self._registry)


def _series(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)


def _admit(known: set[_Labels], labels: _Labels) -> bool:
    if labels in known:
        return True
    if len(known) >= MAX_LABEL_SETS:
        return False
    known.add(labels)
    return True
