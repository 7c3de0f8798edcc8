"""Streams end with the keys that they began with."""

from collections.abc import Collection

import grpc

from services.registry.key_watch import KeyWatch

ATTACH = "/infermesh.registry.v1.NodeService/AttachNode"
WATCH = "/infermesh.registry.v1.NodeService/WatchMesh"


class Auth:
    """Says what a test has it say."""

    def __init__(self) -> None:
        self.refused: set[tuple[str, str]] = set()
        self.asked: list[int] = []
        self.is_away = False

    async def find(self, rpc: str, key_ids: Collection[str]) -> Collection[str]:
        self.asked.append(len(key_ids))
        if self.is_away:
            code, empty = grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(code, empty, empty)
        return [key_id for key_id in key_ids if (rpc, key_id) in self.refused]


async def test_only_the_streams_of_the_key_end_and_only_once() -> None:
    auth, ended = Auth(), []
    watch = KeyWatch(auth)
    for name in ("a", "a", "b"):
        watch.add(ATTACH, f"key_{name}", lambda name=name: ended.append(name))
    watch.add(WATCH, "key_a", lambda: ended.append("watch"))
    await watch.look()
    assert ended == []
    auth.refused = {(ATTACH, "key_a")}
    await watch.look()
    await watch.look()
    assert ended == ["a", "a"]


async def test_a_stream_that_is_over_is_not_asked_for() -> None:
    auth, ended = Auth(), []
    watch = KeyWatch(auth)
    over = watch.add(ATTACH, "key_a", lambda: ended.append("a"))
    over()
    over()
    # One that came past Envoy has no key.
    watch.add(ATTACH, "", lambda: ended.append(""))
    auth.refused = {(ATTACH, "key_a"), (ATTACH, "")}
    await watch.look()
    assert (auth.asked, ended) == ([], [])


async def test_while_auth_is_away_streams_go_on() -> None:
    auth, ended = Auth(), []
    watch = KeyWatch(auth)
    watch.add(ATTACH, "key_a", lambda: ended.append("a"))
    auth.refused, auth.is_away = {(ATTACH, "key_a")}, True
    await watch.look()
    assert ended == []
    auth.is_away = False
    await watch.look()
    assert ended == ["a"]


async def test_an_issuers_token_is_to_be_shown_again() -> None:
    auth, ended, now = Auth(), [], [0.0]
    watch = KeyWatch(auth, lambda: now[0])
    watch.add(WATCH, "oidc:corp:x", lambda: ended.append("token"))
    watch.add(WATCH, "key_a", lambda: ended.append("key"))
    now[0] = 299.0
    await watch.look()
    assert ended == []
    now[0] = 301.0
    await watch.look()
    assert ended == ["token"]


async def test_ever_so_many_keys_are_asked_for_in_parts() -> None:
    auth = Auth()
    watch = KeyWatch(auth)
    for number in range(10_000):
        watch.add(WATCH, f"key_{number}", lambda: None)
    await watch.look()
    assert auth.asked == [8192, 1808]
