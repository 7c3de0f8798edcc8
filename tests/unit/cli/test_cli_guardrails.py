"""How `infermesh keys` changes one guardrail and keeps the others."""

from infermesh.auth.v1 import key_service_pb2 as pb
from services.cli.guardrails import Kind, facts, keep_others, set_guardrails


def test_every_kind_of_the_contract_has_a_word() -> None:
    rules = pb.KeyRules()
    set_guardrails(rules, None, None, list(Kind))
    assert set(rules.guardrails.redact) == set(pb.Redaction.values()) - {0}


def test_nothing_named_is_nothing_set() -> None:
    rules = pb.KeyRules()
    set_guardrails(rules, None, None, None)
    assert rules == pb.KeyRules()


def test_a_guardrail_takes_the_place_of_that_one_alone() -> None:
    old = pb.KeyRules(
        allowed_models=["a"],
        networks=["10.0.0.0/8"],
        labels={"x": "1"},
        guardrails=pb.Guardrails(max_prompt_chars=5, blocked_patterns=["p"], redact=[1]),
    )
    wanted = pb.KeyRules(allowed_models=["b"])
    set_guardrails(wanted, None, ["q"], None)
    assert keep_others(wanted, old) == pb.KeyRules(
        allowed_models=["b"],
        networks=["10.0.0.0/8"],
        labels={"x": "1"},
        guardrails=pb.Guardrails(max_prompt_chars=5, blocked_patterns=["q"], redact=[1]),
    )
    assert keep_others(pb.KeyRules(labels={"y": "2"}), old).guardrails == old.guardrails


def test_what_is_shown() -> None:
    guardrails = pb.Guardrails(max_prompt_chars=5, blocked_patterns=["p"], redact=[1, 2])
    assert list(facts(pb.KeyRules(guardrails=guardrails))) == [
        ("longest prompt", "5 characters"),
        ("blocked", "p"),
        ("redacted", "secrets, email-addresses"),
    ]
