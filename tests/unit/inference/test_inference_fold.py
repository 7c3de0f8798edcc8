from services.inference.fold import Fold

TOP = {"id": "chatcmpl-1", "created": 5, "model": "engine's", "system_fingerprint": "b1"}


def chunk(index=0, finish_reason=None, logprobs=None, **delta):
    choice = {"index": index, "finish_reason": finish_reason, "delta": delta}
    if logprobs is not None:
        choice["logprobs"] = logprobs
    return {"choices": [choice], "object": "chat.completion.chunk", **TOP}


def test_a_chat_becomes_what_the_engine_says_directly():
    fold = Fold("chat", "caller's")
    fold.add({**chunk(role="assistant", content=None), "prompt_progress": {"total": 3}})
    fold.add(chunk(role="assistant", content=None))
    fold.add(chunk(content="Hel", logprobs={"content": [{"token": "Hel"}]}))
    fold.add(chunk(content="lo", logprobs={"content": [{"token": "lo"}]}))
    fold.add(chunk(finish_reason="stop"))
    fold.add({**TOP, "choices": [], "usage": {"x": 1}, "timings": {"predicted_n": 2}})
    assert fold.result({"prompt_tokens": 1}) == {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": {"content": [{"token": "Hel"}, {"token": "lo"}]},
            }
        ],
        "created": 5,
        "model": "caller's",
        "system_fingerprint": "b1",
        "object": "chat.completion",
        "usage": {"prompt_tokens": 1},
        "id": "chatcmpl-1",
        "timings": {"predicted_n": 2},
    }


def test_tool_calls_are_merged_by_index():
    fold = Fold("chat", "m")

    def call(index, **fields):
        return chunk(tool_calls=[{"index": index, **fields}])

    fold.add(call(0, id="a", type="function", function={"name": "f", "arguments": ""}))
    fold.add(call(0, function={"arguments": '{"x":'}))
    fold.add(call(1, id="b", type="function", function={"name": "g", "arguments": "{}"}))
    fold.add(call(0, function={"arguments": "1}"}))
    fold.add(chunk(finish_reason="tool_calls"))
    message = fold.result(None)["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}, "id": "a"},
            {"type": "function", "function": {"name": "g", "arguments": "{}"}, "id": "b"},
        ],
    }


def test_thoughts_stay_apart_and_an_empty_answer_is_a_text():
    fold = Fold("chat", "m")
    fold.add(chunk(reasoning_content="hm"))
    fold.add(chunk(reasoning_content="m"))
    fold.add(chunk(finish_reason="length"))
    choice = fold.result(None)["choices"][0]
    assert choice["message"] == {"role": "assistant", "reasoning_content": "hmm", "content": ""}
    assert "logprobs" not in choice
    assert "usage" not in fold.result(None)


def test_answers_come_by_index_with_the_timings_of_the_first():
    fold = Fold("chat", "m")
    fold.add(chunk(index=1, content="b"))
    fold.add(chunk(index=1, finish_reason="stop"))
    fold.add({**TOP, "choices": [], "timings": 1})
    fold.add(chunk(index=0, content="a"))
    fold.add(chunk(index=0, finish_reason="stop"))
    fold.add({**TOP, "choices": [], "timings": 0})
    result = fold.result(None)
    assert [c["message"]["content"] for c in result["choices"]] == ["a", "b"]
    assert result["timings"] == 0


def test_a_completion():
    fold = Fold("completion", "m")
    for text in ("a", "b"):
        fold.add({"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]})
    fold.add({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "timings": {}})
    assert fold.result({}) == {
        "choices": [{"text": "ab", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "model": "m",
        "object": "text_completion",
        "usage": {},
        "timings": {},
    }
