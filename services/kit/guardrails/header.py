"""How services tell each other what a key wants of prompts."""

import binascii

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from infermesh.auth.v1 import key_service_pb2 as pb


class UnknownGuardrailsError(Exception):
    """The header says something that this version does not know, and so cannot do."""


def write(guardrails: pb.Guardrails) -> str:
    """Returns the value of the header; empty where nothing is wanted."""
    data = guardrails.SerializeToString(deterministic=True)
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def read(text: str) -> pb.Guardrails:
    """Returns what `write` wrote.

    Raises:
        UnknownGuardrailsError: It is not what `write` of this version writes.
    """
    guardrails = pb.Guardrails()
    try:
        guardrails.ParseFromString(binascii.a2b_base64(text, strict_mode=True))
    except (binascii.Error, DecodeError, ValueError) as error:
        raise UnknownGuardrailsError(str(error)) from None
    if _has_unknown(guardrails):
        raise UnknownGuardrailsError("it has fields of a later version")
    return guardrails


def _has_unknown(message: Message) -> bool:
    return len(UnknownFieldSet(message)) > 0
