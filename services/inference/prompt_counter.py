"""Counts the tokens of prompts with the engine's own tokenizer."""

import time

from services.inference import errors
from services.inference.accounting import Ledger
from services.inference.engines.dialect import Engine, Tokens
from services.inference.http_client import (
    EngineClient,
    EngineConnectError,
    EngineConnectionError,
    EngineTimeoutError,
)
from services.inference.relay import Relay
from services.inference.requests import OpenAIRequest
from services.inference.state import EngineState
from services.kit.caller import Caller


class PromptCounter:
    """Asks one engine.

    The model does nothing for it, so nobody waits for its room, and nothing counts as used. Only
    where auth has reserved something for the call the ledger hears of it, with no tokens: else the
    reservation would stand until it expires.

    Args:
        engine: The engine's dialect.
        client: Connections to it.
        relay: Says which model answers.
        ledger: Where calls are settled.
        state: What is known of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        client: EngineClient,
        relay: Relay,
        ledger: Ledger,
        state: EngineState,
    ) -> None:
        self._engine = engine
        self._client = client
        self._relay = relay
        self._ledger = ledger
        self._state = state

    async def count(self, caller: Caller, request: OpenAIRequest) -> int:
        """Returns how many tokens a chat's prompt has, template and tools included.

        The request's model becomes the one that would answer.

        Raises:
            MeshError: `UNSUPPORTED` where the engine has no way to count; what an answer could
                be refused with besides.
        """
        self._relay.plan(caller, request)
        account = None
        if caller.reserved:
            account = self._ledger.open(
                caller,
                operation=request.kind,
                model=request.model,
                is_stream=False,
                began_ns=time.monotonic_ns(),
                waited_ns=0,
            )
        try:
            tokens = await self._ask(request)
        except BaseException as error:
            if account is not None:
                account.fail(error)
            raise
        if account is not None:
            account.succeed(Tokens(prompt=0, completion=0))
        if tokens is None:
            raise errors.unsupported(
                "model", f"the engine of `{request.model}` has no way to count tokens."
            )
        return tokens

    async def _ask(self, request: OpenAIRequest) -> int | None:
        try:
            return await self._engine.count_prompt(self._client, request)
        except (EngineConnectionError, EngineTimeoutError) as error:
            if isinstance(error, EngineConnectError):
                self._state.set_up(False)
            raise errors.from_transport(error, has_answered=False) from None
