"""Measures what checking a bearer token costs auth, in CPU time of one core; a few seconds.

    PYTHONPATH=tests .venv/bin/python tests/bench/oidc_tokens.py

Each figure is the best of three.
"""

import asyncio
import time
from collections.abc import Callable

from services.auth import access, audit_policy, contracts
from services.auth.audit import Recorder
from services.auth.decision import Decider
from unit.auth.auth_samples import REST_CHAT, USER, check_request, make_ring, rest_headers
from unit.auth.oidc_samples import ALGORITHMS, World, ready, token

_TOKENS = 200
_ROUNDS = 20


def cost_us(act: Callable[[], None], count: int) -> float:
    """Returns the CPU time of one of the `count` things that `act` does, in microseconds."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        act()
        best = min(best, time.process_time() - start)
    return best / count * 1e6


def first_time(world: World, algorithm: str) -> None:
    """Prints what tokens cost that were not seen before."""
    good = [token(algorithm, sub=str(number)) for number in range(_TOKENS)]
    bad = [text[:-20] + "A" * 20 for text in good]

    def verify(texts: list[str]) -> None:
        world.bearers._seen.clear()
        for text in texts:
            world.bearers.find(text)

    right, wrong = (cost_us(lambda texts=texts: verify(texts), _TOKENS) for texts in (good, bad))
    print(f"{algorithm}: first time {right:.0f} us, wrong signature {wrong:.0f} us")


def seen_before(world: World, padding: int) -> None:
    """Prints what a token costs that was seen before."""
    texts = [token("RS256", sub=str(number), pad="p" * padding) for number in range(_TOKENS)]
    for text in texts:
        world.bearers.find(text)

    def look_up() -> None:
        for _ in range(_ROUNDS):
            for text in texts:
                world.bearers.find(text)

    spent = cost_us(look_up, _ROUNDS * _TOKENS)
    print(f"seen before, {len(texts[0])} characters: {spent:.2f} us")


def decisions(world: World) -> None:
    """Prints what a whole decision costs, for a key and for a token that was seen before."""
    table = audit_policy.mark(access.build_table(contracts.services()), inference=False)
    decider = Decider(
        make_ring(),
        table,
        access.ModelNames(),
        Recorder(lambda *_: None),
        bearers=world.bearers,
    )
    for name, secret in (("a key", USER), ("a token", token("RS256"))):
        request = check_request(REST_CHAT, rest_headers(secret), rest={"model": "smollm2-135m"})

        def decide(request: object = request) -> None:
            for _ in range(_ROUNDS * _TOKENS):
                decider.decide(request)

        print(f"a decision for {name}: {cost_us(decide, _ROUNDS * _TOKENS):.2f} us")


async def main() -> None:
    """Measures everything."""
    world = await ready()
    for algorithm in ALGORITHMS:
        first_time(world, algorithm)
    for padding in (0, 1000, 5000):
        seen_before(world, padding)
    decisions(world)


if __name__ == "__main__":
    asyncio.run(main())
