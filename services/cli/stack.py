"""The embedded mesh: which processes it is made of, and what each is told."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.cli import binaries, cors, embedded, envoy_config, probes
from services.cli.part import Part
from services.cli.secret_files import kept_secret
from services.cli.stack_tls import StackTls, TlsOptions
from services.kit import tls

REPOSITORY = Path(__file__).parents[2]

# Offsets from the base port.
_AUTH, _REGISTRY, _ROUTING, _EMBEDDINGS, _METRICS, _JOBS, _INTERNAL = 1, 2, 3, 4, 5, 6, 9
_POSTGRES, _REDIS, _NODE, _ENGINE = 10, 11, 21, 41

CHAT_MODEL = "smollm2-135m"
EMBEDDING_MODEL = "all-minilm-l6-v2"
_SLOTS = 4
_CONTEXT_PER_SLOT = 8192
# A socket's path may have 107 bytes; the rest is for `/run/` and its name.
_LONGEST_STATE_DIR = 107 - len("/run/embeddings.sock")


@dataclass(frozen=True)
class Options:
    """What a person may choose about the embedded mesh.

    Attributes:
        state_dir: Holds everything that the mesh writes. Mode 0700.
        models_dir: Holds the model files.
        host: The IP address of the front door.
        port: The port of the front door.
        base_port: The parts listen on ports from here on, on loopback; 32700 at most.
        chat_nodes: How many nodes serve the chat model, 1 to 18.
        cors_origins: The web pages that browsers let call the front door; `*` for all.
        tls: Where TLS is wanted.
    """

    state_dir: Path
    models_dir: Path
    host: str = "127.0.0.1"
    port: int = 8080
    base_port: int = 17000
    chat_nodes: int = 2
    cors_origins: tuple[str, ...] = ()
    tls: TlsOptions = field(default_factory=TlsOptions)

    @property
    def local_host(self) -> str:
        """Where the front door is reached from this machine."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def front_door(self) -> str:
        """Host and port at which the mesh is reached from this machine."""
        host = self.local_host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def front_url(self) -> str:
        """The URL at which the mesh is reached from this machine."""
        return f"{'https' if self.tls.front else 'http'}://{self.front_door}"

    @property
    def registry_address(self) -> str:
        """Host and port of the registry."""
        return f"127.0.0.1:{self.base_port + _REGISTRY}"


def build(options: Options) -> list[Part]:
    """Returns the parts of the mesh, and writes the keys and the configuration that they need."""
    return Stack(options).parts()


