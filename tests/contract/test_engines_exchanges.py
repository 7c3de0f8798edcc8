"""Every engine's adapter against what the engine says: recorded, or written from its documentation.

What the adapter sends must be what the file holds: a request that the engine was never seen to
take is a surprise, and fails the test.
"""

import dataclasses
from pathlib import Path
from typing import Any

import orjson
import pytest

from exchanges import FOLDER, Calls, load, replaying, tokens_in
from services.inference.embedder import Embedder
from services.inference.engines import ENGINES
from services.inference.engines.dialect import EngineModel, EngineOptions
from services.kit.errors import MeshError

PATHS = sorted(FOLDER.glob("*/*.json"))


def cases(key: str) -> pytest.MarkDecorator:
    paths = [path for path in PATHS if key in load(path)]
    return pytest.mark.parametrize("path", paths, ids=[f"{p.parent.name}-{p.stem}" for p in paths])


def options_of(case: dict[str, Any]) -> EngineOptions:
    said = dict(case.get("options", {}))
    models = []
    for entry in said.pop("models", ()):
        name, _, use = entry.partition("=")
        is_embedding = use == "embeddings"
        models.append(EngineModel(name, can_chat=not is_embedding, can_embed=is_embedding))
    return EngineOptions(**said, models=tuple(models))


def as_json(value: object) -> Any:
    return orjson.loads(orjson.dumps(value))


def test_every_engine_has_its_exchanges():
    engines = {path.parent.name for path in PATHS}
    # The simulator speaks vLLM's dialect, and is tested as itself.
    assert engines == set(ENGINES) - {"sim"}
    for path in PATHS:
        source = load(path)["source"]
        assert source.startswith(("recorded from ", "written from documentation https://")), path
    for engine in engines:
        stems = {path.stem for path in PATHS if path.parent.name == engine}
        # One of them never chats.
        needed = {"describe"} if engine == "tei" else {"describe", "chat", "chat_stream"}
        assert needed <= stems


@cases("description")
async def test_what_an_engine_serves_and_how_busy_it_is(path: Path) -> None:
    case = load(path)
    async with replaying(case["exchanges"]) as replay:
        calls = Calls(path.parent.name, replay.url, options_of(case))
        description = await calls.engine.describe(calls.client)
        assert as_json(description) == case["description"]
        busy = await calls.engine.probe(calls.client)
        assert busy is not None
        assert as_json(dataclasses.asdict(busy)) == case["load"]
        calls.client.close()
    assert replay.surprises == []


@cases("asked")
async def test_a_call(path: Path) -> None:
    case = load(path)
    engine = path.parent.name
    described = load(path.parent / "describe.json")["exchanges"]
    kind, body = case["asked"]["kind"], case["asked"]["body"]
    async with replaying([*case["exchanges"], *described]) as replay:
        calls = Calls(engine, replay.url, options_of(case))
        calls.know(await calls.engine.describe(calls.client))
        if "refused" in case:
            with pytest.raises(MeshError) as caught:
                await calls.call(kind, body)
            refused = {"reason": caught.value.reason_name, "param": caught.value.param}
            assert refused == case["refused"]
        else:
            assert await calls.call(kind, body) == case["answered"]
        calls.client.close()
    assert replay.surprises == []
    tokens = [tokens_in(event) for event in calls.ledger.events]
    assert tokens == ([case["tokens"]] if "tokens" in case else tokens)
    # A refused call is accounted too, but took nothing that anybody knows.
    assert "answered" in case or tokens in ([{}], [])


@cases("embedded")
async def test_a_vector(path: Path) -> None:
    case = load(path)
    async with replaying(case["exchanges"]) as replay:
        calls = Calls(path.parent.name, replay.url, options_of(case))
        embedded = case["embedded"]
        (vector,) = await Embedder(calls.engine, calls.client).embed(
            embedded["model"], [embedded["text"]], 0
        )
        assert as_json(vector) == case["vector"]
        calls.client.close()
    assert replay.surprises == []


@pytest.mark.parametrize(
    ("case", "header"),
    [("azure_chat", "api-key: k"), ("chat", "authorization: Bearer k")],
)
async def test_the_key_goes_with_every_request(case: str, header: str) -> None:
    said = load(FOLDER / "openai" / f"{case}.json")
    options = dataclasses.replace(options_of(said), api_key="k")
    described = load(FOLDER / "openai" / "describe.json")["exchanges"]
    async with replaying([*said["exchanges"], *described]) as replay:
        calls = Calls("openai", replay.url, options)
        calls.know(await calls.engine.describe(calls.client))
        await calls.call(said["asked"]["kind"], said["asked"]["body"])
        calls.client.close()
    assert replay.heads
    assert all(f"\r\n{header}\r\n" in head for head in replay.heads)
