"""`infermesh certs`, and what the embedded mesh's parts are told about TLS."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import stack, stack_tls
from services.cli.certs import Certs, CertsError
from services.cli.main import app
from services.cli.stack_tls import StackTls, TlsOptions
from services.kit.certificate_reading import read
from services.kit.certificates import Authority

DAY = timedelta(hours=24)


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    certs = Certs(tmp_path / "tls")
    assert certs.init()
    return certs


def run(*words: str, fails: bool = False) -> str:
    done = CliRunner().invoke(app, ["certs", *words], env={"COLUMNS": "160"})
    assert bool(done.exit_code) == fails, done.output
    return done.output


def test_commands_make_show_and_renew(tmp_path: Path) -> None:
    where = ("--dir", str(tmp_path / "c"))
    assert "ca.pem cannot be read" in run("show", *where, fails=True)
    assert "Made the authority" in run("init", *where)
    ca = (tmp_path / "c" / "ca.pem").read_bytes()
    assert "Found the authority" in run("init", *where)
    assert (tmp_path / "c" / "ca.pem").read_bytes() == ca
    run("issue", "front", "node/gpu-1", "--host", "mesh.example.com", "--life", "90d", *where)
    run("issue", "--services", *where)
    said = run("show", *where)
    for word in ("mesh.example.com", "node/gpu-1", "service/auth", "90 d", "24.0 h", "ca "):
        assert word in said, said
    assert "None is due." in run("renew", *where)
    certs = Certs(tmp_path / "c")
    before = {leaf.name: leaf.shown.serial for leaf in certs.leaves()}
    assert run("renew", "--all", *where).count("good until") == len(before) == 9
    after = {leaf.name: leaf.shown for leaf in certs.leaves()}
    assert not set(before.items()) & {(n, s.serial) for n, s in after.items()}
    assert after["front"].hosts == ("mesh.example.com",)
    # For as long as before.
    left = after["front"].end - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    assert "service/auth" in run("show", str(tmp_path / "c" / "service" / "auth" / "cert.pem"))


@pytest.mark.parametrize(
    "words",
    [
        ("issue",),
        ("issue", "front"),
        ("issue", "front", "--host", "a b"),
        ("issue", "service/../x"),
        ("issue", "admin"),
        ("issue", "node/"),
        ("issue", "envoy", "--life", "soon"),
        ("issue", "envoy", "--life", "1s"),
        ("show", "/no/such.pem"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(certs: Certs, words: tuple[str, ...]) -> None:
    said = run(*words, "--dir", str(certs.path), fails=True)
    assert "Traceback" not in said
    assert said.strip()


def test_without_an_authority_nothing_is_issued(tmp_path: Path) -> None:
    assert "infermesh certs init" in run("issue", "envoy", "--dir", str(tmp_path), fails=True)
    assert "infermesh certs init" in run("renew", "--dir", str(tmp_path), fails=True)


def test_ensure_renews_what_is_due_or_anothers(certs: Certs) -> None:
    def serial() -> str:
        return next(leaf.shown.serial for leaf in certs.leaves() if leaf.name == "envoy")

    certs.ensure("envoy")
    first = serial()
    certs.ensure("envoy")
    assert serial() == first
    certs.issue("envoy", timedelta(seconds=60))  # half of it was over when it was made
    due = serial()
    certs.ensure("envoy")
    assert serial() not in (first, due)
    third = serial()
    (certs.ca_dir / "ca-key.pem").unlink()
    certs.init()
    certs.ensure("envoy")
    assert serial() != third


def options(tmp_path: Path, **fields: object) -> stack.Options:
    tls = TlsOptions(**fields)  # type: ignore[arg-type]
    return stack.Options(state_dir=tmp_path, models_dir=tmp_path, tls=tls)


def test_without_tls_nobody_is_told_of_it(tmp_path: Path) -> None:
    made = StackTls(TlsOptions(), tmp_path, "127.0.0.1")
    made.prepare(["auth"], ["node-1"])
    assert dict(made.of_service("auth")) == dict(made.of_node("node-1")) == {}
    assert (made.of_envoy().front, made.of_envoy().mesh) == (None, None)
    assert made.own_folder is made.ca_file is None
    assert list(tmp_path.iterdir()) == []
    assert options(tmp_path).front_url == "http://127.0.0.1:8080"


def test_with_tls_each_part_has_a_folder_of_its_own(tmp_path: Path) -> None:
    made = StackTls(TlsOptions(mesh=True, hosts=("mesh.example.com",)), tmp_path, "10.1.2.3")
    made.prepare(["auth", "metrics"], ["node-1"])
    assert made.of_service("auth") == {
        "TLS_DIR": str(tmp_path / "service" / "auth"),
        "CA_DIR": str(tmp_path / "ca"),
    }
    # Nobody but auth has the authority's key.
    assert made.of_service("metrics") == {"TLS_DIR": str(tmp_path / "service" / "metrics")}
    assert made.of_node("node-1") == {
        "TLS_DIR": str(tmp_path / "node" / "node-1"),
        "MESH_CA": str(tmp_path / "ca.pem"),
    }
    front = read((tmp_path / "front" / "cert.pem").read_bytes())
    assert {"localhost", "127.0.0.1", "::1", "10.1.2.3", "mesh.example.com"} <= set(front.hosts)
    assert made.hsts == ""
    assert made.renew() == []
    assert options(tmp_path, mesh=True).front_url == "https://127.0.0.1:8080"


def brought(folder: Path, host: str = "*.example.com") -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    ca = Authority.make()
    leaf = Authority(ca.certificate, ca.key).issue_front([host], DAY)
    (folder / "chain.pem").write_bytes(leaf.certificate)
    (folder / "secret.pem").write_bytes(leaf.key)
    return folder / "chain.pem", folder / "secret.pem"


def test_a_certificate_that_was_brought_serves_the_front_alone(tmp_path: Path) -> None:
    chain, key = brought(tmp_path / "mine")
    made = StackTls(TlsOptions(certificate=chain, key=key), tmp_path / "tls", "127.0.0.1")
    made.prepare(["auth"], ["node-1"])
    envoy = made.of_envoy()
    assert envoy.mesh is None
    assert envoy.front is not None
    assert (envoy.front / "cert.pem").read_bytes() == chain.read_bytes()
    assert made.of_service("auth") == {}
    assert made.of_node("node-1")["MESH_NAME"] == "infermesh.example.com"
    assert made.hsts
    assert made.ca_file is None
    # Renewed by the person, in place.
    brought(tmp_path / "mine")
    assert made.renew() == ["front"]
    assert (envoy.front / "key.pem").read_bytes() == key.read_bytes()
    key.write_bytes(b"half")
    with pytest.raises(CertsError):
        made.renew()
    assert (envoy.front / "key.pem").read_bytes() != b"half"


def test_keep_makes_all_and_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certs, rounds = Certs(tmp_path / "c"), 0
    made: dict[str, str] = {}

    def wait(_: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            made.update((leaf.name, leaf.shown.serial) for leaf in certs.leaves())
            certs.issue("service/auth", timedelta(seconds=60))
            (certs.path / "envoy" / "cert.pem").unlink()
            (certs.path / "envoy" / "cert.pem").mkdir()  # cannot be written
        elif rounds == 2:
            (certs.path / "envoy" / "cert.pem").rmdir()
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", wait)
    words = ["certs", "keep", "--host", "mesh.example.com", "--dir", str(certs.path)]
    done = CliRunner().invoke(app, words)
    assert "Traceback" not in done.output
    assert rounds == 3
    parts = {"auth", "registry", "routing", "embeddings", "metrics", "jobs"}
    assert set(made) == {"front", "envoy"} | {f"service/{part}" for part in parts}
    now = {leaf.name: leaf.shown for leaf in certs.leaves()}
    assert set(now) == set(made)
    assert now["service/registry"].serial == made["service/registry"]
    assert now["service/auth"].end - datetime.now(UTC) > timedelta(hours=23)


async def test_the_keeper_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = StackTls(TlsOptions(mesh=True), tmp_path, "127.0.0.1")
    made.prepare([], [])
    looks = 0

    async def no_wait(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            made._certs.issue("envoy", timedelta(seconds=60))
        if looks == 4:
            raise KeyboardInterrupt

    def broken() -> list[str]:
        if looks == 1:
            raise CertsError("the disk is full")
        return StackTls.renew(made)

    monkeypatch.setattr(stack_tls.asyncio, "sleep", no_wait)
    monkeypatch.setattr(made, "renew", broken)
    with pytest.raises(KeyboardInterrupt):
        await made.keep()
    left = read((tmp_path / "envoy" / "cert.pem").read_bytes()).end - datetime.now(UTC)
    assert left > timedelta(hours=23)
