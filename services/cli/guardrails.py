"""How `infermesh keys` says what prompts are checked for."""

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infermesh.auth.v1 import key_service_pb2


class Kind(StrEnum):
    """What is redacted, as a person types it."""

    SECRETS = "secrets"
    EMAIL_ADDRESSES = "email-addresses"
    PHONE_NUMBERS = "phone-numbers"
    CREDIT_CARDS = "credit-cards"
    IBANS = "ibans"
    IP_ADDRESSES = "ip-addresses"


MaxPromptChars = Annotated[
    int | None,
    typer.Option("--max-prompt-chars", min=1, help="The most characters of a prompt."),
]
BlockedPatterns = Annotated[
    list[str] | None,
    typer.Option("--block", help="A pattern (RE2) that refuses a prompt with it; repeat for more."),
]
Redactions = Annotated[
    list[Kind] | None,
    typer.Option("--redact", help="What is replaced in prompts; repeat for more."),
]


def set_guardrails(
    rules: "key_service_pb2.KeyRules",
    max_prompt_chars: int | None,
    blocked: list[str] | None,
    redact: list[Kind] | None,
) -> None:
    """Sets what was named, and nothing where nothing was."""
    from infermesh.auth.v1 import key_service_pb2

    guardrails = key_service_pb2.Guardrails(
        max_prompt_chars=max_prompt_chars,
        blocked_patterns=blocked or (),
        redact=[key_service_pb2.Redaction.Value(f"REDACTION_{kind.name}") for kind in redact or ()],
    )
    if guardrails.ListFields():
        rules.guardrails.CopyFrom(guardrails)


def keep_others(
    wanted: "key_service_pb2.KeyRules", old: "key_service_pb2.KeyRules"
) -> "key_service_pb2.KeyRules":
    """Returns the old rules with each that is wanted in its place, every guardrail being one."""
    kept = type(old)()
    kept.CopyFrom(old)
    for field, _ in wanted.ListFields():
        if field.name != "guardrails":
            kept.ClearField(field.name)  # type: ignore[arg-type]
    for field, _ in wanted.guardrails.ListFields():
        kept.guardrails.ClearField(field.name)  # type: ignore[arg-type]
    kept.MergeFrom(wanted)
    return kept


def facts(rules: "key_service_pb2.KeyRules") -> Iterator[tuple[str, str]]:
    """Returns what there is to show of a key's guardrails."""
    from infermesh.auth.v1 import key_service_pb2

    guardrails = rules.guardrails
    if guardrails.HasField("max_prompt_chars"):
        yield "longest prompt", f"{guardrails.max_prompt_chars} characters"
    for pattern in guardrails.blocked_patterns:
        yield "blocked", pattern
    if guardrails.redact:
        names = (key_service_pb2.Redaction.Name(each) for each in guardrails.redact)
        words = (each.removeprefix("REDACTION_").lower().replace("_", "-") for each in names)
        yield "redacted", ", ".join(words)
