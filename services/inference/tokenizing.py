"""Cuts texts and chats into tokens with the engine's own tokenizer, and makes texts of tokens.

The model does nothing for it, so nobody waits for its room, and nothing counts as used. Only where
auth has reserved something for the call the ledger hears of it, with no tokens: else the
reservation would stand until it expires.
"""

import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import TypeVar

from infermesh.errors.v1 import errors_pb2
from services.inference import errors
from services.inference.accounting import Ledger
from services.inference.engines.asks import TokenizeAsk, Tokenized
from services.inference.engines.dialect import Engine, EngineModel, Tokens
from services.inference.guardrails.body import BodyTexts
from services.inference.http_client import (
    EngineClient,
    EngineConnectError,
    EngineConnectionError,
    EngineTimeoutError,
)
from services.inference.relay import Relay
from services.inference.state import EngineState
from services.kit.caller import Caller
from services.kit.errors import MeshError
from services.kit.guardrails.guard import PromptGuard

# No engine is built for more: beyond it callers are told to come again.
_MAX_AT_A_TIME = 64
_RETRY_S = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer.

    Attributes:
        model: The model whose tokens they are.
        tokenized: The tokens.
        redactions: How many places the key's guardrails replaced.
    """

    model: EngineModel
    tokenized: Tokenized
    redactions: int


class Tokenizer:
    """Asks one engine.

    Args:
        relay: Says which model answers.
        engine: The engine's dialect.
        client: Connections to it.
        guard: Runs the guardrails of keys that have any.
        ledger: Where calls are settled.
        state: What is known of the engine.
    """

    def __init__(
        self,
        relay: Relay,
        engine: Engine,
        client: EngineClient,
        guard: PromptGuard,
        ledger: Ledger,
        state: EngineState,
    ) -> None:
        self._relay = relay
        self._engine = engine
        self._client = client
        self._guard = guard
        self._ledger = ledger
        self._state = state
        self._running = 0

    async def tokenize(self, caller: Caller, ask: TokenizeAsk) -> Cut:
        """Returns the tokens of a text or a chat.

        Raises:
            MeshError: `UNSUPPORTED` where the engine has no way to, or not all that is asked;
                what an answer could be refused with besides.
        """
        served = self._relay.admit(caller, ask.model)
        ask = replace(ask, model=served.name)
        redactions = 0
        if caller.guardrails:
            fields = dict(ask.fields)
            texts = BodyTexts(fields)
            await self._guard.check(caller.guardrails, texts.prompt)
            texts.written()
            ask, redactions = replace(ask, fields=fields), texts.prompt.redactions
        if caller.audits_body:
            self._relay.audit.note(caller, "tokenize", served.name, ask.fields)
        asking = self._engine.tokenize(self._client, ask)
        tokenized = await self._settled(caller, served.name, asking)
        if tokenized is None:
            raise _cannot(served.name)
        return Cut(served, tokenized, redactions)

    async def detokenize(self, caller: Caller, model: str, tokens: list[int]) -> tuple[str, str]:
        """Returns the model whose tokens they are, and their text. Raises like `tokenize`."""
        served = self._relay.admit(caller, model)
        if caller.guardrails:
            raise errors.unsupported("tokens", "must be text for an API key with guardrails")
        if caller.audits_body:
            self._relay.audit.note(caller, "tokenize", served.name, {"tokens": tokens})
        asking = self._engine.detokenize(self._client, served.name, tokens)
        text = await self._settled(caller, served.name, asking)
        if text is None:
            raise _cannot(served.name)
        return served.name, text

    async def _settled(self, caller: Caller, model: str, asking: Awaitable[T]) -> T:
        if not caller.reserved:
            return await self._bounded(asking)
        account = self._ledger.open(
            caller,
            operation="tokenize",
            model=model,
            is_stream=False,
            began_ns=time.monotonic_ns(),
            waited_ns=0,
        )
        try:
            said = await self._bounded(asking)
        except Exception as error:
            account.fail(error)
            raise
        except BaseException:
            account.cancel()
            raise
        account.succeed(Tokens(prompt=0, completion=0))
        return said

    async def _bounded(self, asking: Awaitable[T]) -> T:
        if self._running >= _MAX_AT_A_TIME:
            close = getattr(asking, "close", None)
            if close is not None:
                close()
            raise errors.overloaded("The node is busy with other texts.", _RETRY_S)
        self._running += 1
        try:
            return await asking
        except (EngineConnectionError, EngineTimeoutError) as error:
            if isinstance(error, EngineConnectError):
                self._state.set_up(False)
            raise errors.from_transport(error, has_answered=False) from None
        finally:
            self._running -= 1


def _cannot(model: str) -> MeshError:
    return MeshError(
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        f"model: the engine of `{model}` shows nobody its tokenizer.",
        param="model",
    )
