"""What `make bench` measures side by side: an engine alone, plain Envoy, the mesh and its peers.

The peers get what they need to work and nothing that slows them down: no database, no log lines, as
many workers as there are cores. None of them but LiteLLM checks a key here; none keeps limits or a
ledger.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import yaml

from services.cli import binaries, probes
from services.cli.part import Part

MODEL = "smollm2-135m"
_LITELLM_KEY = "sk-bench"


@dataclass(frozen=True)
class Target:
    """Something that answers chats.

    Attributes:
        name: For people.
        url: Where it is.
        headers: What its calls carry.
        parts: The names of the processes that are its own; none for the engine alone.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peers:
    """The environments of the peers, made by `make bench`.

    Attributes:
        folder: Holds `python/` and `node/`.
        base_port: They listen on ports from here on.
        engines: The addresses of the engines, `http://host:port`.
        state: Gets their settings and logs.
    """

    folder: Path
    base_port: int
    engines: tuple[str, ...]
    state: Path

    def all(self) -> list[tuple[Target, Part]]:
        """Returns the peers with the processes that run them."""
        return [self._envoy(), self._vllm(), self._sglang(), self._litellm(), self._portkey()]

    def _part(self, name: str, port: int, argv: list[str], path: str, **env: str) -> Part:
        return Part(
            name=name,
            argv=argv,
            env={**os.environ, **env},
            probe=probes.http("127.0.0.1", port, path),
            log_file=self.state / f"{name}.log",
            start_limit_s=120,
            cwd=self.state,
            ports={name: port},
        )

    def _envoy(self) -> tuple[Target, Part]:
        port = self.base_port
        config = self.state / "plain-envoy.yaml"
        config.write_text(yaml.safe_dump(_plain_envoy(port, self.engines)))
        argv = [str(binaries.envoy()), "--config-path", str(config), "--log-level", "error"]
        argv += ["--concurrency", str(max(1, (os.cpu_count() or 1) // 2))]
        argv += ["--disable-hot-restart", "--base-id", "77"]
        part = self._part("plain Envoy", port, argv, "/health")
        return Target(part.name, f"http://127.0.0.1:{port}", parts=(part.name,)), part

    def _vllm(self) -> tuple[Target, Part]:
        port = self.base_port + 1
        argv = [str(self.folder / "python/bin/vllm-router"), *self._router(port, "warning")]
        part = self._part("vllm-router", port, argv, "/health")
        return Target(part.name, f"http://127.0.0.1:{port}", parts=(part.name,)), part

    def _sglang(self) -> tuple[Target, Part]:
        port = self.base_port + 2
        python = str(self.folder / "python/bin/python")
        argv = [python, "-m", "sglang_router.launch_router", *self._router(port, "warn")]
        part = self._part("sglang-router", port, argv, "/health")
        return Target(part.name, f"http://127.0.0.1:{port}", parts=(part.name,)), part

    def _router(self, port: int, level: str) -> list[str]:
        return [
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", *self.engines),
            *("--policy", "cache_aware", "--log-level", level),
            *("--prometheus-port", str(port + 10)),
        ]

    def _litellm(self) -> tuple[Target, Part]:
        port = self.base_port + 3
        config = self.state / "litellm.yaml"
        deployments = [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"{engine}/v1",
                    "api_key": "none",
                },
            }
            for engine in self.engines
        ]
        settings = {
            "model_list": deployments,
            "general_settings": {"master_key": _LITELLM_KEY},
            "litellm_settings": {"telemetry": False},
        }
        config.write_text(yaml.safe_dump(settings))
        argv = [str(self.folder / "python/bin/litellm"), "--config", str(config)]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        argv += ["--num_workers", str(os.cpu_count() or 1)]
        env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        part = self._part("LiteLLM", port, argv, "/health/liveliness", **env)
        headers = {"authorization": f"Bearer {_LITELLM_KEY}"}
        return Target(part.name, f"http://127.0.0.1:{port}", headers, (part.name,)), part

    def _portkey(self) -> tuple[Target, Part]:
        port = self.base_port + 4
        modules = self.folder / "node/node_modules"
        argv = [
            str(modules / "node/bin/node"),
            str(modules / "@portkey-ai/gateway/build/start-server.js"),
            *("--headless", f"--port={port}"),
        ]
        part = self._part("Portkey", port, argv, "/")
        engines = [
            {"provider": "openai", "custom_host": f"{engine}/v1", "api_key": "none"}
            for engine in self.engines
        ]
        choice = {"strategy": {"mode": "loadbalance"}, "targets": engines}
        headers = {"x-portkey-config": orjson.dumps(choice).decode()}
        return Target(part.name, f"http://127.0.0.1:{port}", headers, (part.name,)), part


def engine_part(name: str, port: int, log_file: Path, *options: str) -> Part:
    """Returns an engine that answers with 64 tokens."""
    argv = [sys.executable, "-m", "services.inference.simulator", "--port", str(port)]
    argv += ["--model", MODEL, "--answer-tokens", "64", *options]
    return Part(
        name=name,
        argv=argv,
        env=dict(os.environ),
        probe=probes.http("127.0.0.1", port, "/health"),
        log_file=log_file,
        ports={name: port},
    )


def _plain_envoy(port: int, engines: tuple[str, ...]) -> dict[str, object]:
    def address(host: str, number: int) -> dict[str, object]:
        return {"socket_address": {"address": host, "port_value": number}}

    kinds = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "engines",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "engines", "timeout": "0s"},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{kinds}.http.router.v3.Router"},
            }
        ],
    }
    endpoints = []
    for engine in engines:
        host, _, number = engine.removeprefix("http://").rpartition(":")
        endpoints.append({"endpoint": {"address": address(host, int(number))}})
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": address("127.0.0.1", port),
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "engines",
                    "lb_policy": "LEAST_REQUEST",
                    "load_assignment": {
                        "cluster_name": "engines",
                        "endpoints": [{"lb_endpoints": endpoints}],
                    },
                }
            ],
        }
    }
