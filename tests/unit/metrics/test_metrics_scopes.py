import datetime as dt
from decimal import Decimal

from services.metrics import scope_store
from services.metrics.outbox import Entry, entries
from services.metrics.scopes import DAY, MONTH, Scope, Span, Total, Use, spans_of, total_changes
from services.metrics.usage import uses
from unit.metrics.test_metrics_usage import usage

DATE = dt.date(2026, 1, 2)
USE = Use(DATE, "acme", "web", "k", "alias")


def test_a_request_is_in_four_scopes_by_day_and_by_month() -> None:
    scopes = {
        Scope("acme", "", "", ""),
        Scope("acme", "web", "", ""),
        Scope("", "", "k", ""),
        Scope("", "", "k", "alias"),
    }
    spans = spans_of(USE)
    assert len(spans) == 8
    assert {s.scope for s in spans if (s.period, s.start) == (DAY, DATE)} == scopes
    assert {s.scope for s in spans if (s.period, s.start) == (MONTH, dt.date(2026, 1, 1))} == scopes


def test_what_no_limit_can_name_has_no_total() -> None:
    assert len(spans_of(USE._replace(tenant=""))) == 4
    assert len(spans_of(USE._replace(tenant="Not A Slug"))) == 4
    assert len(spans_of(USE._replace(project=""))) == 6
    assert len(spans_of(USE._replace(model="no model\n"))) == 6
    assert len(spans_of(USE._replace(model="a\n"))) == 6
    assert len(spans_of(USE._replace(key_id="k k"))) == 4


def test_the_model_is_the_one_that_the_caller_named() -> None:
    assert usage(requested_model="alias").use.model == "alias"
    assert usage().use.model == "m"


def test_changes_are_added_up_and_come_in_one_order() -> None:
    other = USE._replace(key_id="a", day=dt.date(2026, 1, 1))
    changes = total_changes([(USE, 5, Decimal(1)), (other, 2, Decimal("0.5")), (USE, 1, Decimal())])
    assert [span for span, _ in changes] == sorted(span for span, _ in changes)
    found = dict(changes)
    assert found[Span(DAY, DATE, Scope("acme", "", "", ""))] == Total(6, Decimal(1))
    month = Span(MONTH, dt.date(2026, 1, 1), Scope("acme", "", "", ""))
    assert found[month] == Total(8, Decimal("1.5"))
    assert found[Span(MONTH, dt.date(2026, 1, 1), Scope("", "", "a", ""))] == Total(
        2, Decimal("0.5")
    )


def test_what_changes_nothing_is_not_written() -> None:
    assert total_changes([(USE, 0, Decimal())]) == []
    assert total_changes([(USE, 5, Decimal(1)), (USE, -5, Decimal(-1))]) == []


def test_an_attempt_that_goes_takes_its_tokens_along_and_unknown_ones_are_none() -> None:
    old, new = usage(cost=Decimal(3)), usage(attempt=2, prompt_tokens=None, cost=None)
    assert [each[1:] for each in uses([new], [old])] == [(4, Decimal()), (-7, Decimal(-3))]


def test_only_days_are_forgotten() -> None:
    today = DATE + dt.timedelta(days=scope_store.DAYS_KEPT)
    scope = Scope("acme", "", "", "")
    assert scope_store.is_kept(Span(DAY, DATE, scope), today)
    assert not scope_store.is_kept(Span(DAY, DATE, scope), today + dt.timedelta(days=1))
    assert scope_store.is_kept(Span(MONTH, DATE.replace(day=1), scope), dt.date(2030, 1, 1))


def test_only_what_auth_reserved_is_settled() -> None:
    reserved = usage("a", reserved=True)
    assert entries([usage("b"), reserved], []) == [Entry("a", reserved.use)]
    # Of an attempt that another takes the place of, the totals have changed too.
    before = reserved._replace(start_time=reserved.start_time - dt.timedelta(days=1))
    assert entries([reserved], [before]) == [Entry("a", reserved.use), Entry("a", before.use)]
    assert entries([reserved], [reserved._replace(attempt=0)]) == [Entry("a", reserved.use)]
