"""Calls that schemathesis makes out of /openapi.json, right ones and wrong ones.

No 5xx, and nothing that the document does not say. `OPENAPI_CASES` is how many; `make test-openapi`
makes 20,000. `OPENAPI_PATHS` is an expression for the paths that are called, with as many cases
each as in a run of all; `OPENAPI_SEED` makes the same cases as another run with it.
"""

import json
import os
import re
import subprocess

import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import REPOSITORY, Mesh

ST = REPOSITORY / ".venv" / "clients" / "bin" / "st"
CASES = int(os.environ.get("OPENAPI_CASES", "5000"))
PATHS = os.environ.get("OPENAPI_PATHS", "")
SEED = os.environ.get("OPENAPI_SEED", "")
# Those that go through the bounds of each schema one by one; the rest is drawn at random.
SYSTEMATIC = 4500
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
MODELS = {"chat": "case-chat", "vectors": "case-vectors"}
# What would take the mesh itself away from under the run.
EXCLUDED = ("NodeService_DrainNode",)


def ids_of(mesh: Mesh) -> dict[str, list[str]]:
    """Makes what the cases are to find, and returns its ids by the parameter that names them."""
    text = json.dumps(
        {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODELS["vectors"], "input": "a"},
        }
    )
    with mesh.openai() as client:
        responses = [client.responses.create(model=MODELS["chat"], input="a") for _ in range(9)]
        file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
    return {
        "response_id": [each.id for each in responses],
        "batch_id": [batch.id],
        "file_id": [file.id],
    }


@pytest.mark.timeout(3600)
def test_generated_cases(mesh: Mesh, fleet: Fleet, tmp_path) -> None:
    if not ST.exists():
        pytest.skip("`make test-openapi` installs schemathesis")
    (chat,) = fleet.engines(1, MODELS["chat"])
    (vectors,) = fleet.engines(1, MODELS["vectors"], "--embeddings")
    fleet.join(
        {
            "case-chat": ("--engine", "vllm", "--url", chat),
            "case-vectors": ("--engine", "vllm", "--url", vectors),
        }
    )
    document = httpx.get(f"{mesh.url}/openapi.json").json()
    operations = sum(len(item) for item in document["paths"].values())
    command = [
        *(str(ST), "run", f"{mesh.url}/openapi.json", "--url", mesh.url),
        *("--header", f"authorization: Bearer {mesh.admin_key}"),
        *("--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
        *("--max-examples", str(max(1, (CASES - SYSTEMATIC) // operations))),
        *("--workers", "1", "--request-timeout", "60", "--no-color", "--no-shrink"),
        *("--generation-database", ":memory:", "--suppress-health-check", "all"),
        *("--report", "ndjson", "--report-ndjson-path", str(tmp_path / "report.ndjson")),
    ]
    for operation in EXCLUDED:
        command += ["--exclude-operation-id", operation]
    if PATHS:
        command += ["--include-path-regex", PATHS]
    if SEED:
        command += ["--seed", SEED]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": str(REPOSITORY / "tests" / "openapi" / "hooks.py"),
            "OPENAPI_MODELS": json.dumps(MODELS),
            "OPENAPI_IDS": json.dumps(ids_of(mesh)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-30_000:])
    ran = re.search(r"(\d+) generated", done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert ran is not None
    assert PATHS or int(ran[1]) >= CASES
