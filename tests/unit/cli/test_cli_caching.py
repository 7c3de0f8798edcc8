"""How `infermesh keys` says whether a key gets earlier answers."""

from infermesh.auth.v1 import key_service_pb2 as pb
from services.cli.caching import CachingName, facts, set_caching


def test_every_word_has_its_value_and_none_changes_nothing() -> None:
    rules = pb.KeyRules(labels={"a": "b"})
    for word, value in (
        (CachingName.ON, pb.CACHING_ON),
        (None, pb.CACHING_ON),
        (CachingName.OFF, pb.CACHING_OFF),
        (CachingName.CALL, pb.CACHING_UNSPECIFIED),
    ):
        set_caching(rules, word)
        assert rules == pb.KeyRules(labels={"a": "b"}, caching=value)


def test_what_is_shown() -> None:
    assert facts(pb.KeyRules()) == []
    assert facts(pb.KeyRules(caching=pb.CACHING_OFF)) == [("caching", "off")]
