"""Flame graphs: stacks and how often each was seen, as one SVG (Brendan Gregg, 2011)."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH, _ROW, _TOP, _CHARACTER = 1200, 17, 40, 6.6
_LEAST_PX = 0.4

Stacks = Mapping[Sequence[str], int]
"""How often each stack was seen, its frames from the outermost in."""


@dataclass
class _Frame:
    seen: int = 0
    inner: dict[str, "_Frame"] = field(default_factory=dict)


def stacks_of(perf_script: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Reads what `perf script -F comm,ip,sym,dso` prints.

    A sample is a line with the thread's name, then its frames from the innermost out, indented,
    then an empty line. Frames without a symbol are one, named by the file that they are in.
    """
    found: Counter[tuple[str, ...]] = Counter()
    frames: list[str] = []
    thread = ""
    for line in [*perf_script, ""]:
        if not line.strip():
            if thread:
                found[(thread, *reversed(frames))] += 1
            thread, frames = "", []
        elif line[0].isspace() and thread:
            name = _name(line.strip())
            if not (frames and name == frames[-1] and name.startswith("[")):
                frames.append(name)
        else:
            thread = line.strip()
    return found


def _name(frame: str) -> str:
    """Returns the symbol of an address, or the file where it has none."""
    said, _, file = frame.partition(" ")[2].rpartition(" (")
    symbol = said.strip()
    return f"[{file.rstrip(')').rpartition('/')[2]}]" if symbol in ("", "[unknown]") else symbol


def draw(title: str, stacks: Stacks) -> str:
    """Returns the graph; hovering over a frame says what it is and its share."""
    root = _Frame()
    for frames, count in stacks.items():
        at = root
        at.seen += count
        for name in frames:
            at = at.inner.setdefault(name, _Frame())
            at.seen += count
    parts: list[str] = []
    deepest = _place(root, "all", 0.0, 0, _WIDTH / max(root.seen, 1), root.seen, parts)
    height = _TOP + (deepest + 1) * _ROW + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="monospace" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="10" y="24" font-size="15">{escape(title)}: {root.seen:,} samples</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _place(
    frame: _Frame, name: str, x: float, depth: int, scale: float, total: int, parts: list[str]
) -> int:
    """Draws a frame and what is in it; returns how deep that goes."""
    width = frame.seen * scale
    if width < _LEAST_PX:
        return depth
    y = _TOP + depth * _ROW
    share = 100 * frame.seen / max(total, 1)
    room = int(width / _CHARACTER) - 1
    shown = name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else ""
    label = f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(shown)}</text>' if shown else ""
    parts.append(
        f"<g><title>{escape(name)}: {frame.seen:,} samples, {share:.1f} %</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.3, 0.3):.1f}" height="{_ROW - 1}" '
        f'fill="{_color(name)}"/>{label}</g>'
    )
    deepest = depth
    for inner_name, inner in sorted(frame.inner.items()):
        deepest = max(deepest, _place(inner, inner_name, x, depth + 1, scale, total, parts))
        x += inner.seen * scale
    return deepest


def _color(name: str) -> str:
    """Returns a warm color, the same for the same function in each graph."""
    number = zlib.crc32(name.split("(")[0].encode())
    return f"hsl({number % 45 + 5}, {70 + number // 64 % 25}%, {62 + number // 4096 % 14}%)"
