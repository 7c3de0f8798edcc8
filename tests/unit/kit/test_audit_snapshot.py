"""What of requests and resources gets into the audit log."""

import orjson
import pytest
from google.protobuf import empty_pb2, struct_pb2
from google.protobuf.message import Message

from infermesh.auth.v1 import audit_service_pb2, key_service_pb2
from services.kit import audit_chain
from services.kit.audit_snapshot import resource_id, snapshot

SECRET = "im-" + "s" * 43


def test_secrets_are_left_out_wherever_they_are() -> None:
    key = key_service_pb2.Key(key_id="key_a", display_name=f"mine: {SECRET}", prefix="im-ssss")
    text = snapshot(key_service_pb2.CreateKeyResponse(key=key, secret=SECRET))
    assert orjson.loads(text) == {
        "key": {"key_id": "key_a", "display_name": "mine: [a secret]", "prefix": "im-ssss"}
    }


def test_what_is_empty_or_too_long() -> None:
    assert snapshot(empty_pb2.Empty()) == ""
    many = struct_pb2.ListValue()
    many.extend(["x" * 100] * 1000)
    assert list(orjson.loads(snapshot(many))) == ["too_long_bytes"]


@pytest.mark.parametrize(
    ("message", "names", "found"),
    [
        (key_service_pb2.RevokeKeyRequest(key_id="key_a"), ["key_id"], "key_a"),
        (
            key_service_pb2.CreateKeyResponse(key=key_service_pb2.Key(key_id="key_a")),
            ["key_id"],
            "key_a",
        ),
        (key_service_pb2.CreateKeyRequest(tenant="acme"), ["key_id"], ""),
        (key_service_pb2.Key(key_id="key_a", tenant="acme"), ["tenant", "key_id"], "acme/key_a"),
        (key_service_pb2.RevokeKeyRequest(key_id="key_a"), [], "key_a"),
        (key_service_pb2.ListKeysRequest(), [], ""),
    ],
)
def test_what_a_message_is_about(message: Message, names: list[str], found: str) -> None:
    assert resource_id(message, names) == found


def test_the_form_that_is_hashed_holds_every_field() -> None:
    # A field that is added to the proto and not to the form could be changed unseen.
    fields = audit_service_pb2.AuditEvent.DESCRIPTOR.fields
    plain = audit_chain.form(audit_service_pb2.AuditEvent())
    for each in fields:
        event = audit_service_pb2.AuditEvent()
        if each.name == "time":
            event.time.FromMicroseconds(1)
        else:
            setattr(event, each.name, "x" if each.type == each.TYPE_STRING else 1)
        assert (audit_chain.form(event) != plain) == (each.name != "hash"), each.name
    # Written by hand from docs/audit.md.
    assert plain == b'[0,"",0,0,"","","","","","","","","","","",0]'
