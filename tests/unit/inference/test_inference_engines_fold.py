from services.inference.fold import Fold


def chunk(finish_reason=None, **delta):
    return {"choices": [{"index": 0, "finish_reason": finish_reason, "delta": delta}]}


def test_fields_that_only_some_engines_have_are_kept():
    fold = Fold("chat", "m")
    fold.add(chunk(content="a", annotations=[1], thought="x", score=1))
    fold.add(chunk(content="b", annotations=[2], thought="y", score=2, nothing=None))
    fold.add(chunk(finish_reason="stop"))
    message = fold.result(None)["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": "ab",
        "annotations": [1, 2],
        "thought": "xy",
        "score": 2,
    }
