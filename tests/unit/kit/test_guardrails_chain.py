"""The chain: what its header says, in which order it runs, and what refuses."""

import asyncio
import gc

import pytest

from infermesh.auth.v1 import key_service_pb2 as pb
from services.kit.errors import MeshError
from services.kit.guardrails import header, patterns
from services.kit.guardrails.chain import chain_of
from services.kit.guardrails.guard import PromptGuard
from services.kit.guardrails.prompt import Prompt


def prompt(*texts: str) -> Prompt:
    made = Prompt()
    for index, text in enumerate(texts):
        made.add(text, f"messages[{index}]")
    return made


def checked(wanted: pb.Guardrails, what: Prompt) -> Prompt:
    for plugin in chain_of(header.write(wanted)):
        plugin.check(what)
    return what


def refusal(wanted: pb.Guardrails, what: Prompt) -> MeshError:
    with pytest.raises(MeshError) as caught:
        checked(wanted, what)
    return caught.value


def test_no_guardrails_are_an_empty_header() -> None:
    assert header.write(pb.Guardrails()) == ""


def test_the_header_says_what_was_written() -> None:
    wanted = pb.Guardrails(max_prompt_chars=5, blocked_patterns=["ä"], redact=[3, 1])
    assert header.read(header.write(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        "AAAA",
        # A field that this version has not: number 15, `1`.
        "eAE=",
    ],
)
def test_what_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(header.UnknownGuardrailsError):
        chain_of(text)


def test_a_kind_of_redaction_that_is_not_known_is_an_error() -> None:
    with pytest.raises(header.UnknownGuardrailsError):
        chain_of(header.write(pb.Guardrails(redact=[99])))  # type: ignore[list-item]


def test_length_counts_all_texts_and_names() -> None:
    wanted = pb.Guardrails(max_prompt_chars=6)
    what = prompt("äöü", "ab")
    checked(wanted, what)
    what.names.append("cd")
    error = refusal(wanted, what)
    assert (error.reason_name, error.param) == ("INPUT_TOO_LONG", "messages")
    assert error.metadata == {"chars": "7", "max_chars": "6"}


def test_a_pattern_refuses_and_is_not_told() -> None:
    wanted = pb.Guardrails(blocked_patterns=["nothing", "(?i)project\\s+zebra"])
    error = refusal(wanted, prompt("hello", "about Project  ZEBRA now"))
    assert (error.reason_name, error.param) == ("CONTENT_BLOCKED", "messages[1]")
    assert error.metadata == {"pattern": "1"}
    assert "ebra" not in error.openai_body().lower()


@pytest.mark.parametrize(
    "text",
    ["ｚｅｂｒａ", "ze\u200bbra", "z\u00adebra", "\\u007aebra", "𝔷𝔢𝔟𝔯𝔞", "\ufeffzebra\u2060"],
)
def test_patterns_are_found_in_what_people_read(text: str) -> None:
    wanted = pb.Guardrails(blocked_patterns=["^zebra$"])
    assert refusal(wanted, prompt(text)).reason_name == "CONTENT_BLOCKED"


def test_patterns_are_found_in_what_stands_there() -> None:
    wanted = pb.Guardrails(blocked_patterns=["ｚ", "\u200b{3}"])
    assert refusal(wanted, prompt("ａｚ")).metadata == {"pattern": "0"}
    assert refusal(wanted, prompt("a\u200b\u200b\u200bb")).metadata == {"pattern": "1"}


def test_names_and_readings_are_searched() -> None:
    wanted = pb.Guardrails(blocked_patterns=["zebra"])
    assert checked(wanted, Prompt(names=["horse"], readings=["cow"])).redactions == 0
    assert refusal(wanted, Prompt(names=["a zebra"])).reason_name == "CONTENT_BLOCKED"
    assert refusal(wanted, Prompt(readings=["a zebra"])).reason_name == "CONTENT_BLOCKED"


def test_patterns_come_before_redaction() -> None:
    wanted = pb.Guardrails(blocked_patterns=["@example"], redact=[pb.REDACTION_EMAIL_ADDRESSES])
    assert refusal(wanted, prompt("a@example.com")).reason_name == "CONTENT_BLOCKED"


@pytest.mark.parametrize(
    ("bad", "index"),
    [
        (["fine", "("], 1),
        (["(?=a)"], 0),
        (["a*"], 0),
        (["x" * 200] * 11, None),
        ([".{900}", ".{900}"], None),
        (["(?:\\pL{500}){2}"], 0),
    ],
)
def test_patterns_that_cannot_be_used(bad: list[str], index: int | None) -> None:
    with pytest.raises(patterns.PatternError) as caught:
        patterns.check(bad)
    assert caught.value.index == index


def test_patterns_that_can_be_used() -> None:
    patterns.check(["(?i)project\\s+zebra", "\\bAKIA[A-Z0-9]{16}\\b", "\\p{Greek}+", "x" * 200])


async def test_long_prompts_are_checked_beside_the_loop() -> None:
    guard = PromptGuard()
    wanted = header.write(pb.Guardrails(redact=[pb.REDACTION_EMAIL_ADDRESSES]))
    what = prompt("x " * 200_000 + "a@example.com")
    check = asyncio.create_task(guard.check(wanted, what))
    await asyncio.sleep(0)
    assert not check.done()
    await check
    assert what.redactions == 1
    guard.close()


async def test_too_many_long_prompts_are_refused_and_places_come_back() -> None:
    guard = PromptGuard()
    wanted = header.write(pb.Guardrails(redact=[pb.REDACTION_EMAIL_ADDRESSES]))
    checks = [asyncio.create_task(guard.check(wanted, prompt("x " * 50_000))) for _ in range(70)]
    done = await asyncio.gather(*checks, return_exceptions=True)
    refused = [each for each in done if isinstance(each, MeshError)]
    assert [each.reason_name for each in refused] == ["OVERLOADED"] * 6
    await guard.check(wanted, prompt("x " * 50_000))
    guard.close()


async def test_a_caller_who_hangs_up_frees_no_place_before_the_thread_is_done() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    guard = PromptGuard()
    wanted = header.write(pb.Guardrails(blocked_patterns=["zebra"]))
    check = asyncio.create_task(guard.check(wanted, prompt("x " * 100_000 + "zebra")))
    await asyncio.sleep(0)
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    del check
    with pytest.raises(MeshError):
        await guard.check(wanted, prompt("y " * 100_000 + "zebra"))
    guard.close()
    gc.collect()
    asyncio.get_running_loop().set_exception_handler(None)
    # Nor is the refusal that nobody waits for reported as one that was never retrieved.
    assert complaints == []


async def test_unknown_guardrails_refuse() -> None:
    guard = PromptGuard()
    with pytest.raises(MeshError) as caught:
        await guard.check("eAE=", prompt("hi"))
    assert caught.value.reason_name == "INTERNAL"
    guard.close()
