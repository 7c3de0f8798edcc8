"""What stands before every handler: validation by the proto's rules, and errors in their form.

Handlers are wrapped once, when they are added to the server, so that no interceptor chain runs
per call. Usage: `add_KeyServiceServicer_to_server(servicer, guarded(server))`.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn, cast

import grpc
import protovalidate
from google.protobuf.message import Message

from buf.validate import validate_pb2
from infermesh.errors.v1 import errors_pb2
from services.kit import headers, logs
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


def guarded(server: grpc.aio.Server) -> grpc.aio.Server:
    """Returns a stand-in for `server` to which generated `add_…_to_server` functions add."""
    return cast(grpc.aio.Server, _GuardedServer(server))


async def abort(context: _Context, error: MeshError) -> NoReturn:
    """Ends the call with the error's status, details and REST body."""
    await context.abort(error.code, error.message, error.trailers())
    raise AssertionError("abort returned")


def validate(message: Message) -> None:
    """Checks a message against the rules in its proto.

    Raises:
        MeshError: `INVALID_ARGUMENT`, which names the first field at fault.
    """
    try:
        protovalidate.validate(message, fail_fast=True)
    except protovalidate.ValidationError as error:
        violation = error.violations[0]
        path = _field_path(violation) or _first_of_rule(message, violation)
        text = violation.proto.message or "is not valid"
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
            f"{path}: {text}" if path else text,
            param=path or None,
        ) from None


def _first_of_rule(message: Message, violation: protovalidate.Violation) -> str:
    """Returns the first of the fields one of which must be set; empty for other rules."""
    if violation.proto.rule_id != "message.oneof":
        return ""
    rules = message.DESCRIPTOR.GetOptions().Extensions[validate_pb2.message]
    return str(rules.oneof[0].fields[0])


def _field_path(violation: protovalidate.Violation) -> str:
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += ("." if path else "") + element.field_name
        if element.subscript is not None and element.subscript.field in ("index", "string_key"):
            path += f"[{element.subscript.value}]"
    return path


class _GuardedServer:
    """Wraps handlers on their way to the server.

    Generated code calls both methods; the second brings the handlers in the open.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Does nothing: `add_registered_method_handlers` gets the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds a service's handlers, each wrapped."""
        wrapped = {name: wrap(handler) for name, handler in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, wrapped)
        self._server.add_generic_rpc_handlers((generic,))


def wrap(handler: Any) -> Any:
    """Returns the RPC method handler with validation and errors around it."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(handler.request_streaming, handler.response_streaming)]
    inner = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    # A streaming handler may be a coroutine that writes to its context: unlike a generator, which
    # stands at its `yield` while a message is sent, it is cancelled where it waits.
    is_generator = inspect.isasyncgenfunction(inner)
    outer = _guard_stream(inner) if is_generator else _guard_unary(inner)
    return make(outer, handler.request_deserializer, handler.response_serializer)


def _checked(request: Any) -> Any:
    if isinstance(request, Message):
        if request.DESCRIPTOR.file.package.startswith("infermesh."):  # others have no rules
            validate(request)
        return request

    async def messages() -> AsyncIterator[Message]:
        async for message in request:
            validate(message)
            yield message

    return messages()


def _enter(context: _Context) -> None:
    for key, value in context.invocation_metadata() or ():
        if key == headers.REQUEST_ID:
            logs.request_id.set(str(value))
            return


def _guard_unary(inner: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[..., Any]:
    async def handle(request: Any, context: _Context) -> Any:
        _enter(context)
        try:
            return await inner(_checked(request), context)
        except MeshError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError as error:
            _gone(error)
        except Exception:
            await _abort_internal(context)

    return handle


def _guard_stream(inner: Callable[[Any, _Context], AsyncIterator[Any]]) -> Callable[..., Any]:
    async def handle(request: Any, context: _Context) -> AsyncIterator[Any]:
        _enter(context)
        try:
            async for response in inner(_checked(request), context):
                yield response
        except MeshError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError as error:
            _gone(error)
        except Exception:
            await _abort_internal(context)

    return handle


def _gone(error: grpc.aio.InternalError) -> NoReturn:
    # gRPC raises this where the caller hung up while something was being sent to it.
    log.debug("the caller is gone", extra={"error": str(error)})
    raise asyncio.CancelledError from error


async def _abort_internal(context: _Context) -> NoReturn:
    log.exception("a handler failed")
    await abort(
        context, MeshError(errors_pb2.ERROR_REASON_INTERNAL, "The mesh failed to handle the call.")
    )
