"""What models cost, and what a request costs by that. Decimals only: no sum is ever rounded."""

import datetime as dt
from decimal import Decimal
from typing import NamedTuple

from services.metrics.usage import Usage

MAX_PRICES = 10_000

_PER_TOKEN = Decimal("0.000001")


class Price(NamedTuple):
    """What a model costs, in US dollars for a million tokens; at most 6 digits after the point.

    Args:
        model: The model that answers.
        input: Of a prompt.
        cached_input: Of what of a prompt came from a cache; None is as `input`.
        output: Of what is made.
        update_time: When it was set.
    """

    model: str
    input: Decimal
    cached_input: Decimal | None
    output: Decimal
    update_time: dt.datetime


def cost_of(usage: Usage, price: Price | None) -> Decimal | None:
    """Returns what a request costs in US dollars, exactly, with at most 12 digits after the point.

    None where it is unknown: the model has no price, or a count that the price needs is missing.
    The count of cached tokens is needed only where they have a price of their own; one that is
    above the prompt's stands for the whole prompt.
    """
    made = usage.output_tokens
    if price is None or usage.prompt_tokens is None or made is None:
        return None
    cached, cached_input = 0, price.input
    if price.cached_input is not None and price.cached_input != price.input:
        if usage.cached_tokens is None:
            return None
        cached, cached_input = min(usage.cached_tokens, usage.prompt_tokens), price.cached_input
    # 12 digits of a price and 10 of a count, thrice: well within the 28 that decimals keep.
    micros = (usage.prompt_tokens - cached) * price.input + cached * cached_input
    return (micros + made * price.output) * _PER_TOKEN
