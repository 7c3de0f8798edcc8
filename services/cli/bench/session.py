"""A run from its beginning to its figures: connections, progress, and Ctrl-C."""

import asyncio
import contextlib
import json
import platform
import signal
import ssl
import time
from collections.abc import Iterator
from importlib.metadata import version

from services.cli.bench.answer import Call, now_s
from services.cli.bench.figures import Report, report
from services.cli.bench.plan import Plan
from services.cli.bench.prompts import Bodies
from services.cli.bench.run import Run
from services.cli.bench.screen import progress, share_done, told
from services.cli.bench.wire import Wire
from services.cli.options import find_ca
from services.kit.channels import split_address

_TELL_S = 0.25


class SessionError(Exception):
    """A run cannot begin, or has nothing to tell."""


class Session:
    """A run against a mesh.

    Args:
        plan: What is asked.
        bodies: The bodies of the calls.
        address: The mesh's front door, as people type it.
        key: The API key.

    Raises:
        SessionError: The address is none.
        OSError: The authority's certificate cannot be read.
    """

    def __init__(self, plan: Plan, bodies: Bodies, address: str, key: str) -> None:
        self._plan, self._bodies, self._address, self._key = plan, bodies, address, key
        target, is_tls = split_address(address)
        self._host, _, port = target.rpartition(":")
        self._host = self._host.strip("[]")
        if not self._host or not port.isdigit():
            raise SessionError(f"{address} is no host and port.")
        self._port = int(port)
        self._trust = None
        if is_tls:
            ca = find_ca()
            self._trust = ssl.create_default_context(cafile=str(ca) if ca else None)

    def run(self) -> Report:
        """Runs the plan and returns its figures.

        Raises:
            SessionError: The mesh does not answer, or nothing was asked.
        """
        import uvloop

        return uvloop.run(self._run())

    def as_json(self, found: Report) -> str:
        """Returns the figures as they are kept."""
        return json.dumps(found, indent=1) + "\n"

    async def _run(self) -> Report:
        headers = {"authorization": f"Bearer {self._key}"}
        wire = Wire(self._host, self._port, headers, self._trust, is_stream=self._plan.is_stream)
        facts = {
            "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "address": self._address,
            "version": version("infermesh"),
            "python": platform.python_version(),
        }
        run = Run(self._plan, self._bodies, wire)
        try:
            self._check(await run.warm_up())
            with self._stopped_by_ctrl_c(run), progress() as bar:
                task = bar.add_task("", total=1.0)
                running = asyncio.create_task(run.run())
                while not running.done():
                    await asyncio.wait({running}, timeout=_TELL_S)
                    elapsed_s = now_s() - run.taken.began
                    done = share_done(self._plan, run.taken, elapsed_s)
                    bar.update(task, completed=done, description=told(run.taken, elapsed_s))
                taken = running.result()
        finally:
            wire.close()
        return report(self._plan, taken, facts)

    @contextlib.contextmanager
    def _stopped_by_ctrl_c(self, run: Run) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, run.stop)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def _check(self, calls: list[Call]) -> None:
        """Ends a run whose first call shows that no other can do better."""
        error = calls[0].error if calls else ""
        if error == "no_connection":
            raise SessionError(
                f"Nothing answers at {self._address}. Does the mesh run? Start it: infermesh up"
            )
        if error == "tls":
            raise SessionError(
                f"The certificate of {self._address} is not trusted. Whom to trust is said before "
                "the command: infermesh --ca FILE …"
            )
        if error in ("invalid_api_key", "model_not_found", "permission_denied"):
            raise SessionError(f"{self._address} refuses {self._plan.model}: {error}")
