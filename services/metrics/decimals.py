"""Decimals as the API writes them."""

from decimal import Decimal


def to_text(value: Decimal) -> str:
    """Returns a decimal in plain digits, without zeros at its end. Example: `0.00015`."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
