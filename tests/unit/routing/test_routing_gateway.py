"""What routing reads of a call."""

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from services.routing.filters import capability
from services.routing.gateway import PROMPT_NAMESPACE, TYPED_NAMESPACE, facts_of


@pytest.mark.parametrize("prefix", ["", "chat."])
def test_typed_calls_say_what_rest_calls_say(prefix: str) -> None:
    request = pb.ProcessingRequest()
    said = {
        "model": ["m"],
        "session_id": ["s-1"],
        "preferred_framework": ["vllm"],
        "optimization_level": ["high"],
        "fallback_models": ["a", "b"],
    }
    request.metadata_context.filter_metadata[TYPED_NAMESPACE].update(
        {prefix + name: values for name, values in said.items()}
    )
    # Envoy says so of every body that is not JSON.
    request.metadata_context.filter_metadata["infermesh.request"].update({"body": "invalid"})
    facts = facts_of(request)
    assert (facts.session_id, facts.framework, facts.level) == ("s-1", "vllm", "high")
    assert list(facts.fallbacks) == ["a", "b"]


def test_typed_fields_that_are_not_set_are_not_there() -> None:
    request = pb.ProcessingRequest()
    request.metadata_context.filter_metadata[TYPED_NAMESPACE].update(
        {"session_id": [""], "fallback_models": [], "preferred_framework": []}
    )
    facts = facts_of(request)
    assert (facts.session_id, facts.framework, list(facts.fallbacks)) == ("", "", [])


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        ({"tools": True}, capability.TOOLS),
        ({"vision": True}, capability.VISION),
        ({"fallback_models": "W10="}, 0),
    ],
)
def test_tools_and_eyes_are_needed_where_the_body_has_use_for_them(
    said: dict[str, object], needs: int
) -> None:
    request = pb.ProcessingRequest()
    request.metadata_context.filter_metadata[PROMPT_NAMESPACE].update(said)
    assert facts_of(request).needs == needs
