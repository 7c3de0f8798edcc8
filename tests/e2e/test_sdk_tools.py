"""Calls of functions with OpenAI's and Ollama's official SDKs; Anthropic's has its own file."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import ollama
import openai
import pytest

from e2e.fleet import Fleet
from e2e.mesh import REPOSITORY, Mesh
from e2e.tool_engine import tool_engine

MODEL = "sdk-tools"
ASKED: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOL: Any = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module", autouse=True)
def engine(fleet: Fleet) -> Iterator[None]:
    with tool_engine(MODEL) as made:
        fleet.join({"sdk-tools": ("--engine", "openai", "--url", made.url)})
        yield


@pytest.fixture
def client(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with mesh.openai(strict=True) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_chats_of_openais(client: openai.OpenAI, stream: bool) -> None:
    def ask(messages: list[Any]) -> Any:
        asked: Any = {"model": MODEL, "messages": messages, "tools": [TOOL]}
        if not stream:
            return client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.stream(**asked) as events:
            return events.get_final_completion().choices[0]

    choice = ask([ASKED])
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    made = {
        "role": "assistant",
        "tool_calls": [call.model_dump(include={"id", "type", "function"})],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}
    assert ask([ASKED, made, result]).message.content == "It is 20 degrees."


@pytest.mark.parametrize("stream", [False, True])
def test_responses_of_openais(client: openai.OpenAI, stream: bool) -> None:
    def ask(**more: Any) -> Any:
        asked: Any = {"model": MODEL, "tools": [{"type": "function", **FUNCTION}], **more}
        if not stream:
            return client.responses.create(**asked)
        with client.responses.stream(**asked) as events:
            list(events)
            return events.get_final_response()

    first = ask(input=ASKED["content"])
    (call,) = (item for item in first.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"}
    second = ask(input=[result], previous_response_id=first.id)
    assert second.output_text == "It is 20 degrees."


@pytest.mark.parametrize("stream", [False, True])
def test_chats_of_ollamas(mesh: Mesh, stream: bool) -> None:
    client = ollama.Client(host=mesh.url, headers={"authorization": f"Bearer {mesh.admin_key}"})

    def ask(messages: list[Any]) -> list[ollama.Message]:
        got = client.chat(MODEL, messages, tools=[TOOL], stream=stream)
        return [each.message for each in (got if stream else [got])]

    said = ask([ASKED])
    assert "".join(each.thinking or "" for each in said) == "I need a tool."
    (call,) = (call for each in said for call in each.tool_calls or ())
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    made = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "tool_name": "get_weather", "content": "20 degrees"}
    answered = ask([ASKED, made, result])
    assert "".join(each.content or "" for each in answered) == "It is 20 degrees."


def test_javascript(mesh: Mesh) -> None:
    done = subprocess.run(
        ["node", "tests/clients/tools_client.mjs", mesh.url, mesh.admin_key, MODEL],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, city = "It is 20 degrees.", {"city": "Paris"}
    assert json.loads(done.stdout) == {
        "openai": {"chat": told, "stream": told, "response": told},
        "ollama": {"call": city, "told": told, "streamed": city},
    }
