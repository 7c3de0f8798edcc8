"""How an answer came about, for callers that asked with `x-debug-mode: true`."""

import time
from collections.abc import Callable
from typing import Any

import orjson

from services.inference.accounting import Account
from services.inference.engines.dialect import Tokens
from services.kit.caller import Caller

Price = tuple[float | None, float | None]
"""US dollars for a million tokens of prompt and of answer; None is unknown."""

_PRICED_TOKENS = 1_000_000


class GatewayMetadata:
    """Makes the object that the mesh adds to an answer.

    Args:
        node_id: The node.
        framework: Its engine's dialect.
        price_of: What a model costs on this node.
    """

    def __init__(self, node_id: str, framework: str, price_of: Callable[[str], Price]) -> None:
        self._node_id = node_id
        self._framework = framework
        self._price_of = price_of

    def of(self, caller: Caller, account: Account, model: str) -> dict[str, Any]:
        """Returns the fields of `infermesh.inference.v1.GatewayMetadata`; unknown ones are None.

        Args:
            caller: Who asked, with routing's decision.
            account: What the answer took; it is complete.
            model: The model that answered.
        """
        tokens = account.tokens
        policy, score = _decided(caller.decision, self._node_id, model)
        return {
            "node": self._node_id,
            "deployment": None,
            "framework": self._framework,
            "model": model,
            "response_time_ms": _milliseconds(time.monotonic_ns() - account.began_ns),
            "queue_ms": _milliseconds(account.waited_ns),
            "cache_hit": _cache_hit(tokens),
            "score": score,
            "policy": policy,
            "cost_estimate_usd": cost_usd(self._price_of(model), tokens),
        }


def cost_usd(price: Price, tokens: Tokens) -> float | None:
    """Returns what an answer cost, or None where a price or a count that matters is unknown."""
    cost = 0.0
    for usd, count in zip(price, (tokens.prompt, tokens.completion), strict=True):
        if usd is None or count is None:
            return None
        cost += usd * count / _PRICED_TOKENS
    return round(cost, 12)


def _cache_hit(tokens: Tokens) -> float | None:
    if tokens.cached is None or not tokens.prompt:
        return None
    return round(min(tokens.cached / tokens.prompt, 1.0), 4)


def _milliseconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 1)


def _decided(decision: str, node_id: str, model: str) -> tuple[str | None, float | None]:
    """Returns routing's policy and its score of the node with the model, as far as it says them."""
    try:
        fields = orjson.loads(decision)
    except orjson.JSONDecodeError:
        return None, None
    if not isinstance(fields, dict):
        return None, None
    policy = fields.get("policy")
    candidates = fields.get("candidates")
    # Callers who may not see all nodes see the score of the one that was chosen.
    score = fields.get("score") if fields.get("node") == node_id else None
    for candidate in candidates if isinstance(candidates, list) else ():
        if (
            isinstance(candidate, dict)
            and candidate.get("node") == node_id
            and candidate.get("model") == model
        ):
            score = candidate.get("score")
    return (
        policy if isinstance(policy, str) else None,
        score if isinstance(score, int | float) else None,
    )
