"""Every adapter's rankings and tokens against what its engine says."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from exchanges import FOLDER, load, replaying
from services.inference.engines import ENGINES
from services.inference.engines.asks import RerankAsk, TokenizeAsk
from services.inference.engines.dialect import EngineOptions
from services.inference.http_client import EngineClient
from services.kit.errors import MeshError

PATHS = sorted(FOLDER.glob("*/*.json"))


def cases(key: str) -> pytest.MarkDecorator:
    paths = [path for path in PATHS if key in load(path)]
    return pytest.mark.parametrize("path", paths, ids=[f"{p.parent.name}-{p.stem}" for p in paths])


def engine_of(path: Path) -> Any:
    return ENGINES[path.parent.name](EngineOptions())


@cases("ranked")
async def test_a_ranking(path: Path) -> None:
    case = load(path)
    said = case["ranked"]
    engine = engine_of(path)
    async with replaying(case["exchanges"]) as replay:
        client = EngineClient(replay.url, idle_timeout_s=5)
        with await client.post(*engine.reranking(RerankAsk(**said["ask"]))) as exchange:
            answer = await exchange.read_all()
        client.close()
    assert replay.surprises == []
    if "refused" in said:
        assert exchange.status == said["refused"]
        return
    ranking = engine.ranking(answer)
    assert [list(each) for each in ranking.scores] == said["scores"]
    assert ranking.tokens == said["tokens"]


@cases("tokenized")
async def test_tokens(path: Path) -> None:
    case = load(path)
    said = case["tokenized"]
    async with replaying(case["exchanges"]) as replay:
        client = EngineClient(replay.url, idle_timeout_s=5)
        tokenized = await engine_of(path).tokenize(client, TokenizeAsk(**said["ask"]))
        client.close()
    assert replay.surprises == []
    assert tokenized is not None
    assert (tokenized.ids, tokenized.texts) == (said["ids"], said["texts"])


@cases("detokenized")
async def test_a_text(path: Path) -> None:
    case = load(path)
    said = case["detokenized"]
    async with replaying(case["exchanges"]) as replay:
        client = EngineClient(replay.url, idle_timeout_s=5)
        text = await engine_of(path).detokenize(client, "m", said["tokens"])
        client.close()
    assert replay.surprises == []
    assert text == said["text"]


@pytest.mark.parametrize("name", ["tgi", "ollama", "openai"])
async def test_engines_without_a_tokenizer_of_their_own(name: str) -> None:
    engine = ENGINES[name](EngineOptions())
    client = EngineClient("http://127.0.0.1:1", idle_timeout_s=1)
    assert await engine.tokenize(client, TokenizeAsk("m", {"prompt": "a"})) is None
    assert await engine.detokenize(client, "m", [1]) is None


@pytest.mark.parametrize(
    ("name", "ask", "param"),
    [
        ("sglang", TokenizeAsk("m", {"messages": []}), "messages"),
        ("tei", TokenizeAsk("m", {"messages": []}), "messages"),
        ("sglang", TokenizeAsk("m", {"prompt": "a"}, wants_texts=True), "return_token_strs"),
        ("tgi", RerankAsk("m", "q", ["d"]), "model"),
        ("ollama", RerankAsk("m", "q", ["d"]), "model"),
    ],
)
async def test_what_an_engine_has_no_way_to_do(name: str, ask: Any, param: str) -> None:
    engine = ENGINES[name](EngineOptions())
    client = EngineClient("http://127.0.0.1:1", idle_timeout_s=1)
    with pytest.raises(MeshError) as caught:
        if isinstance(ask, RerankAsk):
            engine.reranking(ask)
        else:
            await engine.tokenize(client, ask)
    assert (caught.value.reason_name, caught.value.param) == ("UNSUPPORTED", param)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"tokens": [1, "2"]}, 200),
        ({"tokens": [-1]}, 200),
        ({"count": 2}, 200),
        ([1, 2], 200),
        ({"tokens": [1], "token_strs": ["a", "b"]}, 200),
    ],
)
async def test_tokens_of_another_form_are_the_engines_failure(said: Any, status: int) -> None:
    body = {"model": "m", "prompt": "a", "return_token_strs": True}
    exchange = {
        "request": {"method": "POST", "path": "/tokenize", "body": body},
        "response": {"status": status, "headers": {}, "chunks": [orjson.dumps(said).decode()]},
    }
    async with replaying([exchange]) as replay:
        client = EngineClient(replay.url, idle_timeout_s=5)
        with pytest.raises(MeshError) as caught:
            ask = TokenizeAsk("m", {"prompt": "a"}, wants_texts=True)
            await ENGINES["vllm"](EngineOptions()).tokenize(client, ask)
        client.close()
    assert caught.value.reason_name == "ENGINE_FAILED"


async def test_llamacpp_is_asked_for_no_token_that_there_is_not() -> None:
    case = load(FOLDER / "llamacpp" / "describe.json")
    async with replaying(case["exchanges"]) as replay:
        client = EngineClient(replay.url, idle_timeout_s=5)
        engine = ENGINES["llamacpp"](EngineOptions())
        await engine.describe(client)
        with pytest.raises(MeshError) as caught:
            await engine.detokenize(client, "m", [0, 49152])
        client.close()
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", "tokens[1]")
