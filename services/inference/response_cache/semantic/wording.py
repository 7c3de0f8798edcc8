"""Tells apart what vectors do not: questions of the same words that ask something else.

Models of sentences put `Flights from Paris to London` at 0.997 to `Flights from London to Paris`
and `Is it safe?` at 0.99 to `Is it not safe?` (docs/cache.md has the figures), nearer than most of
what does mean the same. So two questions count as different, however near their vectors are, where

* their numbers or signs are not the same in the same order: `2+2`, `2+3`, `version 3.1`;
* the words that they share come in another order;
* a word that only one of them has denies (in the languages of `_DENIALS`), is a name by its first
  letter, or ends with a word that only the other has: `unsafe`, `safe`.

It errs on the side of another call to the engine.
"""

import re
from collections import Counter
from collections.abc import Iterable

_EXACT = re.compile(r"\d(?:[\d.,:]*\d)?|[+*/\\%#&^~|<>=$€£¥@{}\[\]`]|-(?=\s*\d)|(?<=\d)-")
# Letters with the marks on them; where words have no blanks between them, each sign is one.
_MARKS = "\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0e31-\u0e3a\u0e47-\u0e4e"
_WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    rf"|[^\W\d_](?:[^\W\d_]|[{_MARKS}])*(?:['’][^\W\d_]+)*"
)
_SENTENCE_END = frozenset(".!?:\n")
_MIN_STEM = 3
_DENIALS = frozenset(
    {
        *("not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "without", "cannot"),
        *("nicht", "kein", "keine", "keinen", "keinem", "keiner", "nie", "niemals", "ohne"),
        *("pas", "jamais", "sans", "aucun", "aucune", "rien", "sin", "nunca", "jamás", "ningún"),
        *("non", "mai", "senza", "nessuno", "não", "sem", "nenhum", "niet", "geen", "nooit"),
        *("zonder", "не", "нет", "без", "никогда", "нельзя", "bez", "ikke", "inte", "utan"),
        *("不", "没", "沒", "未", "無", "无", "非", "别"),
    }
)


def may_mean_the_same(one: str, other: str) -> bool:
    """Says whether nothing in the wording of two questions tells that they ask something else."""
    if _EXACT.findall(one) != _EXACT.findall(other):
        return False
    first, second = _words(one), _words(other)
    here, there = Counter(first), Counter(second)
    shared = here & there
    if _in_order(first, shared) != _in_order(second, shared):
        return False
    only_here, only_there = here - shared, there - shared
    if any(_denies(word) for word in (*only_here, *only_there)):
        return False
    if not only_here.keys().isdisjoint(_names(one)) or not only_there.keys().isdisjoint(
        _names(other)
    ):
        return False
    return not any(
        len(a) != len(b) and min(len(a), len(b)) >= _MIN_STEM and (a.endswith(b) or b.endswith(a))
        for a in only_here
        for b in only_there
    )


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _in_order(words: Iterable[str], shared: Counter[str]) -> list[str]:
    """Returns the words that are shared, each as often as it is."""
    left = shared.copy()
    kept = []
    for word in words:
        if left[word] > 0:
            left[word] -= 1
            kept.append(word)
    return kept


def _denies(word: str) -> bool:
    return word in _DENIALS or word.endswith(("n't", "n’t"))


def _names(text: str) -> set[str]:
    """Returns the words that a capital marks: those that begin no sentence, and are not `I`."""
    names = set()
    for match in _WORD.finditer(text):
        word = match[0]
        before = text[: match.start()].rstrip(" \t\r\"'“”‘’«»([")
        if word[0].isupper() and len(word) > 1 and before and before[-1] not in _SENTENCE_END:
            names.add(word.casefold())
    return names
