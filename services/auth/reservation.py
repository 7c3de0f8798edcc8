"""How much a call is reserved before it runs: tokens by its form, dollars by the prices.

    tokens = min(bound, ⌈bytes of the prompt / bytes per token⌉ + n × the most to make)

Everything here is a guess that the ledger puts right when the call has ended; what is not known is
guessed high.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from infermesh.metrics.v1 import price_service_pb2

# Filled by envoy/fields.lua and front.lua: numbers.
_REST_NAMESPACE = "infermesh.request"
_PROMPT_BYTES = "prompt_bytes"
_REST_MAX = ("max_completion_tokens", "max_tokens")
_REST_COUNT = ("n", "best_of")
_REST_PROMPTS = "prompts"

# Filled by `grpc_field_extraction`: a list with one text for each field path.
_GRPC_NAMESPACE = "envoy.filters.http.grpc_field_extraction"
_GRPC_MAX: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
_GRPC_MAX += tuple(f"chat.{name}" for name in _GRPC_MAX)
_GRPC_COUNT = ("n", "chat.n")

_MAX_ANSWERS = 128
_MAX_USD_NANO = 2**53 - 1
_MICRO = 1_000_000
_MICRO_PER_NANO = 1_000

PROMPT_ONLY = frozenset(
    {
        "/infermesh.embeddings.v1.EmbeddingsService/CreateEmbeddings",
        "/infermesh.embeddings.v1.EmbeddingsService/Embed",
        "/infermesh.embeddings.v1.OllamaEmbeddingsService/EmbedPrompt",
        "/infermesh.embeddings.v1.OllamaEmbeddingsService/EmbedTexts",
        "/infermesh.inference.v1.AnthropicService/CountMessageTokens",
        "/infermesh.inference.v1.InferenceService/CountTokens",
        "/infermesh.inference.v1.InferenceService/Detokenize",
        "/infermesh.inference.v1.InferenceService/Embed",
        "/infermesh.inference.v1.InferenceService/Rerank",
        "/infermesh.inference.v1.InferenceService/Tokenize",
        "/infermesh.inference.v1.OpenAIService/CreateRerank",
        "/infermesh.inference.v1.OpenAIService/Detokenize",
        "/infermesh.inference.v1.OpenAIService/Tokenize",
    }
)
"""The RPCs that make no tokens."""


class Reservation(NamedTuple):
    """What a call is reserved.

    Attributes:
        prompt: Tokens of the prompt.
        made: Tokens that may be made.
    """

    prompt: int
    made: int


class Estimator:
    """Guesses what calls take.

    Args:
        bytes_per_token: How many bytes of a prompt make a token.
        default_max_tokens: How many tokens an answer has where the call does not say.
        bound: The most tokens that any call is reserved.
    """

    def __init__(self, bytes_per_token: int, default_max_tokens: int, bound: int) -> None:
        self._bytes_per_token = bytes_per_token
        self._default_max = default_max_tokens
        self._bound = bound

    def estimate(self, path: str, metadata: Mapping[str, Any], *, is_grpc: bool) -> Reservation:
        """Returns what to reserve for a call.

        Args:
            path: The RPC's.
            metadata: What Envoy's filters found, by namespace.
            is_grpc: Whether the caller speaks gRPC.
        """
        said = metadata.get(_REST_NAMESPACE)
        size = None if said is None else said.fields.get(_PROMPT_BYTES)
        prompt_bytes = 0 if size is None else size.number_value
        if prompt_bytes <= 0 or path in PROMPT_ONLY:
            return self.reserve(path, prompt_bytes, 0, 0)
        if is_grpc:
            found = metadata.get(_GRPC_NAMESPACE)
            most, count = _texts(found, _GRPC_MAX), _texts(found, _GRPC_COUNT)
        else:
            most, count = _number(said, *_REST_MAX), _number(said, *_REST_COUNT)
        answers = min(count, _MAX_ANSWERS) or 1
        if not is_grpc:
            answers *= min(_number(said, _REST_PROMPTS), self._bound) or 1
        return self.reserve(path, prompt_bytes, most, answers)

    def reserve(
        self, path: str, prompt_bytes: float, max_tokens: int, answer_count: int
    ) -> Reservation:
        """Returns what to reserve for a call.

        Args:
            path: The RPC's.
            prompt_bytes: How long its body is; 0 or less where nobody can say.
            max_tokens: The most tokens of an answer; 0 where the call does not say.
            answer_count: How many answers it asks for; 0 is 1.
        """
        if prompt_bytes <= 0:
            return Reservation(self._bound, 0)
        prompt = min(self._bound, -int(-prompt_bytes // self._bytes_per_token))
        if path in PROMPT_ONLY:
            return Reservation(prompt, 0)
        made = (answer_count or 1) * min(max_tokens or self._default_max, self._bound)
        return Reservation(prompt, min(made, self._bound - prompt))


def _number(said: Any, *names: str) -> int:
    """Returns the largest of these fields that is a number above 0; 0 where none is."""
    largest = 0.0
    for name in names:
        field = said.fields.get(name)
        # Of what is no number this is 0.
        if field is not None and field.number_value > largest:
            largest = field.number_value
    return int(min(largest, 2.0**53))


def _texts(found: Any, names: Iterable[str]) -> int:
    """Returns the largest of these fields that is a number above 0; 0 where none is."""
    largest = 0.0
    for name in names if found is not None else ():
        field = found.fields.get(name)
        if field is not None and field.list_value.values:
            value = field.list_value.values[0]
            text = value.string_value
            is_number = text.isascii() and text.isdecimal() and len(text) < 17
            largest = max(largest, int(text) if is_number else value.number_value)
    return int(largest)


class _Price(NamedTuple):
    """Micro-dollars for a million tokens, which are whole numbers as prices are written."""

    prompt: int
    made: int


class Prices:
    """The prices as far as they are known, to reserve by."""

    def __init__(self) -> None:
        self._by_model: dict[str, _Price] = {}
        self._highest = _Price(0, 0)

    def replace(self, prices: Iterable[price_service_pb2.Price]) -> None:
        """Takes these prices in place of all earlier ones."""
        self._by_model = {price.model: _read(price) for price in prices}
        known = self._by_model.values()
        self._highest = _Price(
            max((each.prompt for each in known), default=0),
            max((each.made for each in known), default=0),
        )

    def usd_nano(self, model: str, reservation: Reservation) -> int:
        """Returns what a reservation costs at most in billionths of a dollar, rounded up.

        A model without a price, such as an alias, may be answered by any: it is reserved at the
        highest price. Where no price is known it is 0, for then nothing can be spent.
        """
        price = self._by_model.get(model, self._highest)
        millionths = price.prompt * reservation.prompt + price.made * reservation.made
        return min(-(-millionths // _MICRO_PER_NANO), _MAX_USD_NANO)


def _read(price: price_service_pb2.Price) -> _Price:
    prompt = Decimal(price.input_usd)
    if price.HasField("cached_input_usd"):
        prompt = max(prompt, Decimal(price.cached_input_usd))
    return _Price(int(prompt * _MICRO), int(Decimal(price.output_usd) * _MICRO))
