"""How much calls are reserved: tokens by their form, dollars by the prices."""

from typing import Any

import pytest

from infermesh.metrics.v1 import price_service_pb2 as prices_pb
from services.auth.reservation import Estimator, Prices, Reservation
from unit.auth.auth_samples import GRPC_CHAT, REST_CHAT, check_request

BOUND = 32768
EMBED = "/infermesh.embeddings.v1.EmbeddingsService/CreateEmbeddings"


def estimate(rest: dict[str, Any], typed: dict[str, str] | None = None, path: str = "") -> Any:
    path = path or (REST_CHAT if typed is None else GRPC_CHAT)
    request = check_request(path, {}, rest=rest, typed=typed)
    metadata = request.attributes.metadata_context.filter_metadata
    return Estimator(4, 1024, BOUND).estimate(path, metadata, is_grpc=typed is not None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (100, 1024)),
        ({"max_tokens": 50}, (100, 50)),
        ({"max_completion_tokens": 60, "max_tokens": 50}, (100, 60)),
        ({"max_tokens": 50, "n": 3}, (100, 150)),
        ({"max_tokens": 50, "n": 1e9}, (100, 50 * 128)),
        ({"max_tokens": 1e300}, (100, BOUND - 100)),
        ({"max_tokens": 1e300, "n": 1e300}, (100, BOUND - 100)),
        # Both are made where an engine picks the best.
        ({"max_tokens": 50, "n": 2, "best_of": 5}, (100, 250)),
        ({"max_tokens": 5, "n": 2, "prompts": 3}, (100, 30)),
        ({"max_tokens": 5, "prompts": 1e300}, (100, BOUND - 100)),
        # What is no number above 0 says nothing: the node refuses it, but for 0.
        ({"max_tokens": 0}, (100, 1024)),
        ({"max_tokens": -5, "n": -5}, (100, 1024)),
        ({"max_tokens": "50", "n": "2"}, (100, 1024)),
        ({"max_tokens": None, "n": [2]}, (100, 1024)),
        ({"prompt_bytes": 401}, (101, 1024)),
        ({"prompt_bytes": 1e9}, (BOUND, 0)),
        # A prompt that nobody measured may be of any length.
        ({"prompt_bytes": None}, (BOUND, 0)),
        ({"prompt_bytes": -1}, (BOUND, 0)),
    ],
)
def test_rest(said: dict[str, Any], expected: tuple[int, int]) -> None:
    assert estimate({"prompt_bytes": 400, **said}) == Reservation(*expected)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (100, 1024)),
        ({"max_tokens": "50"}, (100, 50)),
        ({"chat.max_tokens": "50", "chat.n": "2"}, (100, 100)),
        ({"max_tokens": "50", "max_completion_tokens": "70"}, (100, 70)),
        ({"chat.max_completion_tokens": "70"}, (100, 70)),
        ({"max_tokens": "2147483647"}, (100, BOUND - 100)),
        ({"max_tokens": "-1"}, (100, 1024)),
        ({"max_tokens": "٣"}, (100, 1024)),
        ({"max_tokens": "9" * 4000}, (100, 1024)),
    ],
)
def test_typed(said: dict[str, str], expected: tuple[int, int]) -> None:
    # What stands in the body of a REST caller does not count for a typed one.
    found = estimate({"prompt_bytes": 400, "max_tokens": 7}, said)
    assert found == Reservation(*expected)


def test_embeddings_make_no_tokens() -> None:
    rest = {"prompt_bytes": 400, "max_tokens": 9}
    assert estimate(rest, path=EMBED) == Reservation(100, 0)


def test_without_metadata_the_bound_is_reserved() -> None:
    assert Estimator(4, 1024, BOUND).estimate(REST_CHAT, {}, is_grpc=False) == Reservation(BOUND, 0)


def priced(**models: tuple[str, str | None, str]) -> Prices:
    prices = Prices()
    prices.replace(
        prices_pb.Price(model=model, input_usd=put, cached_input_usd=cached, output_usd=made)
        for model, (put, cached, made) in models.items()
    )
    return prices


def test_dollars_are_rounded_up_to_billionths() -> None:
    prices = priced(m=("0.15", None, "0.60"))
    # 0.15 $ for a million is 150 billionths for one.
    assert prices.usd_nano("m", Reservation(1, 0)) == 150
    assert prices.usd_nano("m", Reservation(1000, 500)) == 150_000 + 300_000
    tiny = priced(m=("0.000001", None, "0"))
    assert tiny.usd_nano("m", Reservation(1, 0)) == 1
    assert tiny.usd_nano("m", Reservation(1000, 0)) == 1
    assert tiny.usd_nano("m", Reservation(1001, 0)) == 2


def test_a_cached_prompt_that_costs_more_is_reserved_at_that() -> None:
    assert priced(m=("1", "2", "0")).usd_nano("m", Reservation(1, 0)) == 2000


def test_a_model_without_a_price_is_reserved_at_the_highest() -> None:
    prices = priced(a=("1", None, "9"), b=("2", None, "3"))
    assert prices.usd_nano("alias", Reservation(1, 1)) == 2000 + 9000
    assert prices.usd_nano("a", Reservation(1, 1)) == 1000 + 9000


def test_without_prices_nothing_is_reserved() -> None:
    assert Prices().usd_nano("m", Reservation(1000, 1000)) == 0


def test_dollars_stay_exact_in_the_limiter() -> None:
    prices = priced(m=("999999.999999", None, "999999.999999"))
    assert prices.usd_nano("m", Reservation(2**31 - 1, 0)) == 2**53 - 1
