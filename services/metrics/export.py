"""Sums of the ledger as CSV (RFC 4180)."""

import csv
import io
from collections.abc import Iterable, Sequence

from services.metrics.decimals import to_text
from services.metrics.sums import Sum

CONTENT_TYPE = "text/csv; charset=utf-8; header=present"

_COUNTS = (
    *("request_count", "failed_count", "unknown_count", "unpriced_count"),
    *("prompt_tokens", "completion_tokens", "cached_tokens"),
)

# Spreadsheets run what begins so, and what begins with a tab or a line end before it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def to_csv(columns: Sequence[str], sums: Iterable[Sum]) -> bytes:
    """Returns the sums with a header line, in UTF-8.

    Args:
        columns: What the sums are by.
        sums: The sums.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow((*columns, *_COUNTS, "cost_usd"))
    for by, each in sums:
        cost = to_text(each.cost) if each.is_cost_known else ""
        writer.writerow(
            (*(_safe(str(cell)) for cell in by), *(getattr(each, name) for name in _COUNTS), cost)
        )
    return out.getvalue().encode()


def _safe(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA_STARTS) else text
