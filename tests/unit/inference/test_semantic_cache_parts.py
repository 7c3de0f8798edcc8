"""Which questions may have a near answer, what tells them apart, and which vectors are near."""

from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from services.inference.engines.dialect import Tokens
from services.inference.requests import OpenAIRequest, check
from services.inference.response_cache.key import CachedModels
from services.inference.response_cache.semantic.cache import SemanticCache
from services.inference.response_cache.semantic.nearest import Nearest, unit_vector
from services.inference.response_cache.semantic.question import Question, question_of
from services.inference.response_cache.semantic.wording import may_mean_the_same
from services.inference.response_cache.store import Answer, AnswerStore
from services.inference.settings import InferenceSettings
from services.kit.caller import Caller

CALLER = Caller(request_id="r", attempt=1, tenant="t", key_id="k", model="m")
G, H = b"group", b"other"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def chat(*contents: object, **fields: object) -> OpenAIRequest:
    """Returns a chat whose turns are the user's and the assistant's by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    said = {"model": "m", "messages": messages, **fields}
    return check("chat", orjson.dumps(said), said)


def question(request: OpenAIRequest, caller: Caller = CALLER, **more: object) -> Question | None:
    where = {"model": "m", "form": "whole", "generation": 0, **more}
    return question_of(caller, request, **where)  # type: ignore[arg-type]


def test_only_the_last_question_may_differ() -> None:
    first, second = question(chat("a?")), question(chat("b?", user="me"))
    assert first is not None
    assert second is not None
    assert first.rest == second.rest
    assert (first.text, second.text) == ("a?", "b?")
    parts = question(chat([{"type": "text", "text": "b?"}]))
    assert parts == second


def test_all_else_is_the_same_or_another_question() -> None:
    asked = [
        question(chat("a?")),
        question(chat("a?", temperature=0)),
        question(chat("a?", max_tokens=5)),
        question(chat("x", "y", "a?")),
        question(chat("x", "z", "a?")),
        question(chat("a?"), CALLER._replace(tenant="u")),
        question(chat("a?"), model="n"),
        question(chat("a?"), form="bytes"),
        question(chat("a?"), generation=1),
    ]
    assert None not in asked
    assert len({each.rest for each in asked if each}) == len(asked)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 1},
        {"logit_bias": {"5": 1}},
        {"response_format": {"type": "json_object"}},
        {"grammar": "root ::= x"},
        {"guided_json": {}},
        {"modalities": ["text", "audio"]},
        {"unknown_to_us": 0},
    ],
)
def test_what_wants_an_answer_of_a_form_has_no_near_one(fields: dict[str, object]) -> None:
    assert question(chat("a?", **fields)) is None


def test_what_asks_for_nothing_is_no_form() -> None:
    neutral = {"n": 1, "logprobs": False, "tools": None, "response_format": {"type": "text"}}
    assert question(chat("a?", **neutral)) is not None


@pytest.mark.parametrize(
    "request_",
    [
        chat("a?", "an assistant's"),
        chat(" "),
        chat("x" * 1001),
        chat(None),
        chat([{"type": "text", "text": "a?"}, {"type": "text", "text": "b?"}]),
        chat([{"type": "image_url", "image_url": {"url": "data:,"}}]),
        chat([{"type": "text", "text": "a?", "cache_control": {"type": "ephemeral"}}]),
        chat(["a?"]),
        chat([]),
        check("completion", b"", {"model": "m", "prompt": "a?"}),
    ],
)
def test_what_is_no_question_in_plain_text(request_: OpenAIRequest) -> None:
    assert question(request_) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Name three colours.", "Please name three colours"),
        ("How do I reset my password?", "how can i reset my password"),
        ("What is the capital of France?", "what's the capital of france"),
        ("Explain what a mutex is.", "Can you explain what a mutex is?"),
        ("Is version 3.1 out?", "Is version 3.1 out yet?"),
        ("Write a haiku about rain.", "Write me a haiku about the rain."),
        ("Was ist die Hauptstadt von Frankreich?", "Wie heißt die Hauptstadt von Frankreich?"),
        ("法国的首都是什么?", "请问法国的首都是什么?"),
        ("It rains. What now?", "It rains. And what now?"),
        ("नमस्ते कैसे हो", "नमस्ते कैसे हो?"),
    ],
)
def test_other_words_for_the_same(one: str, other: str) -> None:
    assert may_mean_the_same(one, other)
    assert may_mean_the_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is it safe to eat raw eggs?", "Is it not safe to eat raw eggs?"),
        ("Is it safe to eat raw eggs?", "Isn't it safe to eat raw eggs?"),
        ("Is it safe to eat raw eggs?", "Is it unsafe to eat raw eggs?"),
        ("Convert 10 dollars to euros.", "Convert 10 euros to dollars."),
        ("Flights from Paris to London", "Flights from London to Paris"),
        ("Is Python faster than Go?", "Is Go faster than Python?"),
        ("Who won on Monday?", "Who won on Tuesday?"),
        ("Does version 3.1 do this?", "Does version 3.2 do this?"),
        ("What is 12*7?", "What is 12+7?"),
        ("What is 5-3?", "What is 5+3?"),
        ("What is 1.5?", "What is 15?"),
        ("What is -5?", "What is 5?"),
        ("Darf ich das?", "Darf ich das nicht?"),
        ("我可以去吗?", "我不可以去吗?"),
        ("从北京到上海", "从上海到北京"),
    ],
)
def test_nearly_the_same_words_for_something_else(one: str, other: str) -> None:
    assert not may_mean_the_same(one, other)
    assert not may_mean_the_same(other, one)


def vector(*values: float) -> np.ndarray:
    made = unit_vector(values)
    assert made is not None
    return made


def test_the_nearest_come_first_and_others_not_at_all() -> None:
    kept = Nearest(10)
    for key, values in ((b"a", (1, 0)), (b"b", (1, 0.1)), (b"c", (0, 1)), (b"d", (2, 0.05))):
        kept.put(G, key, key.decode(), vector(*values))
    kept.put(H, b"e", "e", vector(1, 0.06))
    found = kept.find(G, vector(1, 0.06), 0.9)
    assert [near.key for near in found] == [b"d", b"b", b"a"]
    assert found[0].similarity == pytest.approx(0.99939, abs=1e-4)
    assert [near.key for near in kept.find(G, vector(1, 0.06), 0.9, most=1)] == [b"d"]
    assert kept.find(G, vector(-1, 0), 0.5) == []
    assert kept.find(b"neither", vector(1, 0), 0.5) == []


def test_all_that_stay_are_found_whatever_goes() -> None:
    kept, rng = Nearest(50), np.random.default_rng(7)
    vectors = {bytes([i]): unit_vector(rng.standard_normal(8)) for i in range(200)}
    for i, (key, each) in enumerate(vectors.items()):
        kept.put(G if i % 3 else H, key, key.hex(), each)
        if i % 5 == 0:
            kept.drop(bytes([rng.integers(0, i + 1)]))
        assert len(kept) <= 50
    left = set(kept._keys)
    assert len(left) > 30
    for i, (key, each) in enumerate(vectors.items()):
        found = kept.find(G if i % 3 else H, each, 0.9999)
        assert [(near.key, near.text) for near in found] == ([(key, key.hex())] * (key in left))
    for key in vectors:
        kept.drop(key)
    assert (len(kept), kept._groups) == (0, {})


def test_the_oldest_go_and_what_is_kept_anew_is_young() -> None:
    kept = Nearest(2)
    for key in (b"a", b"b", b"a", b"c"):
        kept.put(G, key, "", vector(1, 0))
    assert {near.key for near in kept.find(G, vector(1, 0), 0.9)} == {b"a", b"c"}


def test_vectors_of_another_size_begin_anew() -> None:
    kept = Nearest(10)
    kept.put(G, b"a", "", vector(1, 0))
    assert kept.find(G, vector(1, 0, 0), 0.5) == []
    kept.put(G, b"b", "", vector(1, 0, 0))
    assert [near.key for near in kept.find(G, vector(1, 0, 0), 0.5)] == [b"b"]
    assert len(kept) == 1


@pytest.mark.parametrize(
    "values", [(), (0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0,) * 8193]
)
def test_what_is_no_direction(values: Sequence[float]) -> None:
    assert unit_vector(values) is None


def store(clock: Clock) -> AnswerStore:
    return AnswerStore(max_bytes=10_000, max_answer_bytes=2000, ttl_s=10, clock=clock)


def test_a_lent_answer_grows_no_younger() -> None:
    clock = Clock()
    kept = store(clock)
    kept.put(b"a", Answer((b"x",), Tokens(1, 2)))
    clock.now = 9
    lent = kept.lend(b"a", b"b", 0.97)
    assert lent == kept.get(b"b") == Answer((b"x",), Tokens(1, 2), similarity=0.97)
    assert kept.get(b"a") == Answer((b"x",), Tokens(1, 2))
    clock.now = 10
    assert kept.get(b"b") is None
    assert kept.lend(b"a", b"b", 0.97) is None
    assert (len(kept), kept.size) == (0, 0)


def test_an_answer_that_is_dropped_is_lent_to_nobody() -> None:
    kept = AnswerStore(max_bytes=4000, max_answer_bytes=2000, ttl_s=10)
    # Equal answers are not the same one.
    for key in (b"a", b"c"):
        kept.put(key, Answer((bytes(1),), Tokens(1, 2)))
    lent = kept.lend(b"a", b"b", 0.97)
    assert lent is not None
    size = kept.size
    kept.drop(lent)
    assert kept.get(b"a") is kept.get(b"b") is kept.lend(b"a", b"b", 0.97) is None
    assert kept.get(b"c") is not None
    assert (len(kept), kept.size) == (1, size // 3)


class Vectors:
    """Makes vectors by a list, and counts."""

    def __init__(self, **known: Sequence[float]) -> None:
        self.known = known
        self.asked: list[str] = []

    async def embed(self, text: str) -> Sequence[float] | None:
        self.asked.append(text)
        return self.known.get(text)


async def test_what_was_forgotten_is_not_found_and_the_next_is() -> None:
    vectors = Vectors(one=(1, 0), two=(1, 0.1), three=(1, 0.2))
    near = Nearest(10)
    cache = SemanticCache(CachedModels(["m"]), vectors.embed, near, 0.9)
    answers = store(Clock())

    async def ask(text: str):
        return await cache.ask(CALLER, chat(text), "m", "whole", 0)

    for text in ("one", "two"):
        asked = await ask(text)
        assert asked is not None
        cache.keep(asked, text.encode())
    answers.put(b"one", Answer((b"1",), Tokens()))
    asked = await ask("three")
    assert asked is not None
    found = cache.find(asked, b"three", answers)
    # The nearer one has no answer any more.
    assert found is not None
    assert found.pieces == (b"1",)
    assert len(near) == 1
    assert answers.get(b"three") == found


async def test_models_that_are_not_named_are_not_embedded() -> None:
    vectors = Vectors(one=(1, 0))
    cache = SemanticCache(CachedModels(["n-*"]), vectors.embed, Nearest(10), 0.9)
    assert await cache.ask(CALLER, chat("one"), "m", "whole", 0) is None
    assert vectors.asked == []
    assert await cache.ask(CALLER, chat("one"), "n-1", "whole", 0) is not None
    assert await cache.ask(CALLER, chat("no vector"), "n-1", "whole", 0) is None


SETTINGS = {
    "listen": "127.0.0.1:1",
    "node_id": "n",
    "engine_url": "http://127.0.0.1:2",
    "mesh_address": "127.0.0.1:3",
    "node_key": "im-x",
    "state_dir": "/nowhere",
    "semantic_cache_models": "m",
}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({}, "INFERMESH_SEMANTIC_CACHE_EMBEDDING_MODEL"),
        (
            {"semantic_cache_embedding_model": "e", "response_cache_mib": 0},
            "INFERMESH_RESPONSE_CACHE_MIB",
        ),
    ],
)
def test_what_the_settings_need(more: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        InferenceSettings(**{**SETTINGS, **more})  # type: ignore[arg-type]
