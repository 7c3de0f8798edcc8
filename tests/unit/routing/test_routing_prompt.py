"""What is read of a prompt, and what it costs."""

import json
import re
import string
from pathlib import Path

from services.routing import gateway, prompt
from services.routing.prompt import CUT_BYTES, HEAD_BYTES, cut, read

ENVOY = Path(__file__).parents[3] / "envoy" / "envoy.yaml"


def body(system: str, question: str = "?", **form: object) -> bytes:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return json.dumps({"model": "m", "messages": messages}, **form).encode()  # type: ignore


def text(length: int, seed: str = "") -> str:
    words = (f"{seed}{i * i % 9973}" for i in range(length))
    return " ".join(words)[:length]


def blocks(raw: bytes, model: str = "m") -> list[int]:
    taken = cut(raw)
    assert taken is not None
    return list(read(model, *taken).blocks)


def shared(one: bytes, other: bytes) -> int:
    pairs = zip(blocks(one), blocks(other), strict=False)
    return sum(a == b for a, b in pairs)


def test_a_shared_start_gives_the_same_hashes_and_a_difference_changes_all_after_it() -> None:
    system = text(6000)
    one, other = body(system, "What is this?"), body(system, "And what is that, if not this?")
    # What is left of the head's 4 KiB without blanks, and a sample at 5 KiB.
    assert shared(one, other) == len(blocks(one)) >= 8
    changed = system[:700] + "#" + system[701:]
    assert shared(one, body(changed)) == 1


def test_hashes_are_the_models_own() -> None:
    raw = body(text(2000))
    assert not set(blocks(raw, "m")) & set(blocks(raw, "m-lora"))


def test_blanks_do_not_count() -> None:
    system = text(3000)
    compact, wide = body(system, separators=(",", ":")), body(system, indent=2)
    assert compact != wide
    assert blocks(compact) == blocks(wide)


def test_late_differences_are_seen() -> None:
    for at in (5000, 20_000, 60_000, 200_000):
        system = text(260_000)
        other = system[:at] + string.ascii_letters * 8 + system[at:]
        same = shared(body(system), body(other))
        covered = prompt._SAMPLE_ENDS[same - 8 - 1] if same > 8 else HEAD_BYTES
        assert same < len(blocks(body(system)))
        # No further than one sample past the difference.
        assert covered < at * 1.35 + 2048


def test_a_cut_is_bounded_whatever_the_prompt() -> None:
    for size in (1, 511, 4096, 70_000, 3_000_000):
        taken = cut(body("x" * size))
        assert taken is not None
        assert len(taken[0]) <= CUT_BYTES
        found = read("m", *taken)
        assert len(found.blocks) == len(found.ends) <= 44
        assert list(found.ends) == sorted(found.ends)
        assert 0.0 <= found.share(len(found.blocks)) <= 1.0


def test_the_share_is_that_of_the_whole_prompt() -> None:
    taken = cut(body("y" * 8000))
    assert taken is not None
    found = read("m", *taken)
    assert found.share(0) == 0.0
    assert 0.05 < found.share(1) < 0.08
    assert found.share(len(found.blocks)) > 0.85


def test_a_body_without_a_prompt_has_no_cut() -> None:
    assert cut(b'{"model":"m","input":["a"]}') is None
    assert cut(b"") is None
    assert cut(b'{"prompt":"Once upon a time"}') is not None


def test_any_bytes_can_be_read() -> None:
    for taken in (b"", b" " * 5000, bytes(range(256)) * 40, b"\xff" * CUT_BYTES):
        found = read("m", taken, len(taken))
        assert len(found.blocks) == len(found.ends)


def test_envoy_says_what_is_read() -> None:
    config = ENVOY.read_text()
    for namespace in (
        gateway.REQUEST_NAMESPACE,
        gateway.PROMPT_NAMESPACE,
        gateway.FALLBACKS_NAMESPACE,
    ):
        assert re.search(rf"metadata_context_namespaces: &told \[.*{re.escape(namespace)}", config)
