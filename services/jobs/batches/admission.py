"""Says to auth what a line asks for, in the words by which callers' calls are reserved."""

from collections.abc import Mapping
from typing import Any

import orjson

from infermesh.auth.v1 import admission_service_pb2 as pb
from services.jobs.batches.claim import Claim

RPCS = {
    "/v1/chat/completions": "/infermesh.inference.v1.OpenAIService/CreateChatCompletion",
    "/v1/completions": "/infermesh.inference.v1.OpenAIService/CreateCompletion",
    "/v1/embeddings": "/infermesh.embeddings.v1.EmbeddingsService/CreateEmbeddings",
}
"""What runs the lines of a batch, by its endpoint."""

# As `services/auth/reservation.py` reads them of a caller's body.
_MAX = ("max_completion_tokens", "max_tokens")
_COUNT = ("n", "best_of")
_MAX_ANSWERS = 128
_MAX_NUMBER = 2**53
_MAX_FALLBACKS = 8
_MAX_CHARS = 4096


def request_of(claim: Claim) -> pb.AdmitCallRequest:
    """Returns the question whether a line may run."""
    body: dict[str, Any] = orjson.loads(claim.body)
    answers = min(_largest(body, _COUNT), _MAX_ANSWERS) or 1
    prompt = body.get("prompt")
    # Several prompts get an answer each; a list of numbers is one prompt's tokens.
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        answers *= len(prompt)
    fallbacks = body.get("fallback_models")
    names = fallbacks if isinstance(fallbacks, list) else []
    return pb.AdmitCallRequest(
        key_id=claim.batch.key_id,
        rpc=RPCS[claim.batch.fields["endpoint"]],
        request_id=claim.request_id,
        model=body["model"][:_MAX_CHARS],
        # The node refuses more, or longer ones.
        fallback_models=[
            name[:_MAX_CHARS] for name in names[:_MAX_FALLBACKS] if isinstance(name, str)
        ],
        prompt_bytes=len(claim.body),
        max_tokens=_largest(body, _MAX),
        answer_count=answers,
    )


def _largest(body: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Returns the largest of these fields that is a number above 0; 0 where none is."""
    said = (body.get(name) for name in names)
    numbers = (each for each in said if isinstance(each, int | float))
    return int(min(max(0, *numbers, 0), _MAX_NUMBER))
