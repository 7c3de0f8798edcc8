"""Holds requests against the guardrails of the key that they came with."""

from services.inference.guardrails.body import BodyTexts
from services.inference.requests import OpenAIRequest
from services.kit.guardrails.guard import PromptGuard
from services.kit.guardrails.prompt import Prompt


async def check_request(guard: PromptGuard, wanted: str, request: OpenAIRequest) -> int:
    """Checks a request, whose body becomes what may go to the engine.

    Args:
        guard: Runs the guardrails.
        wanted: The key's guardrails, not empty.
        request: A chat or a completion.

    Returns:
        How many places were replaced.

    Raises:
        MeshError: The request is refused.
    """
    texts = BodyTexts(request.fields)
    await guard.check(wanted, texts.prompt)
    request.body = texts.written()
    return texts.prompt.redactions


async def check_inputs(guard: PromptGuard, wanted: str, inputs: list[str]) -> tuple[list[str], int]:
    """Checks texts for vectors; returns what may go to the engine, and how much was replaced.

    Raises:
        MeshError: The texts are refused.
    """
    prompt = Prompt()
    for index, text in enumerate(inputs):
        prompt.add(text, f"inputs[{index}]")
    await guard.check(wanted, prompt)
    return prompt.texts, prompt.redactions
