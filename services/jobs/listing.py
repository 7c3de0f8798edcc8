"""OpenAI's pages of lists."""

from collections.abc import Sequence
from typing import Any

from services.jobs.errors import not_found

DEFAULT_LIMIT = 20


def page(
    rows: Sequence[dict[str, Any]], *, limit: int, is_ascending: bool, after: str
) -> dict[str, Any]:
    """Returns a page of a list that is there as a whole.

    Args:
        rows: Everything, oldest first, each with an `id`.
        limit: The most rows of the page.
        is_ascending: Whether the oldest come first.
        after: The id of the row before the page; empty for the first page.

    Raises:
        MeshError: `NOT_FOUND`, there is no such row.
    """
    ordered = rows if is_ascending else rows[::-1]
    start = 0
    if after:
        found = [index for index, row in enumerate(ordered) if row["id"] == after]
        if not found:
            raise not_found("item", after, "after")
        start = found[0] + 1
    return listed(ordered[start : start + limit], has_more=start + limit < len(ordered))


def listed(rows: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Returns OpenAI's object of a page."""
    return {
        "object": "list",
        "data": list(rows),
        "first_id": rows[0]["id"] if rows else None,
        "last_id": rows[-1]["id"] if rows else None,
        "has_more": has_more,
    }
