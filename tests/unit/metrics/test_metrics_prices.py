import datetime as dt
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from services.metrics.decimals import to_text
from services.metrics.prices import Price, cost_of
from services.metrics.usage import OPERATION_EMBEDDING
from unit.metrics.test_metrics_usage import usage

MILLION = 1_000_000


def price(input_usd: str = "0.15", cached_usd: str | None = None, output_usd: str = "0.6") -> Price:
    cached = None if cached_usd is None else Decimal(cached_usd)
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return Price("m", Decimal(input_usd), cached, Decimal(output_usd), now)


def test_a_cost_is_what_a_person_reckons_by_hand() -> None:
    # (321 - 21) x 0.15 + 21 x 0.075 + 64 x 0.6 = 45 + 1.575 + 38.4 = 84.975, for a million.
    call = usage(prompt_tokens=321, cached_tokens=21, completion_tokens=64)
    assert cost_of(call, price(cached_usd="0.075")) == Decimal("0.000084975")
    # Without a price of their own cached tokens cost as the others: 48.15 + 38.4.
    assert cost_of(call, price()) == Decimal("0.00008655")


def test_what_is_unknown_costs_an_unknown_amount_and_never_nothing() -> None:
    assert cost_of(usage(), None) is None
    for unknown in ({"prompt_tokens": None}, {"completion_tokens": None}):
        assert cost_of(usage(**unknown), price()) is None
    # How much of the prompt was cached matters only where it has a price of its own.
    assert cost_of(usage(cached_tokens=None), price(cached_usd="0.075")) is None
    assert cost_of(usage(cached_tokens=None), price(cached_usd="0.15")) is not None
    assert cost_of(usage(cached_tokens=None), price()) is not None


def test_a_price_of_0_is_known() -> None:
    assert cost_of(usage(), price("0", None, "0")) == 0


def test_embeddings_have_no_output_and_chats_that_do_not_say_have_an_unknown_one() -> None:
    silent = usage(operation=OPERATION_EMBEDDING, prompt_tokens=MILLION, completion_tokens=None)
    assert cost_of(silent, price()) == Decimal("0.15")
    assert cost_of(silent._replace(operation=1), price()) is None


def test_no_more_is_cached_than_there_is() -> None:
    lie = usage(prompt_tokens=MILLION, cached_tokens=5 * MILLION, completion_tokens=0)
    assert cost_of(lie, price(cached_usd="0.05")) == Decimal("0.05")


_USD = st.decimals(0, Decimal("999999.999999"), places=6)
_COUNT = st.integers(0, 2**31 - 1)


@given(_USD, _USD, _USD, _COUNT, _COUNT, _COUNT)
def test_no_cost_is_rounded(
    input_usd: Decimal,
    cached_usd: Decimal,
    output_usd: Decimal,
    prompt: int,
    cached: int,
    made: int,
) -> None:
    cached = min(cached, prompt)
    call = usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=made)
    asked = price(str(input_usd), str(cached_usd), str(output_usd))
    # In millionths of a millionth of a dollar everything is a whole number.
    pico = [int(each.scaleb(6)) for each in (input_usd, cached_usd, output_usd)]
    expected = (prompt - cached) * pico[0] + cached * pico[1] + made * pico[2]
    found = cost_of(call, asked)
    assert found is not None
    assert int(found.scaleb(12)) == expected
    text = to_text(found)
    assert Decimal(text) == found
    assert len(text.partition(".")[2]) <= 12
    assert "E" not in text


def test_decimals_are_written_in_plain_digits() -> None:
    for value, text in (
        ("0E-12", "0"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("0.100000", "0.1"),
        ("7.000000", "7"),
        ("1E-12", "0.000000000001"),
    ):
        assert to_text(Decimal(value)) == text
