import csv
import datetime as dt
import io
from decimal import Decimal

import pytest

from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.metrics.export import to_csv
from services.metrics.sums import Question, Sum
from services.metrics.usage import Sums

SUMS = Sums(3, 1, 1, 1, 30, 4, 2, Decimal("0.000010500000"))


def _rows(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def test_the_columns_are_what_it_is_summed_by_and_then_the_sums() -> None:
    data = to_csv(("day", "model"), [Sum((dt.date(2026, 1, 2), "m"), SUMS)])
    assert data == (
        b"day,model,request_count,failed_count,unknown_count,unpriced_count,"
        b"prompt_tokens,completion_tokens,cached_tokens,cost_usd\r\n"
        b"2026-01-02,m,3,1,1,1,30,4,2,0.0000105\r\n"
    )


def test_an_unknown_cost_is_empty_and_a_known_one_of_0_is_0() -> None:
    unknown = SUMS._replace(unpriced_count=3, cost=Decimal())
    free = SUMS._replace(cost=Decimal())
    rows = _rows(to_csv(("model",), [Sum(("m",), unknown), Sum(("n",), free)]))
    assert [row[-1] for row in rows[1:]] == ["", "0"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula(start: str) -> None:
    hostile = start + 'HYPERLINK("http://x","y")'
    rows = _rows(to_csv(("tenant",), [Sum((hostile,), SUMS)]))
    assert rows[1][0] == "'" + hostile


def test_quotes_commas_and_lines_come_back_as_they_were() -> None:
    text = 'a,"b"\nc; ü'
    assert _rows(to_csv(("tenant",), [Sum((text,), SUMS)]))[1][0] == text


def test_a_key_is_told_with_its_tenant_and_project() -> None:
    assert Question().columns == ("tenant", "project", "key_id", "model")
    by = (pb.USAGE_DIMENSION_PROJECT, pb.USAGE_DIMENSION_DAY)
    assert Question(dimensions=by).columns == ("day", "tenant", "project")
    assert Question(dimensions=(pb.USAGE_DIMENSION_MODEL,)).columns == ("model",)
