"""What a key may use is told with the list of models too, though that names no model."""

from dataclasses import replace

from infermesh.access.v1 import access_pb2
from services.auth.keyring import Keyring
from services.auth.rules import Rules
from services.kit import headers
from unit.auth.auth_samples import (
    HASH_SECRET,
    USER,
    check_request,
    make_decider,
    make_key,
    read_reply,
    rest_headers,
)

LIST_MODELS = "/infermesh.routing.v1.OpenAIModelService/ListOpenAIModels"


def told(rules: Rules) -> str | None:
    ring = Keyring(HASH_SECRET)
    ring.apply([replace(make_key(ring, access_pb2.ROLE_USER), rules=rules)])
    reply, said = read_reply(
        make_decider(ring).decide(check_request(LIST_MODELS, rest_headers(USER, "/v1/models")))
    )
    assert reply.status.code == 0
    return said.get(headers.ALLOWED_MODELS)


def test_a_bound_keys_models_are_told() -> None:
    assert told(Rules(allowed_models=("a*",), denied_models=("ab",))) == "a*,!ab"


def test_of_others_nothing_is_said() -> None:
    assert told(Rules()) is None
