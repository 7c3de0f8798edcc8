"""Goes on with what is not there yet, without a task: a call waits for a future of its answer."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def then(
    asked: "asyncio.Future[T]", make: "Callable[[T], R | asyncio.Future[R]]"
) -> "R | asyncio.Future[R]":
    """Returns what `make` makes of what is asked for: at once where that is there, else later.

    What goes wrong becomes the future's exception: nobody else would hear of it, for the call is
    answered by that future alone.
    """
    if asked.done():
        return make(asked.result())
    later: asyncio.Future[R] = asked.get_loop().create_future()

    def finish(done: "asyncio.Future[R]") -> None:
        try:
            later.set_result(done.result())
        except Exception as error:
            later.set_exception(error)

    def pass_on(done: "asyncio.Future[T]") -> None:
        try:
            made = make(done.result())
        except Exception as error:
            later.set_exception(error)
            return
        if isinstance(made, asyncio.Future):
            made.add_done_callback(finish)
        else:
            later.set_result(made)

    asked.add_done_callback(pass_on)
    return later
