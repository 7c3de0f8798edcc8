"""Whom a certificate is for, whom a server admits, and how files change all at once."""

import os
from pathlib import Path

import pytest

from services.kit import tls
from services.kit.channels import split_address
from services.kit.tls import Allowed, TlsFolder, peer_name
from services.kit.tls_files import write_folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((("URI", "spiffe://infermesh/service/auth"),), "service/auth"),
        ((("DNS", "x"), ("URI", "spiffe://infermesh/envoy")), "envoy"),
        # Two ids: each side could believe another.
        ((("URI", "spiffe://infermesh/node/a"), ("URI", "spiffe://infermesh/envoy")), ""),
        ((("URI", "spiffe://elsewhere/envoy"),), ""),
        ((("URI", "https://infermesh/envoy"),), ""),
        ((("DNS", "envoy.infermesh.internal"),), ""),
        ((), ""),
    ],
)
def test_the_name_is_the_one_uri(names: tuple[tuple[str, str], ...], expected: str) -> None:
    assert peer_name({"subjectAltName": names}) == expected


def test_no_certificate_is_nobody() -> None:
    assert peer_name(None) == peer_name({}) == ""


def test_kinds_and_names_are_admitted() -> None:
    allowed = Allowed(["envoy", "service/*"])
    for name in ("envoy", "service/auth", "service/x"):
        assert name in allowed
    for name in ("", "envoy2", "envoy/x", "node/a", "service", "services/a", "*"):
        assert name not in allowed
    assert "" not in Allowed([])
    assert "service/a" not in Allowed(["service/b"])


def test_a_folder_changes_all_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_folder(folder, {"cert.pem": b"1", "key.pem": b"1"})
    first = (folder / "..data").resolve()
    write_folder(folder, {"cert.pem": b"2", "key.pem": b"2", "ca.pem": b"2"})
    assert {(folder / n).read_bytes() for n in ("cert.pem", "key.pem", "ca.pem")} == {b"2"}
    assert not first.exists()
    assert (folder / "..data").is_symlink()
    for path in folder.iterdir():
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == 0o700
            assert all(file.stat().st_mode & 0o777 == 0o600 for file in path.iterdir())
    # Besides the links, one generation.
    assert len([path for path in folder.iterdir() if not path.is_symlink()]) == 1


def test_a_write_that_fails_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, {"key.pem": b"1"})

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="space"):
        write_folder(tmp_path, {"key.pem": b"2"})
    monkeypatch.undo()
    assert (tmp_path / "key.pem").read_bytes() == b"1"
    assert sum(not path.is_symlink() for path in tmp_path.iterdir()) == 1


def test_a_change_of_any_file_is_another_version(tmp_path: Path) -> None:
    folder = TlsFolder(tmp_path)
    assert folder.version() is None
    files = {tls.CA_FILE: b"1", tls.CERTIFICATE_FILE: b"1", tls.KEY_FILE: b"1"}
    seen = []
    for name in (None, *files):
        if name:
            files[name] = b"2"
        write_folder(tmp_path, files)
        seen.append(folder.version())
    assert None not in seen
    assert all(seen.count(each) == 1 for each in seen)
    (tmp_path / tls.KEY_FILE).unlink()
    assert folder.version() is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("mesh:8080", ("mesh:8080", False)),
        ("http://mesh:8080", ("mesh:8080", False)),
        ("http://mesh/", ("mesh:80", False)),
        ("https://mesh:8443/", ("mesh:8443", True)),
        ("https://mesh", ("mesh:443", True)),
        ("https://[::1]:8443", ("[::1]:8443", True)),
        ("https://[::1]", ("[::1]:443", True)),
    ],
)
def test_addresses_of_front_doors(said: str, expected: tuple[str, bool]) -> None:
    assert split_address(said) == expected
