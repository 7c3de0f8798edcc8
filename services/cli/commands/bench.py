"""`infermesh bench`: load against a running mesh, and what its callers see."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands.chat import DEFAULT_MODEL
from services.cli.options import DEFAULT_ADDRESS, Address, Key, fail

_DURATION_S = 30.0
_MOST_OPEN = 1000
_CALLERS = 8


def bench(
    model: Annotated[str, typer.Argument(help="The model to ask.")] = DEFAULT_MODEL,
    rate: Annotated[
        float | None,
        typer.Option(help="Calls a second, whether or not earlier ones are answered.", min=0.001),
    ] = None,
    even: Annotated[
        bool, typer.Option("--even", help="With --rate: evenly spread, not at random times.")
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help=f"Callers who ask again when answered, {_CALLERS} by default; with --rate the "
            f"most calls at a time, {_MOST_OPEN} by default.",
            min=1,
            max=20_000,
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="For how many seconds calls begin. Default: 30.", min=0.1, max=86_400),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="How many calls begin at most.", min=1, max=1_000_000)
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(help="The length of a prompt, about.", min=1, max=2_000_000)
    ] = 256,
    output_tokens: Annotated[
        int, typer.Option(help="The most tokens of an answer.", min=1, max=1_000_000)
    ] = 64,
    shared: Annotated[
        float, typer.Option(help="Which share of each prompt is the same, 0 to 1.", min=0, max=1)
    ] = 0.0,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='Take prompts from this file, one JSON a line: {"prompt": "…"} or '
            '{"messages": […]}, with further fields of the call.'
        ),
    ] = None,
    body: Annotated[
        str, typer.Option(help="Further fields of each call, as JSON.", metavar="JSON")
    ] = "",
    stream: Annotated[bool, typer.Option(help="Ask for streams.")] = True,
    slo_ttft: Annotated[
        float | None, typer.Option(help="Good answers begin within so many ms.", min=0)
    ] = None,
    slo_itl: Annotated[
        float | None, typer.Option(help="Good answers take so many ms a token at most.", min=0)
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="After how many seconds a call has failed.", min=0.1)
    ] = 120.0,
    warmup: Annotated[
        int, typer.Option(help="Calls that do not count, before the others.", min=0, max=1000)
    ] = 2,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Make the same prompts as another run; caches may know them. Default: others.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a report with plots to this file.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Compare with an earlier run's --json; where worse, the status is 1."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Which share of a figure is no difference.", min=0, max=1)
    ] = 0.05,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Measure a running mesh: time to first token, tokens per second, goodput."""
    import secrets

    from services.cli.bench import compare as comparing
    from services.cli.bench.page import page
    from services.cli.bench.plan import Plan
    from services.cli.bench.prompts import bodies
    from services.cli.bench.screen import show
    from services.cli.bench.session import Session, SessionError
    from services.cli.options import find_key

    if even and rate is None:
        fail("--even goes with --rate.")
    if (slo_itl is not None) and not stream:
        fail("--slo-itl goes with streams.")
    if duration is None and requests is None:
        duration = _DURATION_S
    plan = Plan(
        model=model,
        rate=rate,
        is_even=even,
        concurrency=concurrency or (_CALLERS if rate is None else _MOST_OPEN),
        duration_s=duration,
        requests=requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        shared=shared,
        is_stream=stream,
        timeout_s=timeout,
        warmup=warmup,
        seed=secrets.randbits(32) if seed is None else seed,
        slo_ttft_ms=slo_ttft,
        slo_itl_ms=slo_itl,
        prompts=str(prompts or ""),
        body=body,
    )
    try:
        earlier = comparing.read(compare) if compare else None
        session = Session(plan, bodies(plan), address, find_key(key))
        found = session.run()
    except (SessionError, ValueError, OSError) as error:
        fail(str(error))
    comparison = comparing.compare(earlier, found, tolerance) if earlier else None
    show(found, comparison)
    try:
        _write(json_file, session.as_json(found))
        _write(html_file, page(found, comparison, earlier))
    except OSError as error:
        fail(f"The report cannot be written: {error}")
    if not found["calls"]["answered"]:
        fail("No call was answered.")
    if comparison is not None and comparison.is_worse:
        raise typer.Exit(1)


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text)
        typer.echo(f"Written to {path}", err=True)
