from decimal import Decimal

import pytest
from pydantic import ValidationError

from infermesh.auth.v1 import limit_service_pb2 as limits
from services.metrics import exposition, limiter_metrics
from services.metrics.exposition import Exposition
from services.metrics.settings import MetricsSettings
from unit.metrics.test_metrics_usage import usage


def _lines(counted: Exposition) -> list[str]:
    return counted.text({}).decode().splitlines()


def test_events_are_counted_by_model_node_operation_and_outcome() -> None:
    counted = Exposition()
    counted.count([usage("a"), usage("b"), usage("c", outcome=5, prompt_tokens=None)])
    lines = _lines(counted)
    labels = 'model="m",node="n",operation="chat"'
    assert f'infermesh_requests_total{{{labels},outcome="ok"}} 2.0' in [
        _sorted(line) for line in lines
    ]
    assert 'infermesh_tokens_total{model="m",type="prompt"} 6.0' in lines
    assert 'infermesh_tokens_total{model="m",type="completion"} 12.0' in lines
    assert not any('type="cached"' in line for line in lines)


def _sorted(line: str) -> str:
    if "{" not in line:
        return line
    name, _, rest = line.partition("{")
    inner, _, value = rest.rpartition("}")
    return f"{name}{{{','.join(sorted(inner.split(',')))}}}{value}"


def test_durations_go_to_the_histograms_when_they_are_known() -> None:
    counted = Exposition()
    counted.count([usage("a", duration_us=15_000), usage("b", duration_us=None)])
    text = counted.text({}).decode()
    labels = 'gen_ai_operation_name="chat",gen_ai_request_model="m"'
    assert f"gen_ai_server_request_duration_seconds_count{{{labels}}} 1.0" in text
    assert f'gen_ai_server_request_duration_seconds_bucket{{{labels},le="0.02"}} 1.0' in text
    assert f'gen_ai_server_request_duration_seconds_bucket{{{labels},le="0.01"}} 0.0' in text
    assert "time_to_first_token_seconds_count" not in text


def test_no_series_tells_when_another_was_created() -> None:
    counted = Exposition()
    counted.count([usage("a", duration_us=15_000)])
    assert "_created" not in counted.text({}).decode()


def test_label_sets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MAX_LABEL_SETS", 10)
    counted = Exposition()
    counted.count(usage(str(n), model=f"m{n}") for n in range(50))
    lines = [line for line in _lines(counted) if line.startswith("infermesh_requests_total")]
    assert len(lines) == 11
    assert any('model="other"' in line and line.endswith(" 40.0") for line in lines)


def test_parts_are_up_or_not() -> None:
    lines = Exposition().text({"auth": True, "routing": False}).decode().splitlines()
    assert 'infermesh_part_up{part="auth"} 1.0' in lines
    assert 'infermesh_part_up{part="routing"} 0.0' in lines


def test_costs_are_summed_as_far_as_they_are_known() -> None:
    counted = Exposition()
    counted.count([usage("a", cost=Decimal("0.25")), usage("b", cost=Decimal("0.5")), usage("c")])
    lines = _lines(counted)
    assert 'infermesh_cost_usd_total{model="m"} 0.75' in lines
    assert 'infermesh_unpriced_requests_total{model="m"} 1.0' in lines


def test_how_auth_limits_is_told_and_nothing_where_it_does_not_say() -> None:
    status = limits.LimiterStatus(
        mode=limits.LIMITER_MODE_LOCAL,
        local_admitted_count=3,
        unavailable_refused_count=2,
        refused_counts={"tokens_per_day": 4},
        alerts=[
            limits.LimitAlert(
                scope=limits.LimitScope(tenant="acme"), limit="usd_per_month", percent=80
            )
        ],
    )
    exposed = Exposition()
    lines = [_sorted(line) for line in exposed.text({}, status).decode().splitlines()]
    assert 'infermesh_limiter_mode{mode="local",part="auth"} 1.0' in lines
    assert 'infermesh_limiter_mode{mode="redis",part="auth"} 0.0' in lines
    assert "infermesh_limiter_local_admitted_total 3.0" in lines
    assert "infermesh_limiter_unavailable_refused_total 2.0" in lines
    assert 'infermesh_limiter_refused_total{limit="tokens_per_day"} 4.0' in lines
    alert = 'key="",limit="usd_per_month",model="",project="",tenant="acme"'
    assert f"infermesh_limit_alert{{{alert}}} 80.0" in lines
    assert "infermesh_limit" not in exposed.text({}).decode()


def test_alerts_are_bounded_and_the_fullest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_metrics, "_MAX_ALERTS", 2)
    alerts = [limits.LimitAlert(limit=f"l{n}", percent=n) for n in (50, 100, 80)]
    text = Exposition().text({}, limits.LimiterStatus(alerts=alerts)).decode()
    assert 'limit="l100"' in text and 'limit="l80"' in text
    assert 'limit="l50"' not in text


def test_parts_are_read_from_one_line() -> None:
    url = "postgresql+asyncpg://u:p@h/d"
    settings = MetricsSettings(database_url=url, parts="auth=127.0.0.1:1, registry=h:2,")  # type: ignore[arg-type]
    assert settings.parts == {"auth": "127.0.0.1:1", "registry": "h:2"}
    for wrong in ("auth", "=h:1", "auth=h"):
        with pytest.raises(ValidationError):
            MetricsSettings(database_url=url, parts=wrong)  # type: ignore[arg-type]
