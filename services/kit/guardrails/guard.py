"""Runs guardrails without holding up the calls of others."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.kit.guardrails.chain import Plugin, chain_of
from services.kit.guardrails.header import UnknownGuardrailsError
from services.kit.guardrails.prompt import Prompt

log = logging.getLogger(__name__)

# Below, the way to a thread and back costs more than the checks.
_MAX_CHARS_INLINE = 4096
_MAX_WAITING = 64
_RETRY_S = 1


class PromptGuard:
    """Checks prompts; long ones in a thread, one after the other, and a bounded number of them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="guardrails")
        self._waiting = 0

    async def check(self, wanted: str, prompt: Prompt) -> None:
        """Checks a prompt and replaces in it what must not go on.

        Args:
            wanted: The header `x-mesh-guardrails`.
            prompt: Its texts are changed in place.

        Raises:
            MeshError: `INPUT_TOO_LONG` or `CONTENT_BLOCKED`: the prompt is refused; `OVERLOADED`:
                too many long ones wait; `INTERNAL`: this version cannot do what is wanted.
        """
        try:
            plugins = chain_of(wanted)
        except UnknownGuardrailsError as error:
            # Never unchecked. Envoy tries another node, which may know it.
            log.error("guardrails are not known here", extra={"error": str(error)})
            raise MeshError(
                errors_pb2.ERROR_REASON_INTERNAL,
                "The mesh cannot check the prompt as the API key wants it.",
            ) from None
        if prompt.chars <= _MAX_CHARS_INLINE:
            _run(plugins, prompt)
            return
        if self._waiting >= _MAX_WAITING:
            raise MeshError(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"Too many long prompts wait to be checked. Try again in {_RETRY_S} s.",
                retry_after_s=_RETRY_S,
            )
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, _run, plugins, prompt)
        # Not before the thread is done with it: a caller that hangs up frees no place.
        future.add_done_callback(self._done)
        await asyncio.shield(future)

    def _done(self, future: "asyncio.Future[None]") -> None:
        self._waiting -= 1
        if not future.cancelled():
            # Read here, for nobody else does where the caller has hung up.
            future.exception()

    def close(self) -> None:
        """Takes no more prompts; the one in the thread ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _run(plugins: Sequence[Plugin], prompt: Prompt) -> None:
    for plugin in plugins:
        plugin.check(prompt)
