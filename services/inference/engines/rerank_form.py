"""The form in which engines rank documents: Jina's, which llama.cpp, vLLM and SGLang took over.

https://jina.ai/reranker/ and, for the list without `results`,
https://huggingface.github.io/text-embeddings-inference/
"""

import math

import orjson

from services.inference.engines.asks import Ranking, RerankAsk
from services.inference.engines.dialect import count_of, objects_of
from services.inference.requests import written

_PATH = "/v1/rerank"


def rerank_request(ask: RerankAsk) -> tuple[str, bytes]:
    """Returns the path and the body of a request.

    The documents do not come back: whoever asked has them.
    """
    count = len(ask.documents)
    fields = {
        **ask.options,
        "model": ask.model,
        "query": ask.query,
        "documents": ask.documents,
        # Engines that are told nothing return all, but for some older ones, which return one.
        "top_n": count if ask.top_n is None else min(ask.top_n, count),
        "return_documents": False,
    }
    return _PATH, written(fields)


def ranking_of(answer: bytes) -> Ranking:
    """Reads an answer, in whatever order it comes.

    Raises:
        LookupError, TypeError, ValueError: It is none.
    """
    data = orjson.loads(answer)
    usage = data.get("usage") if isinstance(data, dict) else None
    results = data["results"] if isinstance(data, dict) else data
    if not isinstance(results, list):
        raise TypeError("the results are no list")
    scores = []
    for result in objects_of(results):
        place = count_of(result["index"])
        score = result["relevance_score"] if "relevance_score" in result else result["score"]
        if place is None or isinstance(score, bool) or not math.isfinite(score):
            raise ValueError("a result has no place or no score")
        scores.append((place, float(score)))
    scores.sort(key=lambda each: -each[1])
    tokens = None
    if isinstance(usage, dict):
        tokens = count_of(usage.get("prompt_tokens"))
        # vLLM tells the sum alone; nothing is made, so that it is the prompt's.
        tokens = count_of(usage.get("total_tokens")) if tokens is None else tokens
    return Ranking(scores, tokens)
