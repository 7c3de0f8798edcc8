"""How the audit log is asked for and shown."""

from datetime import UTC, datetime, timedelta

import pytest
import typer

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.cli.audit_view import COLUMNS, changes, full_path, moment, row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T12:30", datetime(2026, 11, 1, 12, 30, tzinfo=UTC)),
        ("2026-11-01T12:30:05", datetime(2026, 11, 1, 12, 30, 5, tzinfo=UTC)),
    ],
)
def test_times(text: str, expected: datetime) -> None:
    assert moment(text) == expected


def test_how_long_ago() -> None:
    assert abs(datetime.now(UTC) - timedelta(hours=2) - moment("2h")) < timedelta(0, 5)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "999999999d", "-1h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        moment(text)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", ""),
        ("auth", "/infermesh.auth.v1."),
        ("auth.KeyService/", "/infermesh.auth.v1.KeyService/"),
        ("auth.KeyService/RevokeKey", "/infermesh.auth.v1.KeyService/RevokeKey"),
        ("/infermesh.auth.v1.KeyService/", "/infermesh.auth.v1.KeyService/"),
    ],
)
def test_paths(said: str, meant: str) -> None:
    assert full_path(said) == meant


def test_a_row_says_who_what_and_how_it_ended() -> None:
    event = pb.AuditEvent(
        sequence=7,
        kind=pb.AUDIT_KIND_OUTCOME,
        key_id="key_a",
        tenant="acme",
        role="operator",
        rpc="/infermesh.registry.v1.NodeService/DrainNode",
        resource="gpu-1",
        outcome="OK",
        count=1,
    )
    event.time.FromDatetime(datetime(2026, 11, 1, 12, 30, 5, 123))
    assert dict(zip(COLUMNS, row(event), strict=True)) == {
        "number": "7",
        "time (UTC)": "2026-11-01 12:30:05",
        "kind": "outcome",
        "who": "key_a acme operator",
        "from": "",
        "what": "registry.NodeService/DrainNode",
        "resource": "gpu-1",
        "outcome": "OK",
    }
    denial = pb.AuditEvent(kind=pb.AUDIT_KIND_DENIAL, presented="im-abcd", rpc="/x", count=1)
    assert row(denial)[3:6] == ("im-abcd…", "", "/x")
    assert row(pb.AuditEvent(kind=pb.AUDIT_KIND_SUPPRESSED, count=9))[6] == "9 denials"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", ""),
        ('{"a":1,"b":"x"}', '{"a":2,"b":"x"}', "a: 1 → 2"),
        ('{"a":1}', "", "a: 1 → —"),
        ("", '{"a":1,"b":{"c":[1,2]}}', "a: 1; b.c: [1,2]"),
        ('{"a":"' + "x" * 90 + '"}', "{}", f"a: {'x' * 80}… → —"),
        ("", "no JSON", "no JSON"),
    ],
)
def test_changes(before: str, after: str, expected: str) -> None:
    assert changes(pb.AuditEvent(before=before, after=after)) == expected
