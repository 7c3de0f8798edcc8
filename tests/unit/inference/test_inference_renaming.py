import pytest

from services.inference.renaming import Renaming


def test_the_same_name_changes_nothing():
    renaming = Renaming("m")
    events = b'data: {"model":"m"}\n\n'
    assert renaming.apply(events) is events
    assert not renaming.is_needed


@pytest.mark.parametrize("space", [b"", b" "])
def test_another_name_is_replaced_in_every_event(space):
    renaming = Renaming("ours")
    event = b'data: {"id":1,"model":' + space + b'"/models/x.gguf","n":1}\n\n'
    ours = event.replace(b"/models/x.gguf", b"ours")
    assert renaming.apply(event) == ours
    assert renaming.is_needed
    assert renaming.apply(event + event) == ours + ours
    assert renaming.apply(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"


def test_what_is_said_stays():
    renaming = Renaming("ours")
    said = rb'data: {"choices":[{"delta":{"content":"\"model\":\"x\""}}],"model":"x"}' + b"\n\n"
    assert renaming.apply(said) == said[: said.rindex(b'"x"')] + b'"ours"}\n\n'


def test_it_waits_for_an_event_that_names_one():
    renaming = Renaming("ours")
    assert renaming.apply(b": ping\n\n") == b": ping\n\n"
    assert renaming.apply(b'data: {"model":"x"}\n\n') == b'data: {"model":"ours"}\n\n'


def test_names_are_json():
    renaming = Renaming('a"b')
    assert renaming.apply(b'data: {"model":"org\\/x"}\n\n') == b'data: {"model":"a\\"b"}\n\n'