class Stack:
    """The mesh on this machine.

    Args:
        options: What a person chose.

    Attributes:
        tls: Its certificates.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state = options.state_dir
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state.chmod(0o700)
        (self._state / "run").mkdir(mode=0o700, exist_ok=True)
        self._admin_key = kept_secret(self._state / "admin.key", "im-")
        self._node_key = kept_secret(self._state / "node.key", "im-")
        self._hash_secret = kept_secret(self._state / "hash.secret")
        self.tls = StackTls(options.tls, self._state / "tls", options.host)

    def parts(self) -> list[Part]:
        """Returns all parts, and writes what they need.

        Raises:
            CertsError: TLS is wanted and cannot be had.
        """
        logs = self._state / "logs"
        postgres = embedded.postgres(self._state, self._port(_POSTGRES), logs)
        redis = embedded.redis(self._state, self._port(_REDIS), logs)
        database_url = postgres.url
        nodes = [
            *((f"node-{i + 1}", i, CHAT_MODEL) for i in range(self._options.chat_nodes)),
            ("node-embed", self._options.chat_nodes, EMBEDDING_MODEL),
        ]
        health = {
            **{
                name: self._at(offset)
                for name, offset in (
                    ("auth", _AUTH),
                    ("registry", _REGISTRY),
                    ("routing", _ROUTING),
                    ("embeddings", _EMBEDDINGS),
                    ("metrics", _METRICS),
                    ("jobs", _JOBS),
                )
            },
            **{name: self._at(_NODE + i) for name, i, _ in nodes},
        }
        after_database = (postgres.part.name,)
        routing = self._socket("routing")
        services = ("auth", "registry", "routing", "embeddings", "metrics", "jobs")
        self.tls.prepare(services, [name for name, _, _ in nodes])
        return [
            postgres.part,
            redis.part,
            *(self._engine(i, model) for _, i, model in nodes),
            self._service(
                "auth",
                _AUTH,
                {
                    "DATABASE_URL": database_url,
                    "KEY_HASH_SECRET": self._hash_secret,
                    "BOOTSTRAP_ADMIN_KEY": self._admin_key,
                    "BOOTSTRAP_NODE_KEY": self._node_key,
                    "STATE_DIR": str(self._state / "auth"),
                    "METRICS_ADDRESS": self._at(_METRICS),
                    "ROUTING_ADDRESS": f"unix:{routing}" if routing else self._at(_ROUTING),
                    "REDIS_URL": redis.url,
                    "AUDIT_INFERENCE": os.environ.get("INFERMESH_AUDIT_INFERENCE", "off"),
                    # A list of issuers is no option to type.
                    "OIDC_ISSUERS": os.environ.get("INFERMESH_OIDC_ISSUERS", ""),
                },
                after_database,
            ),
            self._service(
                "registry",
                _REGISTRY,
                {"DATABASE_URL": database_url, **self._audited("registry")},
                after_database,
            ),
            self._service(
                "routing",
                _ROUTING,
                {
                    **self._audited("routing"),
                    "REGISTRY_ADDRESS": self._at(_REGISTRY),
                    "DATABASE_URL": database_url,
                    "REDIS_URL": redis.url,
                },
            ),
            self._service(
                "metrics",
                _METRICS,
                {
                    **self._audited("metrics"),
                    "DATABASE_URL": database_url,
                    "PARTS": ",".join(f"{name}={address}" for name, address in health.items()),
                },
                after_database,
            ),
            self._service(
                "embeddings",
                _EMBEDDINGS,
                {
                    **self._audited("embeddings"),
                    "INFERENCE_ADDRESS": self._at(_INTERNAL),
                    "METRICS_ADDRESS": self._at(_METRICS),
                    "REDIS_URL": redis.url,
                },
            ),
            self._service(
                "jobs",
                _JOBS,
                {
                    "DATABASE_URL": database_url,
                    "INFERENCE_ADDRESS": self._at(_INTERNAL),
                    "AUTH_ADDRESS": self._at(_AUTH),
                },
                after_database,
            ),
            *(self._node(name, i) for name, i, _ in nodes),
            self._envoy(),
        ]

    def _audited(self, name: str) -> Mapping[str, str]:
        return {"AUTH_ADDRESS": self._at(_AUTH), "STATE_DIR": str(self._state / name)}

    def _port(self, offset: int) -> int:
        return self._options.base_port + offset

    def _at(self, offset: int) -> str:
        return f"127.0.0.1:{self._port(offset)}"

    def _socket(self, name: str) -> Path | None:
        """Returns where Envoy reaches a service; None where it does so over TCP."""
        path = (self._state / "run" / f"{name}.sock").absolute()
        is_short = len(os.fsencode(self._state.absolute())) <= _LONGEST_STATE_DIR
        return path if is_short and not self._options.tls.mesh else None

    def _log(self, name: str) -> Path:
        return self._state / "logs" / f"{name}.log"

    def _service(
        self,
        name: str,
        offset: int,
        settings: Mapping[str, str],
        after: tuple[str, ...] = (),
        module: str | None = None,
    ) -> Part:
        address = self._at(offset)
        socket = self._socket(name)
        more = self.tls.of_node(name) if module else self.tls.of_service(name)
        peer = tls.node(name) if module else tls.service(name)
        return Part(
            name=name,
            argv=[sys.executable, "-m", module or f"services.{name}"],
            env={
                **_inherited(),
                "INFERMESH_LISTEN": address,
                "INFERMESH_DRAIN_S": "2",
                **{f"INFERMESH_{key}": value for key, value in {**settings, **more}.items()},
                **({"INFERMESH_LISTEN_SOCKET": str(socket)} if socket else {}),
            },
            probe=probes.grpc_health("127.0.0.1", self._port(offset), peer, self.tls.own_folder),
            log_file=self._log(name),
            after=after,
            ports={name: self._port(offset)},
        )

    def _node(self, name: str, index: int) -> Part:
        return self._service(
            name,
            _NODE + index,
            {
                "NODE_ID": name,
                "ENGINE": "llamacpp",
                "ENGINE_URL": f"http://{self._at(_ENGINE + index)}",
                "MESH_ADDRESS": self._options.front_url,
                "NODE_KEY": self._node_key,
                "STATE_DIR": str(self._state / name),
            },
            module="services.inference",
        )

    def _engine(self, index: int, model: str) -> Part:
        port = self._port(_ENGINE + index)
        name = f"engine-{index + 1}" if model == CHAT_MODEL else "engine-embed"
        argv = [
            *(sys.executable, "-m", "services.inference.llamacpp_server"),
            *("--model", str(self._options.models_dir / f"{model}.gguf")),
            *("--alias", model),
            *("--port", str(port)),
            *("--parallel", str(_SLOTS)),
        ]
        if model == EMBEDDING_MODEL:
            argv.append("--embeddings")
        else:
            argv += ["--ctx", str(_SLOTS * _CONTEXT_PER_SLOT)]
        return Part(
            name=name,
            argv=argv,
            env=_inherited(),
            probe=probes.http("127.0.0.1", port, "/health"),
            log_file=self._log(name),
            ports={name: port},
        )

    def _envoy(self) -> Part:
        services = {
            "AUTH": _AUTH,
            "REGISTRY": _REGISTRY,
            "ROUTING": _ROUTING,
            "EMBEDDINGS": _EMBEDDINGS,
            "METRICS": _METRICS,
            "JOBS": _JOBS,
        }
        values = {
            # Relative to the state folder: a socket's path may have 107 bytes at most.
            "ADMIN_SOCKET": "run/envoy-admin.sock",
            "FRONT_HOST": self._options.host,
            "FRONT_PORT": str(self._options.port),
            "CORS_ORIGINS": cors.matchers(self._options.cors_origins),
            "HSTS": self.tls.hsts,
            "INTERNAL_HOST": "127.0.0.1",
            "INTERNAL_PORT": str(self._port(_INTERNAL)),
            "LUA": str(REPOSITORY / "envoy" / "front.lua"),
            "LUA_FIELDS": str(REPOSITORY / "envoy" / "fields.lua"),
            "DESCRIPTORS": str(REPOSITORY / "gen" / "infermesh.binpb"),
            "API_DIR": str(REPOSITORY / "gen" / "api"),
        }
        for name, offset in services.items():
            values[f"{name}_HOST"] = "127.0.0.1"
            values[f"{name}_PORT"] = str(self._port(offset))
            values[f"{name}_SOCKET"] = str(self._socket(name.lower()))
        config = envoy_config.render(
            values,
            self.tls.of_envoy(),
            self._state / "run",
            has_sockets=self._socket("auth") is not None,
        )
        return Part(
            name="envoy",
            argv=[
                # As the services do it for themselves, see kit.server.
                *("chrt", "--batch", "0"),
                *(str(binaries.envoy()), "--config-path", str(config)),
                # The services want their share of the machine too.
                *("--concurrency", str(max(1, (os.cpu_count() or 1) // 2))),
                *("--log-level", "warning", "--disable-hot-restart"),
                *("--drain-time-s", "2", "--file-flush-interval-msec", "1000"),
            ],
            env=_inherited(),
            probe=probes.envoy(
                self._options.local_host, self._options.port, is_tls=self._options.tls.front
            ),
            log_file=self._log("envoy"),
            # Envoy waits for its first assignment before it listens.
            after=("routing",),
            cwd=self._state,
            ports={"front door": self._options.port, "internal listener": self._port(_INTERNAL)},
        )


def _inherited() -> dict[str, str]:
    """Returns the environment less settings that are meant for one process only."""
    return {k: v for k, v in os.environ.items() if not k.startswith("INFERMESH_")}
