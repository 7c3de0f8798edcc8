"""Rankings through the whole mesh: as many documents as may be, again and again."""

import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh

MODEL = "e2e-ranker"
WORDS = [f"{'some words of a document ' * 20}{number}" for number in range(2048)]


@pytest.fixture(scope="module", autouse=True)
def engine(fleet: Fleet) -> None:
    # Its cache holds less than a hundredth of what is to be ranked.
    (url,) = fleet.engines(1, MODEL, "--embeddings", "--blocks", "100")
    fleet.join({"e2e-ranker": ("--engine", "sim", "--url", url)})


def ranked(http: httpx.Client, path: str, **more: object) -> list[dict[str, object]]:
    body = {"model": MODEL, "query": "document 7", "documents": WORDS, **more}
    reply = http.post(path, json=body, timeout=20)
    assert reply.status_code == 200, reply.text[:500]
    results: list[dict[str, object]] = reply.json()["results"]
    return results


def test_all_documents_are_ranked_each_time(mesh: Mesh) -> None:
    with mesh.http() as http:
        model = http.get(f"/v1/models/{MODEL}").json()
        assert {"embeddings", "rerank"} <= set(model["capabilities"])
        for path in ("/v1/rerank", "/v2/rerank", "/rerank") * 4:
            results = ranked(http, path)
            assert {result["index"] for result in results} == set(range(2048))
        (best,) = ranked(http, "/v1/rerank", top_n=1, return_documents=True)
        assert best["document"] == {"text": WORDS[7]}
