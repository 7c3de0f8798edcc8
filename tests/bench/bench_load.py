"""The load that `make bench` puts on its targets."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_targets import MODEL, Target

_HERE = Path(__file__).parent
_CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 900}]}
_LONG = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 20_000}]}
LOADS = {  # what is asked, over how many connections, and whether each call makes a new one
    "unary, 1 KB, 16 callers": (_CHAT, 16, False),
    "unary, 1 KB, 64 callers": (_CHAT, 64, False),
    "unary, 100 KB, 16 callers": (_LONG, 16, False),
    "stream, 64 chunks, 16 callers": ({**_CHAT, "stream": True}, 16, False),
    "unary, new connections, 16 callers": (_CHAT, 16, True),
}

SLOW = "20 streams a second, 10 tokens each"
MANY = "500 streams at 20 tokens/s"
TOKENS_PER_S = 20.0
PACED = {  # tokens of an answer, streams, and how many of them begin in a second
    SLOW: (10, 160, 20.0),
    MANY: (200, 500, 100.0),
}
_GRACE_S = 10.0
"""How much later than an engine alone a target may be with the last stream."""


def wrk(target: Target, body: object, connections: int, seconds: int, churn: bool) -> dict:
    """Loads one target and returns what wrk measured."""
    headers = {**target.headers, **({"connection": "close"} if churn else {})}
    env = {
        **os.environ,
        "BENCH_BODY": json.dumps(body),
        "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in headers.items()),
    }
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"]
    command += ["--latency", "-s", str(_HERE / "post.lua"), f"{target.url}/v1/chat/completions"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), "")
    if not line:
        raise subprocess.SubprocessError(f"wrk says nothing of {target.name}")
    return json.loads(line.removeprefix("RESULT "))


async def paced(
    urls: Sequence[str], target: Target, tokens: int, count: int, per_second: float
) -> Mapping[str, float]:
    """Reads streams of a target, at its addresses, in another process and returns what it says.

    A stream that is not over ten seconds after the last one could be has failed, so that this ends
    whatever the target does.
    """
    order = {
        "urls": urls,
        "headers": dict(target.headers),
        "body": {**_CHAT, "stream": True, "max_tokens": tokens},
        "count": count,
        "per_second": per_second,
        "limit_s": count / per_second + tokens / TOKENS_PER_S + _GRACE_S,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_HERE / "bench_streams.py"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    said, _ = await process.communicate(json.dumps(order).encode())
    if process.returncode:
        raise subprocess.SubprocessError(f"bench_streams.py ended with {process.returncode}")
    return json.loads(said)
