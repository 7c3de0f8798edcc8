"""An issuer of tokens: a process of its own that speaks as much OpenID Connect as is needed.

python tests/oidc_issuer.py PORT

GET  /.well-known/openid-configuration   discovery
GET  /keys                               its key set
POST /token   {"claims": …, "algorithm": …, "lifetime_s": …}   a token by the newest key
POST /rotate  {"keep": true}             a new key; the earlier ones stay, or go
GET  /requests                           how often the key set was asked for
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "infermesh"


def make_private_key(algorithm: str) -> Any:
    """Returns a new private key for an algorithm."""
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curve = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}[algorithm]
    return ec.generate_private_key(curve())


def public_jwk(key: Any, kid: str | None, **members: Any) -> dict[str, Any]:
    """Returns the public half of a key, as key sets hold it."""
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        jwk = OKPAlgorithm.to_jwk(public, as_dict=True)
    else:
        jwk = ECAlgorithm.to_jwk(public, as_dict=True)
    jwk.pop("key_ops", None)
    return {**jwk, **({} if kid is None else {"kid": kid}), "use": "sig", **members}


class Issuer:
    """What the process keeps: its keys, newest last."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = 0
        self.keys: list[tuple[str, str, Any]] = []
        self._number = 0
        self.rotate(keep=False)

    def rotate(self, *, keep: bool) -> None:
        """Makes a new key of each kind."""
        self._number += 1
        made = [
            (f"{kind}-{self._number}", kind, make_private_key(kind))
            for kind in ("RS256", "ES256", "EdDSA")
        ]
        self.keys = [*(self.keys if keep else []), *made]

    def key_set(self) -> dict[str, Any]:
        """Returns the public halves of all keys."""
        self.requests += 1
        return {"keys": [public_jwk(key, kid, alg=kind) for kid, kind, key in self.keys]}

    def token(self, claims: dict[str, Any], algorithm: str, lifetime_s: float) -> str:
        """Returns a token by the newest key."""
        kid, _, key = next(each for each in reversed(self.keys) if each[1] == algorithm)
        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "iat": now, "exp": now + lifetime_s, **claims}
        return jwt.encode(claims, key, algorithm, headers={"kid": kid})


class _Handler(BaseHTTPRequestHandler):
    issuer: Issuer

    def do_GET(self) -> None:
        if self.path == "/.well-known/openid-configuration":
            url = self.issuer.url
            self._answer({"issuer": url, "jwks_uri": f"{url}/keys"})
        elif self.path == "/keys":
            self._answer(self.issuer.key_set())
        elif self.path == "/requests":
            self._answer({"requests": self.issuer.requests})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/rotate":
            self.issuer.rotate(keep=body.get("keep", True))
            self._answer({})
        elif self.path == "/token":
            algorithm, lifetime_s = body.get("algorithm", "RS256"), body.get("lifetime_s", 300)
            self._answer({"token": self.issuer.token(body["claims"], algorithm, lifetime_s)})
        else:
            self.send_error(404)

    def _answer(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of each request."""


class IssuerProcess:
    """The process, as tests use it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, with new keys."""
        command = [sys.executable, str(Path(__file__)), str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"{self.url}/requests").raise_for_status()
                return
            except httpx.HTTPError:
                assert time.monotonic() < deadline, "the issuer does not start"
                time.sleep(0.05)

    def stop(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def token(self, algorithm: str = "RS256", lifetime_s: float = 300, /, **claims: Any) -> str:
        """Returns a token for `sub`, unless the claims say another."""
        asked = {"claims": {"sub": "somebody", **claims}}
        return str(
            self._post("token", algorithm=algorithm, lifetime_s=lifetime_s, **asked)["token"]
        )

    def rotate(self, *, keep: bool) -> None:
        """Makes new keys; the earlier ones stay, or go."""
        self._post("rotate", keep=keep)

    def requests(self) -> int:
        """Returns how often the key set was asked for."""
        return int(httpx.get(f"{self.url}/requests").json()["requests"])

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/{path}", json=body).raise_for_status()
        return dict(answer.json())


@contextmanager
def running(port: int) -> Iterator[IssuerProcess]:
    """Runs an issuer for as long as the context lasts."""
    issuer = IssuerProcess(port)
    issuer.start()
    try:
        yield issuer
    finally:
        issuer.stop()


def main() -> None:
    """Serves until it is killed."""
    port = int(sys.argv[1])
    _Handler.issuer = Issuer(f"http://127.0.0.1:{port}")
    ThreadingHTTPServer(("127.0.0.1", port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
