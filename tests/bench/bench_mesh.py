"""Starts what `make bench` measures: the embedded mesh over simulated engines, and its peers."""

import asyncio
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from bench_processes import Processes
from bench_targets import MODEL, Peers, Target, engine_part

from services.cli import stack
from services.cli.keeper import PartStatus
from services.cli.part import Part
from services.cli.supervisor import StartError, Supervisor

PORT, BASE_PORT, PEERS_PORT = 28080, 28000, 28100
OWN, ALONE, PLAIN = "infermesh", "engine alone", "plain Envoy"
_OWN_LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12}
_ASK = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
_UP_S, _BACK_S, _QUIET_S = 30.0, 15.0, 15.0
_QUIET_SHARE = 0.3


def engine_urls(count: int) -> tuple[str, ...]:
    """Returns where the simulated engines are."""
    return tuple(f"http://127.0.0.1:{BASE_PORT + 41 + number}" for number in range(count))


ENGINES = engine_urls(2)


def mesh_parts(options: stack.Options, engine: Sequence[str], env: Mapping[str, str]) -> list[Part]:
    """Returns the parts of the embedded mesh with simulators in the engines' places."""
    found = []
    for part in stack.build(options):
        if part.name in ("engine-embed", "node-embed"):
            continue
        if part.name.startswith("engine-"):
            (port,) = part.ports.values()
            part = engine_part(part.name, port, part.log_file, *engine)
        elif part.name.startswith("node-"):
            settings = {**part.env, "INFERMESH_ENGINE": "openai", **env}
            part = dataclasses.replace(part, env=settings)
        found.append(part)
    return found


class Started:
    """Everything that is measured, running for as long as the context lasts.

    A peer that does not start, or dies, takes nothing else with it.

    Args:
        peers: Where the peers are; None to measure without them.
        engine: Options of the simulated engines.
        env: Settings of the nodes.
        only: Names of the peers to start; empty for all.
        engines: How many engines there are, each with a node of its own.

    Attributes:
        missing: Why a peer is not there, by its name.
    """

    def __init__(
        self,
        peers: Path | None,
        engine: Sequence[str],
        env: Mapping[str, str],
        only: Sequence[str] = (),
        engines: int = len(ENGINES),
    ) -> None:
        self._engines = engine_urls(engines)
        self._peers, self._engine, self._env, self._only = peers, engine, env, only
        self.missing: dict[str, str] = {}

    async def __aenter__(self) -> tuple[list[Target], Processes]:
        self._folder = tempfile.TemporaryDirectory(prefix="infermesh-bench-")
        folder = Path(self._folder.name)
        state = folder / "state"
        options = stack.Options(
            state_dir=state,
            models_dir=folder,
            port=PORT,
            base_port=BASE_PORT,
            chat_nodes=len(self._engines),
        )
        parts = mesh_parts(options, self._engine, self._env)
        own = tuple(part.name for part in parts if not part.name.startswith("engine-"))
        others: list[tuple[Target, Part]] = []
        if self._peers is not None:
            others = Peers(self._peers, PEERS_PORT, self._engines, folder).all()
            others = [each for each in others if not self._only or each[0].name in self._only]
        self._supervisors = [Supervisor(parts), *(Supervisor([part]) for _, part in others)]
        try:
            await self._supervisors[0].start()
            key = await _limited_key((state / "admin.key").read_text().strip())
            url = f"http://127.0.0.1:{PORT}"
            mesh = Target(OWN, url, {"authorization": f"Bearer {key}"}, own)
            started = zip(others, self._supervisors[1:], strict=True)
            found = await asyncio.gather(*(self._peer(each[0], by) for each, by in started))
            targets = [Target(ALONE, self._engines[0]), *(each for each in found if each)]
            targets.insert(1 + any(each.name == PLAIN for each in targets), mesh)
            for target in (targets[0], mesh):
                if said := await until_answered(target, _UP_S):
                    raise SystemExit(f"{target.name} does not answer: {said}")
        except BaseException:
            await self.__aexit__()
            raise
        return targets, Processes(self._states)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(each.stop() for each in self._supervisors))
        self._folder.cleanup()

    def _states(self) -> dict[str, PartStatus]:
        return {k: v for each in self._supervisors for k, v in each.states().items()}

    async def _peer(self, target: Target, supervisor: Supervisor) -> Target | None:
        try:
            await supervisor.start()
            said = await until_answered(target, _UP_S)
        except StartError as error:
            said = str(error)
        if said:
            self.missing[target.name] = said.strip().splitlines()[-1]
            await supervisor.stop()
        return None if said else target


async def until_back(target: Target, processes: Processes) -> bool:
    """Waits for a target that may have died; says whether it answers."""
    is_back = not await until_answered(target, _BACK_S)
    processes.refresh()
    return is_back


async def until_quiet(target: Target, processes: Processes) -> None:
    """Waits until a target has done with what nobody waits for any more, 15 seconds at most."""
    used = sum(processes.cpu_s(target.parts).values())
    for _ in range(int(_QUIET_S / 0.25)):
        await asyncio.sleep(0.25)
        now = sum(processes.cpu_s(target.parts).values())
        if now - used < 0.25 * _QUIET_SHARE:
            return
        used = now


async def until_answered(target: Target, limit_s: float) -> str:
    """Waits until a target answers a chat; returns what it said instead, nothing when it did."""
    said = ""
    async with httpx.AsyncClient(headers=dict(target.headers), timeout=limit_s) as http:
        for _ in range(int(limit_s / 0.1)):
            try:
                reply = await http.post(f"{target.url}/v1/chat/completions", json=_ASK)
                if reply.status_code == 200:
                    return ""
                said = f"{reply.status_code} {reply.text[:200]}"
            except httpx.TransportError as error:
                said = repr(error)
            await asyncio.sleep(0.1)
    return said or "no answer"


async def _limited_key(admin: str) -> str:
    """Makes a user's key with limits that it does not reach, so that they are kept."""
    headers = {"authorization": f"Bearer {admin}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", headers=headers) as http:
        made = await http.post("/mesh/v1/keys", json={"display_name": "bench", "tenant": "bench"})
        made.raise_for_status()
        scope = {"key_id": made.json()["key"]["key_id"]}
        limits = {"limits": {"scope": scope, **_OWN_LIMITS}}
        (await http.put("/mesh/v1/limits", json=limits)).raise_for_status()
    await asyncio.sleep(1)
    return str(made.json()["secret"])
