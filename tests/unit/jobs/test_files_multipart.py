"""Forms are read however they are cut; a file is never in memory as a whole."""

import pytest

from jobs_world import multipart
from services.jobs.files import multipart as forms
from services.jobs.files.multipart import Form
from services.kit.errors import MeshError


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_however_it_is_cut(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "PIECE_BYTES", 100)
    text = b"\r\n--x\r\n--".replace(b"x", b"y") * 50 + bytes(range(256))
    body = multipart(text, **{"expires_after[seconds]": "3600"})
    form, found = Form(body.content_type, 10_000), []
    for start in range(0, len(body.data), size):
        found += form.feed(body.data[start : start + size])
    assert {len(piece) for piece in found} == {100}
    assert b"".join([*found, form.rest()]) == text
    assert (form.filename, form.size) == ("in.jsonl", len(text))
    assert form.fields == {"purpose": "batch", "expires_after[seconds]": "3600"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-10], "INVALID_ARGUMENT"),
        (lambda data: data.replace(b'name="file"', b'name="other"'), "INVALID_ARGUMENT"),
        (lambda data: data.replace(b"\r\n--x--", b"x" * 5000 + b"\r\n--x--"), "REQUEST_TOO_LARGE"),
        (lambda data: data.replace(b"batch", b"b" * 5000), "INVALID_ARGUMENT"),
        (lambda data: b"--x\r\n" + b"a: b\r\n" * 500 + data[5:], "INVALID_ARGUMENT"),
    ],
)
def test_forms_that_are_none(change, reason: str) -> None:
    body = multipart(b"text")
    with pytest.raises(MeshError) as caught:
        form = Form(body.content_type, 4000)
        form.feed(change(body.data))
        form.rest()
    assert caught.value.reason_name == reason
