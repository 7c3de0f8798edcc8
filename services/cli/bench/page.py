"""A run as one HTML page that needs nothing else: no script, no font, no address."""

from collections.abc import Sequence
from html import escape

from services.cli.bench import plots, screen
from services.cli.bench.compare import Comparison, Verdict
from services.cli.bench.figures import Report
from services.cli.bench.plots import Line

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--dim:#667085;--edge:#d9dee7;--back:#fff;--card:#f6f8fb;
--now:#c0392b;--then:#7a8aa0;--other:#3b7dd8;--good:#1d7f4e;--bad:#c0392b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--edge:#333b48;--back:#14181f;
--card:#1c222c;--now:#ff7a6b;--then:#8a99ad;--other:#74a8f0;--good:#5cc98f;--bad:#ff7a6b}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1020px;padding:28px 20px 60px;
font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
h1{font-size:22px;margin:0}h2{font-size:16px;margin:32px 0 10px}.dim,footer{color:var(--dim)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:20px 0}
.tile{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.tile span{color:var(--dim)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--dim);font-weight:500}
.wide{overflow-x:auto}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));
gap:16px}figure{margin:0;border:1px solid var(--edge);border-radius:8px;padding:10px 12px}
figcaption{font-weight:600}svg{width:100%;height:auto;display:block}
svg text{font-size:11px;fill:var(--dim)}.grid{stroke:var(--edge);stroke-width:.7}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}polyline.now{stroke:var(--now)}
polyline.then{stroke:var(--then);stroke-dasharray:5 3}polyline.other{stroke:var(--other)}
circle.now{fill:var(--now)}circle.then{fill:var(--then)}circle.other{fill:var(--other)}
.mark{stroke:var(--good);stroke-dasharray:2 3}.bar{fill:var(--other)}
.legend{color:var(--dim);font-size:12px}.key{margin-right:14px}.key:before{content:"";
display:inline-block;width:18px;margin-right:6px;vertical-align:middle;border-top:2px solid}
.key.now:before{border-color:var(--now)}.key.then:before{border-top-style:dashed;
border-color:var(--then)}.key.other:before{border-color:var(--other)}
.better{color:var(--good);font-weight:600}.worse,.failed{color:var(--bad);font-weight:600}
.verdict{border:1px solid var(--edge);border-left-width:5px;border-radius:6px;padding:8px 14px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px}dt{font-weight:600}dd{margin:0}
"""
_MEANING = {
    "time to first token": "from when a call is meant to begin to its first chunk with content",
    "inter-token latency": "between two chunks with content, each of them",
    "time per output token": "(end to end - time to first token) / (output tokens - 1) of a call",
    "end to end": "from when a call is meant to begin to its last chunk with content",
    "sent late by": "how long a call waited for room, or for this load, before it was sent; it is "
    "in the other times",
    "good answers": "those that keep all limits that were set: on the time to first token, and on "
    "the time per output token",
}


def page(found: Report, comparison: Comparison | None, earlier: Report | None) -> str:
    """Returns the page."""
    settings = found["settings"]
    title = f"infermesh bench: {settings['model']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="dim">{escape(_asked(found))}</div>',
        _tiles(found),
        *_compared(comparison),
        "<h2>Times, ms</h2>",
        _table(screen.SPREAD_COLUMNS, screen.spread_rows(found)),
        "<h2>Plots</h2>",
        f'<div class="plots">{"".join(_plots(found, earlier))}</div>',
        "<h2>The run</h2>",
        _table(("what", "value"), screen.summary_rows(found)),
        "<h2>Nodes</h2>",
        _table(screen.NODE_COLUMNS, screen.node_rows(found)),
        *(f"<p>{escape(line)}</p>" for line in screen.warnings(found)),
        "<h2>What is measured</h2><dl>",
        *(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in _MEANING.items()),
        "</dl>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _asked(found: Report) -> str:
    settings = found["settings"]
    if settings["rate"] is None:
        form = f"{settings['concurrency']} callers who wait for their answers"
    else:
        spread = "evenly spread" if settings["is_even"] else "at random times"
        form = f"{settings['rate']:g} calls a second {spread}, {settings['concurrency']} at a time"
    if settings["prompts"]:
        prompts = f"prompts from {settings['prompts']}"
    else:
        prompts = f"prompts of about {settings['prompt_tokens']} tokens"
        if settings["shared"]:
            prompts += f", {100 * settings['shared']:g} % of them the same"
    answers = "streams" if settings["is_stream"] else "whole answers"
    most = f"{answers} of {settings['output_tokens']} tokens at most"
    return f"{found['made']} · {found['address']} · {form} · {prompts} · {most}"


def _tiles(found: Report) -> str:
    rates, ms = found["rates"], found["ms"]
    tiles = [
        ("answers/s", rates["answers_per_s"]),
        ("output tokens/s", rates["output_tokens_per_s"]),
    ]
    if rates["goodput_per_s"] is not None:
        tiles.append(("good answers/s", rates["goodput_per_s"]))
    for name, words in (("ttft", "TTFT"), ("itl", "ITL"), ("e2e", "end to end")):
        if spread := ms[name]:
            tiles += [(f"{words} {p}, ms", spread[p]) for p in ("p50", "p99")]
    cells = [(name, screen.number(value), "") for name, value in tiles]
    failed = found["calls"]["failed"]
    cells.append(("failed", f"{failed:,}", "failed" if failed else ""))
    shown = (
        f'<div class="tile"><b class="{style}">{value}</b><span>{escape(name)}</span></div>'
        for name, value, style in cells
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def _compared(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    rows = screen.change_rows(comparison)
    verdict = comparison.verdict
    style = verdict.value if verdict in (Verdict.BETTER, Verdict.WORSE) else ""
    differing = "".join(f"<br>Asked differently: {escape(each)}" for each in comparison.differing)
    return [
        f"<h2>Against the run of {escape(comparison.made)}</h2>",
        f'<p class="verdict">Verdict: <span class="{style}">{verdict.value}</span>{differing}</p>',
        _table(screen.CHANGE_COLUMNS, rows),
    ]


def _plots(found: Report, earlier: Report | None) -> list[str]:
    settings = found["settings"]
    limits = {"ttft": settings["slo_ttft_ms"], "tpot": settings["slo_itl_ms"]}
    drawn = []
    for name in ("ttft", "itl", "tpot", "e2e"):
        lines = []
        for run, words, style in ((found, "now", "now"), (earlier, "then", "then")):
            spread = run["ms"].get(name) if run else None
            if spread:
                steps = len(spread["curve"]) - 1
                points = [(value, at / steps) for at, value in enumerate(spread["curve"])]
                lines.append(Line(words, points, style))
        title = screen.NAMES[name].capitalize()
        drawn.append(plots.curve_plot(title, lines, limits.get(name)))
    line, end = found["timeline"], found["window_s"]
    whole = [each for each in line if each["length_s"] > 0.5]
    per_s = [
        Line(
            name,
            [(each["s"] + each["length_s"] / 2, each[key] / each["length_s"]) for each in whole],
            style,
        )
        for name, key, style in (
            ("answered", "answered", "other"),
            *((("failed", "failed", "now"),) if found["calls"]["failed"] else ()),
        )
    ]
    drawn.append(plots.time_plot("Answers a second", per_s, end))
    firsts = [(each["s"] + each["length_s"] / 2, each["ttft_p50"]) for each in line]
    firsts_line = Line("p50", firsts, "other")
    drawn.append(plots.time_plot("Time to first token, p50, ms", [firsts_line], end))
    nodes = [
        (node, float(each["answers"]), f"{each['answers']:,}")
        for node, each in list(found["nodes"].items())[:24]
    ]
    drawn.append(plots.bar_plot("Answers by node", nodes))
    return [each for each in drawn if each]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in columns)
    lines = []
    for row in rows:
        cells = []
        for cell in row:
            style = f' class="{cell}"' if cell in ("better", "worse") else ""
            cells.append(f"<td{style}>{escape(cell)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
