"""What the node tells the registry: itself, what it serves, and how busy it is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import resources_pb2
from services.inference.engines.dialect import EngineModel, Load
from services.inference.state import EngineState

_MAX_COUNT = 1_000_000
_MAX_ADAPTERS = 256
_MAX_MODELS = 256


@dataclass(frozen=True)
class NodeFacts:
    """What the operator says of the node.

    Attributes:
        node_id: The node's name.
        address: Where Envoy reaches it.
        dialect: The engine's dialect.
        labels: For policies to choose by.
        tier: Nodes of a lower tier are preferred.
        prices: US dollars for a million tokens of the prompt and of the answer, by model.
    """

    node_id: str
    address: str
    dialect: str
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: int = 0
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def join_of(facts: NodeFacts, state: EngineState) -> pb.JoinNode:
    """Returns how the node presents itself."""
    return pb.JoinNode(
        node_id=facts.node_id,
        address=facts.address,
        engine=facts.dialect,
        engine_version=state.version[:200],
        models=served_models(facts, state),
        labels=facts.labels,
        tier=facts.tier,
    )


def update_of(facts: NodeFacts, state: EngineState) -> pb.NodeUpdate:
    """Returns what the engine serves now."""
    return pb.NodeUpdate(engine_version=state.version[:200], models=served_models(facts, state))


def served_models(facts: NodeFacts, state: EngineState) -> list[resources_pb2.ServedModel]:
    """Returns the models as the registry knows them, the first 256 by the engine's order."""
    models = list(state.models.values())[:_MAX_MODELS]
    return [served_model(model, facts.prices.get(model.name)) for model in models]


def served_model(
    model: EngineModel, price: tuple[float, float] | None = None
) -> resources_pb2.ServedModel:
    """Returns a model as the registry knows it.

    Args:
        model: The model as the engine describes it.
        price: US dollars for a million tokens of the prompt and of the answer; None is unknown.
    """
    capabilities = []
    if model.can_chat:
        capabilities.append(resources_pb2.CAPABILITY_CHAT)
        if model.can_call_tools:
            capabilities.append(resources_pb2.CAPABILITY_TOOLS)
        if model.can_structure:
            capabilities.append(resources_pb2.CAPABILITY_STRUCTURED_OUTPUT)
        if model.can_see:
            capabilities.append(resources_pb2.CAPABILITY_VISION)
    if model.can_embed:
        capabilities.append(resources_pb2.CAPABILITY_EMBEDDINGS)
    if model.can_rank:
        capabilities.append(resources_pb2.CAPABILITY_RERANK)
    served = resources_pb2.ServedModel(
        name=model.name,
        capabilities=capabilities,
        context_length=model.context_length,
        base_model=model.base_model,
    )
    if price is not None:
        served.input_price, served.output_price = price
    return served


def node_load(load: Load, state: EngineState) -> resources_pb2.NodeLoad:
    """Returns the load; the proxy's own count stands in where the engine does not say.

    What no engine can mean, such as a negative count, is unknown: a node that reports it would be
    taken for one that lies.
    """
    answers = state.answers
    running = _count(load.running)
    report = resources_pb2.NodeLoad(
        running=state.in_flight if running is None else running,
        tokens_per_second=answers.tokens_per_second(),
        loaded_adapters=load.loaded_adapters[:_MAX_ADAPTERS],
        engine_generation=state.engine_generation,
    )
    queued = _count(load.queued)
    if queued is not None or state.waiting:
        report.queued = (queued or 0) + state.waiting
    if load.kv_use is not None and math.isfinite(load.kv_use) and load.kv_use >= 0:
        report.kv_use = min(load.kv_use, 1.0)
    if (slots := _count(load.slots if state.slots is None else state.slots)) is not None:
        report.slots = slots
    if load.kv_capacity_tokens is not None and load.kv_capacity_tokens >= 0:
        report.kv_capacity_tokens = load.kv_capacity_tokens
    if answers.time_to_first_token_s is not None:
        report.time_to_first_token = answers.time_to_first_token_s
    for name in ("expected_cached_tokens", "cached_tokens", "prompt_tokens"):
        count = getattr(answers, name)
        if count is not None:
            setattr(report, name, count)
    return report


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= _MAX_COUNT else None
