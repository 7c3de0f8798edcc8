"""Runs llama.cpp's own HTTP server in this process, from the prebuilt wheel `xllamacpp`.

    python -m services.inference.llamacpp_server --model FILE --port 17031 --alias smollm2-135m

The server binds to loopback only: it has no keys, the inference proxy beside it is its guard.
"""

import argparse
import signal
import sys
from pathlib import Path

import xllamacpp

_EMBEDDING_BATCH = 2048


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serves one GGUF model over llama.cpp's HTTP.")
    parser.add_argument("--model", type=Path, required=True, help="The GGUF file.")
    parser.add_argument("--port", type=int, required=True, help="The port on 127.0.0.1.")
    parser.add_argument("--alias", required=True, help="The model's name in the mesh.")
    parser.add_argument("--embeddings", action="store_true", help="Serve vectors, not chats.")
    parser.add_argument("--parallel", type=int, default=4, help="Requests at the same time.")
    parser.add_argument("--ctx", type=int, default=8192, help="Context tokens over all of them.")
    parser.add_argument("--threads", type=int, default=1, help="Threads that compute.")
    return parser.parse_args()


def _params(args: argparse.Namespace) -> "xllamacpp.CommonParams":
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.model_alias = {args.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx
    # Threads equal to the cores of a small box collapse as soon as two engines share it.
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    # One HTTP thread per running stream, and a few for probes, so that health never queues.
    params.n_threads_http = args.parallel * 4 + 4
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.n_batch = params.n_ubatch = 128
    params.ui = False
    params.cache_ram_mib = 256
    # Only warnings and errors: the default prints several lines for each request.
    params.verbosity = 1
    if args.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.embd_normalize = 2
        params.n_batch = params.n_ubatch = _EMBEDDING_BATCH
    return params


def main() -> None:
    """Serves until it is told to stop. Exits with status 1 where the model does not load."""
    args = _arguments()
    if not args.model.is_file():
        print(f"no such model file: {args.model}", file=sys.stderr)
        raise SystemExit(1)
    # llama.cpp's threads must not take the signals: block them here, before it starts any, and
    # wait for them.
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        server = xllamacpp.Server(_params(args))
    except RuntimeError as error:
        print(f"llama.cpp did not start: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"llama.cpp serves {args.alias} at {server.listening_address}", file=sys.stderr)
    signal.sigwait(stopping)


if __name__ == "__main__":
    main()
