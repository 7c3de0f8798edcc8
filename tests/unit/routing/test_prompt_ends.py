"""Prompts that are known to their end, for the sake of answers that nodes keep."""

from services.routing import prompt as prompts
from services.routing.facts import Facts

SHORT = b'"messages":[{"role":"user","content":"Hi?"}]}'


def test_a_short_prompt_is_a_block_where_it_is_read_to_its_end() -> None:
    assert not prompts.read("m", SHORT, len(SHORT)).blocks
    read = prompts.read("m", SHORT, len(SHORT), reads_end=True)
    assert read.share(len(read.blocks)) == 1.0
    spaced = SHORT.replace(b":", b": ")
    assert prompts.read("m", spaced, len(spaced), reads_end=True).blocks == read.blocks
    other = SHORT.replace(b"Hi?", b"Ho?")
    assert prompts.read("m", other, len(other), reads_end=True).blocks != read.blocks


def test_what_two_longer_ones_share_is_the_same_with_or_without_their_ends() -> None:
    text = bytes(range(65, 91)) * 60
    whole = prompts.read("m", text, len(text))
    ended = prompts.read("m", text, len(text), reads_end=True)
    assert ended.blocks[:-1] == whole.blocks
    assert ended.ends[-1] == len(text) > whole.ends[-1]
    longest = text * 10
    plain = prompts.read("m", longest[: prompts.CUT_BYTES], len(longest))
    assert prompts.read("m", longest[: prompts.CUT_BYTES], len(longest), reads_end=True) == plain


def test_whole_blocks_have_no_end_left_over() -> None:
    text = b"x" * 1024
    assert len(prompts.read("m", text, 1024, reads_end=True).blocks) == 2


def test_only_who_asks_for_it_is_read_so() -> None:
    for said, expected in ((True, True), (False, False), (None, False), ("yes", False)):
        facts = Facts()
        facts.take_fields({"enable_caching": said})
        assert facts.reuses_answers is expected
