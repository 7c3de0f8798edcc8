"""The simulator's key-value cache and the hashes that it goes by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.simulator.kv_cache import KvCache, Lease
from services.inference.simulator.prompt import chain


def taken(cache: KvCache, hashes: list[int], blocks: int | None = None) -> Lease:
    lease = cache.take(hashes, blocks or len(hashes), len(hashes))
    assert lease is not None
    cache.publish(lease, len(hashes))
    return lease


def test_a_block_hash_covers_everything_before_it() -> None:
    one = chain(1, "a" * 64 + "b" * 64 + "c" * 64, 16)
    other = chain(1, "x" + "a" * 63 + "b" * 64 + "c" * 64, 16)
    assert len(one) == 3
    assert not set(one) & set(other)
    assert chain(2, "a" * 64, 16) != one[:1]


def test_blocks_that_are_not_full_have_no_hash() -> None:
    assert chain(1, "a" * 63, 16) == []
    assert len(chain(1, "a" * 65, 16)) == 1


def test_a_chain_can_be_continued() -> None:
    text = "abcd" * 64
    whole = chain(7, text, 16)
    assert chain(whole[1], text, 16, after=2) == whole[2:]


def test_a_prefix_is_found_while_it_is_used_and_after() -> None:
    cache = KvCache(10)
    first = taken(cache, [1, 2, 3])
    second = taken(cache, [1, 2, 9])
    assert (first.matched, second.matched) == (0, 2)
    cache.release(first)
    cache.release(second)
    assert cache.use == 0.0
    assert taken(cache, [1, 2, 3, 4]).matched == 3


def test_a_hole_ends_the_match() -> None:
    cache = KvCache(10)
    cache.release(taken(cache, [1, 2]))
    cache.release(taken(cache, [7, 8]))
    assert taken(cache, [1, 99, 2]).matched == 1


def test_shared_blocks_count_once() -> None:
    cache = KvCache(10)
    taken(cache, [1, 2, 3, 4])
    taken(cache, [1, 2, 3, 5])
    assert cache.use == pytest.approx(0.5)


def test_only_published_blocks_are_found() -> None:
    cache = KvCache(10)
    lease = cache.take([1, 2, 3], 4, 3)
    assert lease is not None
    cache.publish(lease, 1)
    cache.release(lease)
    assert cache.remembered == 1
    assert taken(cache, [1, 2, 3]).matched == 1


def test_what_was_used_longest_ago_goes_first_and_tails_before_heads() -> None:
    cache = KvCache(6)
    cache.release(taken(cache, [1, 2, 3]))
    cache.release(taken(cache, [4, 5, 6]))
    cache.release(taken(cache, [7]))  # takes the memory of block 3
    found = cache.take([1, 2, 3], 3, 3)
    assert found is not None
    assert found.matched == 2
    cache.release(found)
    assert taken(cache, [4, 5]).matched == 2


def test_there_is_nothing_where_there_is_no_memory() -> None:
    cache = KvCache(4)
    lease = taken(cache, [1, 2, 3])
    assert cache.take([8, 9], 2, 2) is None
    assert cache.use == pytest.approx(0.75)
    # What it would have woken is as it was.
    cache.release(lease)
    other = taken(cache, [8, 9])
    assert cache.take([1, 2, 3], 3, 3) is None
    cache.release(other)
    assert taken(cache, [1]).matched == 1


def test_the_blocks_of_an_answer_are_found_by_the_next_turn() -> None:
    cache = KvCache(8)
    lease = taken(cache, [1, 2], 4)
    cache.release(lease, [3])
    assert taken(cache, [1, 2, 3, 4]).matched == 3


def test_a_cache_can_be_emptied_of_what_nobody_uses() -> None:
    cache = KvCache(8)
    cache.release(taken(cache, [1, 2]))
    taken(cache, [5])
    cache.forget()
    assert taken(cache, [1, 2]).matched == 0
    assert taken(cache, [5]).matched == 1


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True), st.booleans()),
        max_size=60,
    )
)
def test_memory_is_neither_lost_nor_made(steps: list[tuple[list[int], bool]]) -> None:
    cache = KvCache(12)
    held: list[Lease] = []
    for hashes, keeps in steps:
        lease = cache.take(hashes, len(hashes) + 1, len(hashes))
        if lease is None:
            assert held
            cache.release(held.pop(0))
            continue
        cache.publish(lease, len(hashes))
        assert 0 < cache.use <= 1
        if keeps:
            held.append(lease)
        else:
            cache.release(lease)
        assert cache.remembered <= 12
    for lease in held:
        cache.release(lease)
    assert cache.use == 0
    # All of it can be had again.
    assert cache.take(list(range(100, 112)), 12, 12) is not None
