"""The command line of the engine simulator.

python -m services.inference.simulator --port 17041 --port 17042 --prefill-rate 8000 \
    --decode-rate 50 --slots 32 --blocks 10000
"""

import argparse
import dataclasses
import sys

import uvloop

from services.inference.simulator.options import EngineOptions
from services.inference.simulator.server import serve

_DEFAULTS = EngineOptions()
_HELP = {
    "model": "The base model's name.",
    "prefill_rate": "Prompt tokens per second, over all prompts; 0 for at once.",
    "decode_rate": "Tokens per second of a lone sequence; 0 for at once.",
    "decode_slowdown": "By which share each further sequence makes a step longer.",
    "decode_in_prefill": "The share of the decode rate that is left during a prefill.",
    "slots": "Sequences at the same time.",
    "max_queue": "Sequences that wait at most.",
    "block_tokens": "Tokens of a block of the key-value cache.",
    "blocks": "Blocks of the cache; 0 for memory without end that remembers no prefixes.",
    "answer_tokens": "Tokens of an answer that the caller does not limit.",
    "chunk_interval_s": "Seconds between two chunks of a stream at least; 0 for one a token.",
    "context_tokens": "Prompt and answer together.",
    "dimensions": "The length of embedding vectors.",
}


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(
        prog="python -m services.inference.simulator",
        description="Simulates engines with vLLM's HTTP.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="The address to listen on.")
    parser.add_argument(
        "--port", type=int, action="append", required=True, help="A port; once for each engine."
    )
    parser.add_argument("--adapter", action="append", default=[], help="A LoRA adapter's name.")
    parser.add_argument(
        "--scheduling-policy", choices=("fcfs", "priority"), default="fcfs", help="The queue's."
    )
    parser.add_argument(
        "--embeddings", action="store_true", help="Serve vectors instead of answers."
    )
    parser.add_argument(
        "--stamped", action="store_true", help="Let chunks say when they left, not words."
    )
    for name, text in _HELP.items():
        default = getattr(_DEFAULTS, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=text)
    arguments = vars(parser.parse_args())
    try:
        options = dataclasses.replace(
            _DEFAULTS,
            adapters=tuple(arguments["adapter"]),
            by_priority=arguments["scheduling_policy"] == "priority",
            embeds=arguments["embeddings"],
            is_stamped=arguments["stamped"],
            **{name: arguments[name] for name in _HELP},
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        uvloop.run(serve(arguments["host"], arguments["port"], options))
    except OSError as error:
        sys.exit(f"the simulator cannot listen: {error.strerror or error}")


if __name__ == "__main__":
    main()
