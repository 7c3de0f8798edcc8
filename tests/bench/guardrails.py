"""Measures what each guardrail costs by the length of the prompt.

    python tests/bench/guardrails.py

Prints microseconds for prompts of 1, 10 and 100 KB, the best of several rounds: English text with
one thing of each kind in 10 KB, and Chinese text, which is normalised.
"""

import time
from collections.abc import Callable, Mapping

import orjson

from infermesh.auth.v1 import key_service_pb2 as pb
from services.inference.guardrails.body import BodyTexts
from services.kit import headers
from services.kit.guardrails import header
from services.kit.guardrails.chain import chain_of
from services.kit.guardrails.prompt import Prompt

SIZES = (1_000, 10_000, 100_000)
ENGLISH = "The quick brown fox jumps over the lazy dog while 1,234 people watch on page 56.\n"
CHINESE = "敏捷的棕色狐狸跳过了懒狗，同时有一千人在看；第５６页。\n"
FINDS = (
    "Mail jane.doe@example.com, call +49 30 901820, pay 4111 1111 1111 1111 or "
    "DE89 3704 0044 0532 0130 00 from 10.1.2.3 with AKIAIOSFODNN7EXAMPLE.\n"
)
PATTERNS = [f"(?i)project\\s+name{number}" for number in range(20)]
REDACTIONS = {name: number for name, number in pb.Redaction.items() if number}
ROUNDS = 15


def text_of(size: int, filling: str) -> str:
    lines = []
    length = 0
    while length < size:
        line = FINDS if not lines or len(lines) % 125 == 0 else filling
        lines.append(line)
        length += len(line.encode())
    return "".join(lines).encode()[:size].decode(errors="ignore")


def best_us(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        work()
        best = min(best, time.perf_counter_ns() - began)
    return best / 1000


def check(wanted: pb.Guardrails, text: str) -> Callable[[], object]:
    plugins = chain_of(header.write(wanted))

    def work() -> None:
        prompt = Prompt([text], ["prompt"])
        for plugin in plugins:
            plugin.check(prompt)

    return work


def body(text: str) -> Callable[[], object]:
    data = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
    fields = orjson.loads(data)

    def work() -> None:
        BodyTexts(fields).written()

    return work


def rows() -> Mapping[str, pb.Guardrails]:
    every = list(REDACTIONS.values())
    return {
        "length": pb.Guardrails(max_prompt_chars=10**8),
        "1 pattern": pb.Guardrails(blocked_patterns=PATTERNS[:1]),
        "20 patterns": pb.Guardrails(blocked_patterns=PATTERNS),
        **{
            name.removeprefix("REDACTION_").lower(): pb.Guardrails(redact=[number])
            for name, number in REDACTIONS.items()
        },
        "all six": pb.Guardrails(redact=every),
        "everything": pb.Guardrails(
            max_prompt_chars=10**8, blocked_patterns=PATTERNS, redact=every
        ),
    }


def off_us() -> float:
    """Returns what a call pays whose key has no guardrails: a look-up, and a look at the result."""
    said = {f"x-mesh-header-{number}": "value" for number in range(12)}
    repeats = range(100_000)

    def nothing() -> None:
        for _ in repeats:
            pass

    def looked() -> None:
        for _ in repeats:
            if said.get(headers.GUARDRAILS, ""):
                raise AssertionError

    return (best_us(looked) - best_us(nothing)) / len(repeats)


def main() -> None:
    print(f"no guardrails: {off_us():.3f} a call")
    for name, filling in (("English", ENGLISH), ("Chinese", CHINESE)):
        texts = [text_of(size, filling) for size in SIZES]
        print(f"\n{name:18}" + "".join(f"{size // 1000:>8} KB" for size in SIZES))
        for row, wanted in rows().items():
            costs = (best_us(check(wanted, text)) for text in texts)
            print(f"{row:18}" + "".join(f"{cost:11.1f}" for cost in costs))
        costs = (best_us(body(text)) for text in texts)
        print(f"{'body, read, written':18}" + "".join(f"{cost:11.1f}" for cost in costs))


if __name__ == "__main__":
    main()
