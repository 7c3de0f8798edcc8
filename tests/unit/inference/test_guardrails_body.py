"""Which texts of a request are looked at, and what is written back."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infermesh.auth.v1 import key_service_pb2 as pb
from services.inference.guardrails.body import BodyTexts
from services.inference.guardrails.requests import check_request
from services.inference.requests import Kind, parse
from services.kit.errors import MeshError
from services.kit.guardrails import header
from services.kit.guardrails.guard import PromptGuard

MAIL = "jane@example.com"
REDACT = header.write(pb.Guardrails(redact=[pb.REDACTION_EMAIL_ADDRESSES]))
BLOCK = header.write(pb.Guardrails(blocked_patterns=["zebra"]))


async def passed(body: Any, wanted: str = REDACT, kind: Kind = "chat") -> Any:
    data = body if isinstance(body, bytes) else orjson.dumps({"model": "m", **body})
    request = parse(kind, data)
    guard = PromptGuard()
    try:
        await check_request(guard, wanted, request)
    finally:
        guard.close()
    assert orjson.loads(request.body) == request.fields
    return request.fields


async def refused(body: Any, wanted: str = BLOCK, kind: Kind = "chat") -> MeshError:
    with pytest.raises(MeshError) as caught:
        await passed(body, wanted, kind)
    return caught.value


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [*messages], **fields}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def paths(value: Any, text: str, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    """Returns where a text stands in JSON."""
    if isinstance(value, str):
        return {path} if text in value else set()
    if not isinstance(value, dict | list):
        return set()
    items = value.items() if isinstance(value, dict) else enumerate(value)
    nested = (paths(each, text, (*path, key)) for key, each in items)
    return set().union(*nested)


@pytest.mark.parametrize(
    "body",
    [
        chat({"role": "system", "content": MAIL}, user("hi")),
        chat({"role": "developer", "content": MAIL}),
        chat({"role": "assistant", "content": MAIL}, user("hi")),
        chat({"role": "tool", "tool_call_id": "1", "content": MAIL}),
        chat(user([{"type": "text", "text": MAIL}])),
        chat(user([{"type": "tool_result", "content": [{"type": "text", "text": MAIL}]}])),
        chat(user([MAIL])),
        chat({"role": "user", "name": MAIL, "content": "hi"}),
        chat({"role": "assistant", "reasoning_content": MAIL, "content": "hi"}),
        chat(user("hi"), tools=[{"type": "function", "function": {"description": MAIL}}]),
        chat(
            user("hi"),
            tools=[{"function": {"parameters": {"properties": {"a": {"enum": [MAIL]}}}}}],
        ),
        chat(user("hi"), response_format={"json_schema": {"schema": {"description": MAIL}}}),
        chat(user("hi"), documents=[{"title": "x", "text": MAIL}]),
        chat(user("hi"), chat_template=MAIL),
        chat(user("hi"), Messages=[user(MAIL)]),
        chat({"role": MAIL, "content": "hi"}),
        chat({"role": "user", "content": "hi", "Content": MAIL}),
        chat(user([{"type": "text", "text": "hi", "Image_URL": MAIL}])),
        chat(
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": MAIL}}],
            }
        ),
    ],
)
async def test_all_texts_are_looked_at(body: dict[str, Any]) -> None:
    where = paths(body, MAIL)
    assert len(where) == 1
    fields = await passed(body)
    assert not paths(fields, MAIL)
    assert paths(fields, "<EMAIL_ADDRESS>") == where
    error = await refused(orjson.loads(orjson.dumps(body).replace(MAIL.encode(), b"a zebra")))
    assert error.reason_name == "CONTENT_BLOCKED"


@pytest.mark.parametrize("body", [{"prompt": MAIL}, {"prompt": ["hi", MAIL]}])
async def test_completions(body: dict[str, Any]) -> None:
    fields = await passed({**body, "suffix": MAIL}, kind="completion")
    assert not paths(fields, MAIL)


async def test_what_is_not_text_passes_unseen() -> None:
    url = f"https://example.com/{MAIL}"
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": MAIL, "format": "wav"}},
    ]
    body = chat(user(parts), temperature=0.5, seed=2**60, n=None, stop=["\n"])
    assert await passed(body) == {"model": "m", **body}


async def test_media_of_that_name_elsewhere_is_text() -> None:
    tools = [{"function": {"parameters": {"properties": {"image_url": {"title": MAIL}}}}}]
    assert not paths(await passed(chat(user("hi"), tools=tools)), MAIL)


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"prompt": [1, 2, 3]}, "completion", "prompt"),
        ({"prompt": [[1, 2], [3]]}, "completion", "prompt"),
        ({"prompt": ["hi", 7]}, "completion", "prompt"),
        ({"prompt": [{"prompt_string": "hi"}]}, "completion", "prompt"),
        ({"prompt": "hi", "prompt_embeds": "AAAA"}, "completion", "prompt_embeds"),
        (chat(user("hi"), Prompt=[1]), "chat", "Prompt"),
        (chat(user("hi"), input_ids=[1]), "chat", "input_ids"),
    ],
)
async def test_prompts_that_are_no_text_are_refused(
    body: dict[str, Any], kind: Kind, param: str
) -> None:
    error = await refused(body, kind=kind)
    assert (error.reason_name, error.param) == ("UNSUPPORTED", param)


async def test_the_refusal_names_the_message() -> None:
    body = chat(user("hi"), user([{"type": "text", "text": "a zebra"}]))
    assert (await refused(body)).param == "messages[1].content"


async def test_names_of_fields_count_where_callers_choose_them() -> None:
    def tools(name: str) -> list[Any]:
        return [{"type": "function", "function": {"parameters": {"properties": {name: {}}}}}]

    assert (await refused(chat(user("hi"), tools=tools("a zebra")))).reason_name == (
        "CONTENT_BLOCKED"
    )
    error = await refused(chat(user("hi"), tools=tools(MAIL)), REDACT)
    assert error.reason_name == "CONTENT_BLOCKED"


@pytest.mark.parametrize("word", ["user", "content", "role", "text", "properties", "max_tokens"])
async def test_words_of_the_form_block_nothing(word: str) -> None:
    wanted = header.write(pb.Guardrails(blocked_patterns=[word]))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}]
    await passed(chat(user([{"type": "text", "text": "hi"}]), tools=tools, max_tokens=3), wanted)
    assert (await refused(chat(user(word)), wanted)).reason_name == "CONTENT_BLOCKED"


@pytest.mark.parametrize("between", ["", " "])
async def test_parts_are_searched_together(between: str) -> None:
    wanted = header.write(pb.Guardrails(blocked_patterns=["project\\s*zebra"]))
    parts = [{"type": "text", "text": f"project{between} ze"}, {"type": "text", "text": "bra"}]
    assert (await refused(chat(user(parts)), wanted)).reason_name == "CONTENT_BLOCKED"


async def test_a_name_that_stands_twice_goes_on_once() -> None:
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"a zebra"}],'
        b'"messages":[{"role":"user","content":"hi"}]}'
    )
    fields = await passed(body, BLOCK)
    assert fields["messages"] == [user("hi")]


def calling(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return chat({"role": "assistant", "tool_calls": [call]})


def arguments_of(fields: dict[str, Any]) -> str:
    return str(fields["messages"][0]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"to": "jane@example.com", "n": 1}', '{"to": "<EMAIL_ADDRESS>", "n": 1}'),
        ('{"to": "\\u006aane@example.com"}', '{"to": "<EMAIL_ADDRESS>"}'),
        # Names that stand twice hide nothing.
        ('{"to": "jane@example.com", "to": "you"}', '{"to": "you"}'),
        # What stays the same stays so to the letter.
        ('{"to":"you",  "n":1e2}', '{"to":"you",  "n":1e2}'),
        ('["jane@example.com"', '["<EMAIL_ADDRESS>"'),
        ('{"a": "\\ud800", "to": "jane@example.com"}', '{"a": "\\ud800", "to": "<EMAIL_ADDRESS>"}'),
    ],
)
async def test_arguments_are_read_as_engines_read_them(arguments: str, expected: str) -> None:
    assert arguments_of(await passed(calling(arguments))) == expected


async def test_numbers_in_arguments_are_texts() -> None:
    wanted = header.write(pb.Guardrails(redact=[pb.REDACTION_CREDIT_CARDS]))
    fields = await passed(calling('{"card": 4111111111111111, "n": 1}'), wanted)
    assert arguments_of(fields) == '{"card": "<CREDIT_CARD>", "n": 1}'


@pytest.mark.parametrize(
    "arguments",
    ['{"a": "a ze\\u0062ra"}', '{"a": "a zebra", "a": "you"}', '{"a zebra": 1}', "a zebra"],
)
async def test_arguments_are_searched(arguments: str) -> None:
    assert (await refused(calling(arguments))).reason_name == "CONTENT_BLOCKED"


async def test_deep_nesting_is_refused_and_no_fault_of_ours() -> None:
    data = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"x":'
    data += b"[" * 900 + b'"a"' + b"]" * 900 + b"}"
    assert (await refused(data, REDACT)).reason_name == "INVALID_JSON"


_NAMES = st.sampled_from(
    ["content", "text", "arguments", "messages", "prompt", "Prompt", "image_url", "role", MAIL, "x"]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([MAIL, '{"a": "jane@example.com"}', '{"a": [1, "\\ud800"]}', "user", "hi"]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_NAMES, inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_NAMES, _VALUES, max_size=4), st.lists(_VALUES, max_size=3))
def test_any_body_is_refused_or_comes_out_clean(fields: dict[str, Any], parts: list[Any]) -> None:
    texts = {"role": "user", "content": [each for each in parts if isinstance(each, dict)]}
    body = {**fields, "messages": [texts]}
    try:
        done = asyncio.run(passed(body))
    except MeshError as error:
        assert error.reason_name in ("CONTENT_BLOCKED", "INVALID_ARGUMENT", "UNSUPPORTED")
        return
    for path in paths(done, MAIL):
        assert (path[0], path[2], path[4]) == ("messages", "content", "image_url")


def test_length_counts_what_is_said() -> None:
    texts = BodyTexts({"model": "not counted", "messages": [user("1234"), user([{"text": "56"}])]})
    assert texts.prompt.chars == 6
