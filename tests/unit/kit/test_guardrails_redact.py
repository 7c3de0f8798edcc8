"""What redaction replaces, what it leaves, and what it sees through."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infermesh.auth.v1 import key_service_pb2 as pb
from services.kit.errors import MeshError
from services.kit.guardrails.prompt import Prompt
from services.kit.guardrails.recognizers import RECOGNIZERS
from services.kit.guardrails.redact import Redact

ALL = [number for number in pb.Redaction.values() if number]
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def redacted(text: str, *kinds: int) -> str:
    prompt = Prompt()
    prompt.add(text, "prompt")
    Redact(kinds or ALL).check(prompt)
    return prompt.texts[0]


def test_every_kind_of_the_contract_has_a_recognizer() -> None:
    assert set(RECOGNIZERS) == set(ALL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jane.doe+x@mail.example.com.", "Mail <EMAIL_ADDRESS>."),
        ("mailto:jane@example.com?x", "mailto:<EMAIL_ADDRESS>?x"),
        ("用户 jürgen@bücher.example ok", "用户 <EMAIL_ADDRESS> ok"),
        ("card 4111 1111 1111 1111.", "card <CREDIT_CARD>."),
        ("4111-1111-1111-1111", "<CREDIT_CARD>"),
        ("378282246310005", "<CREDIT_CARD>"),
        ("3782 822463 10005", "<CREDIT_CARD>"),
        ("order 12 4111 1111 1111 1111 123", "order 12 <CREDIT_CARD> 123"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "<CREDIT_CARD>"),
        ("DE89370400440532013000", "<IBAN>"),
        ("pay DE89 3704 0044 0532 0130 00 please", "pay <IBAN> please"),
        ("gb82west12345698765432", "<IBAN>"),
        ("from 10.1.2.3:80", "from <IP_ADDRESS>:80"),
        ("[2001:db8::1]:80 and fe80::1.", "[<IP_ADDRESS>]:80 and <IP_ADDRESS>."),
        ("::ffff:10.1.2.3", "<IP_ADDRESS>"),
        ("call +49 30 901820 12 pieces", "call <PHONE_NUMBER> pieces"),
        ("0044 20 7946 0958", "<PHONE_NUMBER>"),
        ("(415) 555-2671 or 415.555.2671", "<PHONE_NUMBER> or <PHONE_NUMBER>"),
        ("Tel.: 030 901820", "Tel.: <PHONE_NUMBER>"),
        (f"key {KEY}", "key <SECRET>"),
        ("im-" + "a" * 43, "<SECRET>"),
        ("sk-proj-" + "a1B2" * 8, "<SECRET>"),
        ("ghp_" + "a1B2" * 9, "<SECRET>"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2ln", "<SECRET>"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer <SECRET>"),
        ("postgres://bob:s3cret@db/x", "postgres://bob:<SECRET>@db/x"),
        ("password: hunter2", "password: <SECRET>"),
        ('{"api_key": "some words"}', '{"api_key": "<SECRET>"}'),
        ("my password is hunter2.", "my password is <SECRET>"),
        (
            "a -----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4\nMII\n-----END RSA PRIVATE KEY----- b",
            "a <SECRET> b",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIx cut off", "<SECRET>"),
    ],
)
def test_it_replaces(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, 1234 of them, on page 56 at 12:30:45.",
        "2024-01-02 and 1234567890 and 3.14.15 and 1.2.3",
        "550e8400-e29b-41d4-a716-446655440000",
        "std::vector<int> a::b() { return ad::be; }",
        "4111 1111 1111 1112",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "DE89370400440532013001",
        "your password is required. The token is not needed.",
        "@someone and a@b",
        "300.1.2.3",
        "<EMAIL_ADDRESS> <SECRET>",
        "",
    ],
)
def test_it_leaves_alone(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ",
        "ja\u200bne@exa\u200dmple.c\u00adom",
        "\\u006aane@\\u0065xample.com",
        "j\U000e0061ane@example.com",
        "jane@example.co\\u006d",
        "jane@example.co\u200bm",
    ],
)
def test_it_reads_what_people_read(text: str) -> None:
    assert redacted(f"wörd {text} wörd 😀") == "wörd <EMAIL_ADDRESS> wörd 😀"


def test_characters_that_become_several_move_nothing() -> None:
    assert redacted("Oﬀen … ⑩ ㎏ jane@example.com, ja\u200bne@example.com …") == (
        "Oﬀen … ⑩ ㎏ <EMAIL_ADDRESS>, <EMAIL_ADDRESS> …"
    )


def test_digits_of_other_scripts_are_digits() -> None:
    assert redacted("٤١١١١١١١١١١١١١١١ 4\u200b111-1111-1111-1111") == "<CREDIT_CARD> <CREDIT_CARD>"


def test_only_what_is_asked_for_goes() -> None:
    text = f"jane@example.com {KEY} 10.0.0.1"
    assert redacted(text, pb.REDACTION_IP_ADDRESSES) == f"jane@example.com {KEY} <IP_ADDRESS>"


def test_replacements_are_counted_and_names_are_refused() -> None:
    prompt = Prompt()
    prompt.add("a@example.com b@example.com", "prompt")
    prompt.add("c@example.com", "prompt")
    prompt.names.append("harmless")
    Redact(ALL).check(prompt)
    assert prompt.redactions == 3
    prompt.names.append("d@example.com")
    with pytest.raises(MeshError) as caught:
        Redact(ALL).check(prompt)
    assert caught.value.reason_name == "CONTENT_BLOCKED"
    assert "example" not in caught.value.openai_body()


_PIECES = st.sampled_from(
    [
        "jane@example.com",
        KEY,
        "\u200b",
        "\\u0040",
        "\\ud800",
        "ﬀ",
        "４111",
        " 1111-1111 1111",
        "+49 30",
        "DE89",
        "10.0.0.1",
        "::1",
        "password: ",
        "-----BEGIN PRIVATE KEY-----",
        "é",
        "é",
        "🦀",
        "<SECRET>",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=8))).map("".join))
def test_any_text_passes_and_mail_never_does(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    done = redacted(text + "\njane@example.com\n" + text)
    assert "jane@example.com" not in done
    assert "<EMAIL_ADDRESS>" in done or "<SECRET>" in done


@pytest.mark.parametrize(
    "flood",
    [
        "+49 30 901820 1 2 3 4\n",
        "4111 1111 1111 1112 ",
        "1 2 3 4 5 6 7 8 9 ",
        "DE89 3704 0044 0532 0130 01 ",
        "aa11",
        "a@",
        ":1",
        "1.",
        "token: a1 ",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_time_is_linear_in_floods_of_what_looks_like_finds(flood: str) -> None:
    def seconds(size: int) -> float:
        text = flood * (size // len(flood))
        began = time.process_time()
        redacted(text)
        return time.process_time() - began

    seconds(1000)
    # Four times as much takes four times as long; sixteen times would be quadratic.
    short, long = (min(seconds(size) for _ in range(2)) for size in (40_000, 160_000))
    assert long < 8 * short + 0.1, (short, long)


def test_past_so_many_proofs_what_looks_like_a_find_is_one() -> None:
    cards = redacted("4111 1111 1111 1112, " * 3000).split(", ")
    assert (cards[0], cards[-2]) == ("4111 1111 1111 1112", "<CREDIT_CARD>")


def test_floods_hide_nothing() -> None:
    card = "4111 1111 1111 1111"
    assert redacted("4111 1111 1111 1112 " * 5000 + card).endswith("<CREDIT_CARD>")
    assert redacted("+49 30 901820 1 2 3 4\n" * 5000 + "+49 30 901820").endswith("<PHONE_NUMBER>")
