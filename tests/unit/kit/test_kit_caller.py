import pytest

from services.kit.caller import Caller, caller_of


def test_the_caller_is_read_from_metadata() -> None:
    metadata = [
        ("x-request-id", "r"),
        ("x-envoy-attempt-count", "2"),
        ("x-mesh-tenant", "acme"),
        ("x-mesh-key-id", "k"),
        ("x-mesh-model", "m"),
        ("other-bin", b"\0"),
    ]
    assert caller_of(metadata) == Caller("r", 2, "acme", "k", "m", requested_model="m")


@pytest.mark.parametrize("metadata", [None, (), [("x-request-id", "")]])
def test_a_call_from_inside_gets_an_id_and_has_no_key(
    metadata: list[tuple[str, str | bytes]] | None,
) -> None:
    bare = caller_of(metadata)
    assert len(bare.request_id) == 36
    assert bare == Caller(bare.request_id, 1, "", "", "")


def test_ids_and_attempts_are_bounded() -> None:
    assert caller_of([("x-request-id", "r" * 100)]).request_id == "r" * 64
    for attempt in ("zero", "\u00b2", "-1", "0", "1000000", ""):
        assert caller_of([("x-envoy-attempt-count", attempt)]).attempt == 1


def test_what_auth_says_of_projects_and_limits():
    caller = caller_of((("x-mesh-project", "web"), ("x-mesh-reserved", "1")))
    assert (caller.project, caller.reserved) == ("web", True)


def test_what_routing_says():
    caller = caller_of(
        (
            ("x-mesh-model", "a"),
            ("x-mesh-requested-model", "alias"),
            ("x-mesh-models", "a,b"),
            ("x-mesh-expected-cached", "0.25"),
            ("x-mesh-decision", '{"policy":"p"}'),
        )
    )
    assert (caller.model, caller.requested_model) == ("a", "alias")
    assert caller.models == ("a", "b")
    assert caller.expected_cached == 0.25
    assert caller.decision == '{"policy":"p"}'


@pytest.mark.parametrize(
    ("said", "share"),
    [("0", 0.0), ("0.00", 0.0), ("1", 1.0), ("1.00", 1.0)]
    + [(said, None) for said in ("", "1.5", "-0.1", "nan", "inf", "0.1x", "1e-3")],
)
def test_a_share_is_a_share(said, share):
    assert caller_of((("x-mesh-expected-cached", said),)).expected_cached == share
