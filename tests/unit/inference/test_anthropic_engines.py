"""What engines are told of thinking and of answers that are begun, and how they count prompts."""

from typing import Any

import orjson
import pytest

from services.inference.engines import ENGINES
from services.inference.engines.dialect import EngineOptions
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.vllm import Vllm
from services.inference.requests import parse
from services.kit.errors import MeshError

ON = {"chat_template_kwargs": {"enable_thinking": True}}
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("engine", "bounded", "free", "none"),
    [
        ("llamacpp", {**ON, "thinking_budget_tokens": 9}, ON, OFF),
        ("vllm", {**ON, "thinking_token_budget": 9}, ON, OFF),
        ("sglang", None, ON, OFF),
        ("ollama", None, {"think": True}, {"think": False}),
        ("openai", None, {}, {}),
        ("tgi", None, None, {}),
        ("sim", None, None, {}),
    ],
)
def test_thinking(engine: str, bounded: Any, free: Any, none: Any) -> None:
    dialect = ENGINES[engine](EngineOptions())
    said = [dialect.thinking("m", budget) for budget in (9, None, 0)]
    assert said == [bounded, free, none]


def test_a_template_that_does_not_think() -> None:
    engine = LlamaCpp()
    engine._can_think = False
    assert [engine.thinking("m", budget) for budget in (9, None, 0)] == [None, None, {}]


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_answers_that_are_begun(engine: str) -> None:
    can = ENGINES[engine](EngineOptions()).continuation is not None
    assert can == (engine in ("llamacpp", "vllm", "sglang", "sim"))


class Exchange:
    def __init__(self, status: int, answer: bytes) -> None:
        self.status = status
        self._answer = answer

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *error: object) -> None:
        """Has nothing to close."""

    async def read_all(self) -> bytes:
        return self._answer


class Client:
    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._answers = list(answers)

    async def post(self, path: str, body: bytes) -> Exchange:
        self.asked.append((path, orjson.loads(body)))
        return Exchange(*self._answers.pop(0))


CHAT = parse("chat", b'{"model":"m","messages":[{"role":"user","content":"a"}],"max_tokens":4}')


async def test_llamacpp_counts_what_the_template_writes() -> None:
    client: Any = Client((200, b'{"prompt":"<a>"}'), (200, b'{"tokens":[1,2,3]}'))
    assert await LlamaCpp().count_prompt(client, CHAT) == 3
    assert client.asked[1] == (
        "/tokenize",
        {"content": "<a>", "add_special": True, "parse_special": True},
    )


async def test_vllm_counts_chats() -> None:
    client: Any = Client((200, b'{"count":7}'))
    assert await Vllm().count_prompt(client, CHAT) == 7
    assert client.asked == [("/tokenize", {"model": "m", "messages": CHAT.fields["messages"]})]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_engines_without_the_page_cannot_count(status: int) -> None:
    client: Any = Client((status, b""))
    assert await Vllm().count_prompt(client, CHAT) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((400, b'{"error":{"message":"no"}}'), "ENGINE_REJECTED"),
        ((500, b""), "ENGINE_FAILED"),
        ((200, b"[]"), "ENGINE_FAILED"),
        ((200, b"{"), "ENGINE_FAILED"),
    ],
)
async def test_engines_that_refuse_to_count(answer: tuple[int, bytes], reason: str) -> None:
    client: Any = Client(answer)
    with pytest.raises(MeshError) as caught:
        await Vllm().count_prompt(client, CHAT)
    assert caught.value.reason_name == reason
