"""One node as routing knows it."""

from collections.abc import Mapping

from infermesh.registry.v1 import resources_pb2
from services.routing.reliability import Reliability
from services.routing.sent import SentCounter

STALE_S = 3.0
"""After how long without news a load report says nothing any more."""

_TTFT_HALF_LIFE_S = 15.0

_BYTES_PER_TOKEN = 4
"""Of text, roughly, whatever the tokenizer."""


class Served:
    """A model as one node serves it.

    Attributes:
        capabilities: Bits `1 << Capability`.
        is_adapter: Whether it is a LoRA adapter over another model.
        price: US dollars for a million tokens, three of the prompt for one of the answer; None
            where the node does not say both.
    """

    __slots__ = ("capabilities", "is_adapter", "price")

    def __init__(self, model: resources_pb2.ServedModel) -> None:
        self.capabilities = sum({1 << each for each in model.capabilities})
        self.is_adapter = bool(model.base_model)
        priced = model.HasField("input_price") and model.HasField("output_price")
        self.price = (3 * model.input_price + model.output_price) / 4 if priced else None


class NodeView:
    """One node, its latest report, and what was sent to it since.

    Attributes:
        ready: Whether its state is READY.
        served: The models that it serves, by name.
        slots: Requests that its engine runs at the same time; None when it does not say.
        kv_use: The share of its key-value cache in use; None when it does not say.
        adapters: LoRA adapters that are loaded; empty too when it does not say.
        kv_bytes: How much text its key-value cache holds, roughly; 0 when it does not say.
        generation: Counts its engine's starts.
        reliability: How far the prefix index is right about it.
        sent: Calls sent to it that its report does not show yet.
        number: Its number in the prefix index.
        bit: `1 << number`.
        digest: A number that is its own, for choices by hash.
        drawn: Calls that it got lately; `balance.py` says in what unit.
        last_picked: The number of the decision that chose it last.
        last_cold: The number of the decision that last sent it a prompt that it had nothing of.
    """

    __slots__ = (
        "_load",
        "_load_at",
        "_report_time",
        "_shape",
        "_ttft",
        "_ttft_at",
        "adapters",
        "address",
        "bit",
        "digest",
        "drawn",
        "engine",
        "generation",
        "kv_bytes",
        "kv_use",
        "labels",
        "last_cold",
        "last_picked",
        "models",
        "node_id",
        "number",
        "ready",
        "reliability",
        "sent",
        "served",
        "slots",
        "state",
        "tier",
    )

    def __init__(self, node_id: str, number: int, digest: int) -> None:
        self.node_id = node_id
        self.number = number
        self.bit = 1 << number
        self.digest = digest
        self.address = ""
        self.state: resources_pb2.NodeState.ValueType = resources_pb2.NODE_STATE_OFFLINE
        self.ready = False
        self.models: tuple[str, ...] = ()
        self.served: dict[str, Served] = {}
        self.engine = ""
        self.labels: Mapping[str, str] = {}
        self.tier = 0
        self.slots: int | None = None
        self.kv_use: float | None = None
        self.kv_bytes = 0
        self.adapters: frozenset[str] = frozenset()
        self.generation = 0
        self.reliability = Reliability()
        self.sent = SentCounter()
        self.drawn = 0.0
        self.last_picked = 0
        self.last_cold = 0
        self._load: int | None = None
        self._load_at = 0.0
        self._report_time = (0, 0)
        self._shape: object = None
        self._ttft: float | None = None
        self._ttft_at = 0.0

    def load(self, now: float) -> int | None:
        """Returns the reported running and queued requests; None when they are not known."""
        return self._load if now - self._load_at < STALE_S else None

    def time_to_first_token(self, now: float) -> tuple[float, float] | None:
        """Returns the reported average in seconds, and how much it still says, 1 to 0.

        A report that stays the same is that of a node that answers nothing: it says less with
        every 15 s, or a node that was slow once would never be tried again.
        """
        if self._ttft is None or now - self._load_at >= STALE_S:
            return None
        return self._ttft, 0.5 ** ((now - self._ttft_at) / _TTFT_HALF_LIFE_S)

    def update(self, node: resources_pb2.Node, now: float) -> bool:
        """Takes in what the registry says; returns whether more than the load changed."""
        report_time = (node.report_time.seconds, node.report_time.nanos)
        load = node.load
        if report_time != self._report_time:
            self._report_time = report_time
            self._load_at = now
            self.sent.settle(now)
        self._load = _reported_load(load)
        self.slots = load.slots if load.HasField("slots") else None
        self.kv_use = load.kv_use if load.HasField("kv_use") else None
        self.kv_bytes = load.kv_capacity_tokens * _BYTES_PER_TOKEN
        ttft = load.time_to_first_token if load.HasField("time_to_first_token") else None
        if ttft != self._ttft:
            self._ttft, self._ttft_at = ttft, now
        if load.loaded_adapters or self.adapters:
            self.adapters = frozenset(load.loaded_adapters)
        if load.HasField("expected_cached_tokens"):
            self.reliability.take(load.expected_cached_tokens, load.cached_tokens)
        return self._reshape(node)

    def _reshape(self, node: resources_pb2.Node) -> bool:
        labels = dict(node.labels)
        served = [model.SerializeToString() for model in node.models]
        shape = (node.address, node.state, node.engine, node.tier, labels, served)
        if shape == self._shape:
            return False
        self._shape = shape
        self.address, self.state, self.engine = node.address, node.state, node.engine
        self.tier, self.labels = node.tier, labels
        self.models = tuple(model.name for model in node.models)
        self.served = {model.name: Served(model) for model in node.models}
        self.ready = node.state == resources_pb2.NODE_STATE_READY
        return True


def _reported_load(load: resources_pb2.NodeLoad) -> int | None:
    # One of the two alone is a lower bound, and better than nothing.
    if not load.HasField("running") and not load.HasField("queued"):
        return None
    return load.running + load.queued
