"""What is asked in the bench of routing, and how well caches could answer it at best."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from services.inference.simulator.answers import answer_text
from services.inference.simulator.kv_cache import KvCache
from services.inference.simulator.prompt import chain, chat_text, tokens_of

_WORDS = """
agent answer asks before careful check choose client clear customer data details each
example field first follow format given hold house invoice item keep later level limit list
long mail manner mention name never number offer only order paper person place policy price
product quote reason record refund reply report rule says second send service short size
state step store table tell tone total under user value want week
""".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Question:
    """One request.

    Attributes:
        at_s: When it is asked, from the beginning on.
        tenant: Who asks, from 0.
        body: The fields of the request.
    """

    at_s: float
    tenant: int
    body: dict[str, object]


@dataclass(frozen=True)
class Workload:
    """Many tenants, each with a long system prompt of its own and short questions.

    Attributes:
        seed: Two workloads that differ only in `salt` have the same times, tenants and lengths.
        salt: Sets the prompts of one run apart from those of every other.
        skew: How unequal tenants are: the n-th asks in proportion to `1 / n ** skew`.
    """

    model: str
    tenants: int = 150
    system_tokens: int = 6000
    question_tokens: tuple[int, int] = (20, 100)
    answer_tokens: tuple[int, int] = (16, 48)
    skew: float = 0.0
    seed: int = 1
    salt: str = ""

    def first(self) -> list[Question]:
        """Returns a question of each tenant, to be asked before anything is measured."""
        chance = random.Random(f"first {self.seed}")
        order = list(range(self.tenants))
        chance.shuffle(order)
        return [self._question(0.0, tenant, chance) for tenant in order]

    def stream(self, rate: float, count: int) -> list[Question]:
        """Returns `count` questions that arrive at random, `rate` a second on average."""
        chance = random.Random(f"stream {self.seed} {rate}")
        weights = [(n + 1) ** -self.skew for n in range(self.tenants)]
        questions = []
        now = 0.0
        for _ in range(count):
            now += chance.expovariate(rate)
            (tenant,) = chance.choices(range(self.tenants), weights)
            questions.append(self._question(now, tenant, chance))
        return questions

    def _question(self, at_s: float, tenant: int, chance: random.Random) -> Question:
        own = random.Random(f"{self.salt} {self.seed} {tenant}")
        system = _text(own, self.system_tokens * 4)
        body = {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": chance.randint(*self.answer_tokens),
            "messages": [
                {"role": "system", "content": system},
                {
                    "role": "user",
                    "content": _text(chance, 4 * chance.randint(*self.question_tokens)),
                },
            ],
        }
        return Question(at_s, tenant, body)


def _text(chance: random.Random, characters: int) -> str:
    words: list[str] = []
    size = 0
    while size < characters:
        word = chance.choice(_WORDS)
        words.append(word)
        size += len(word) + 1
    return " ".join(words)[:characters]


def best_possible(
    before: Sequence[Question], measured: Sequence[Question], *, blocks: int, block_tokens: int
) -> float:
    """Returns the share of prompt tokens that one cache as large as all together would hit.

    Args:
        before: What was asked before.
        measured: What counts.
        blocks: The blocks of all nodes.
        block_tokens: Tokens of a block.
    """
    cache = KvCache(blocks)
    hit = total = 0
    for number, question in enumerate([*before, *measured]):
        text = chat_text(question.body)
        tokens = tokens_of(text)
        answer = question.body["max_tokens"]
        assert isinstance(answer, int)
        hashes = chain(0, text, block_tokens)
        lease = cache.take(
            hashes, -(-(tokens + answer) // block_tokens), (tokens - 1) // block_tokens
        )
        assert lease is not None
        if number >= len(before):
            hit += lease.matched * block_tokens
            total += tokens
        cache.publish(lease, len(hashes))
        seed = hashes[-1] if hashes else 0
        said = chain(seed, text + answer_text(answer), block_tokens, after=len(hashes))
        cache.release(lease, said)
    return hit / total
