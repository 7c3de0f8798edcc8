"""Flame graphs of what perf prints."""

from xml.etree import ElementTree

from bench_flame import draw, stacks_of

_SCRIPT = """wrk:worker_0
        5581 inner<int> (/bin/envoy)
        5582 outer (/bin/envoy)
        5583 [unknown] (/bin/envoy)
        5584 [unknown] (/bin/envoy)
        5585 [unknown] (/lib/libc.so.6)

wrk:worker_0
        5582 outer (/bin/envoy)

main thread
        5590 a & b (c) ([kernel.kallsyms])
        0 [unknown] ([unknown])
"""


def test_samples_become_stacks() -> None:
    assert stacks_of(_SCRIPT.splitlines()) == {
        ("wrk:worker_0", "[libc.so.6]", "[envoy]", "outer", "inner<int>"): 1,
        ("wrk:worker_0", "outer"): 1,
        ("main thread", "[[unknown]]", "a & b (c)"): 1,
    }


def test_widths_are_shares() -> None:
    graph = ElementTree.fromstring(draw("auth <1>", {("main", "f"): 3, ("main", "g"): 1}))
    space = "{http://www.w3.org/2000/svg}"
    found = {}
    for group in graph.iter(f"{space}g"):
        title, rect = group.find(f"{space}title"), group.find(f"{space}rect")
        assert title is not None and title.text and rect is not None
        found[title.text.split(":")[0]] = float(rect.attrib["width"])
    assert found["all"] == found["main"]
    assert round(found["f"] / found["g"], 1) == 3.0


def test_an_empty_profile_is_drawn() -> None:
    ElementTree.fromstring(draw("nothing", {}))
