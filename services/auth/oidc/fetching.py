"""Gets an issuer's documents: what it says of itself, and its keys.

Discovery is OpenID Connect Discovery 1.0, section 4, which RFC 8414 shares.
"""

import asyncio
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import urljoin

import httpx2
import orjson

from services.auth.oidc.config import IssuerSettings, check_url

_TIMEOUT_S = 5.0
_MAX_BYTES = 1024 * 1024
_MAX_REDIRECTS = 3
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])", re.IGNORECASE)


class FetchError(Exception):
    """A document cannot be had, or is not one; the message says why, for logs."""


class Document(NamedTuple):
    """A JSON object from the web.

    Attributes:
        content: The object.
        max_age_s: For how long it is fresh, as its server says; None where it does not.
    """

    content: dict[str, Any]
    max_age_s: int | None


class Fetcher:
    """Gets the documents of one issuer; every request ends within 5 s and 1 MiB.

    Args:
        settings: The issuer.
        transport: What makes the requests; None for HTTP.
    """

    def __init__(
        self, settings: IssuerSettings, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        ca_file = settings.ca_file
        self._client = httpx2.AsyncClient(
            verify=True if ca_file is None else ssl.create_default_context(cafile=str(ca_file)),
            transport=transport,
            timeout=_TIMEOUT_S,
            follow_redirects=False,
            # Neither proxies nor passwords come from the environment of the process.
            trust_env=False,
            # What is packed may be a thousand times as large as it looks.
            headers={"accept": "application/json", "accept-encoding": "identity"},
            limits=httpx2.Limits(max_connections=2, max_keepalive_connections=1),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def key_set(self) -> Document:
        """Returns the issuer's key set, found by discovery where the settings do not say where.

        Raises:
            FetchError: It cannot be had.
        """
        url = self._settings.jwks_uri
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._get(url or await self._discover())
        except TimeoutError:
            raise FetchError(f"no answer within {_TIMEOUT_S:g} s") from None
        # What a server writes can break the client's parsers in more ways than its own errors name.
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise FetchError(f"{type(error).__name__}: {error}"[:300]) from None

    async def _discover(self) -> str:
        issuer = self._settings.issuer
        said = await self._get(issuer.removesuffix("/") + "/.well-known/openid-configuration")
        # Else one issuer could stand in for another (section 4.3).
        if said.content.get("issuer") != issuer:
            raise FetchError("discovery is of another issuer")
        url = said.content.get("jwks_uri")
        if not isinstance(url, str):
            raise FetchError("discovery names no jwks_uri")
        check_url(url)
        return url

    async def _get(self, url: str) -> Document:
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._client.stream("GET", url) as response:
                if not response.has_redirect_location:
                    return await _read(response)
                target = urljoin(url, response.headers["location"])
            if _origin(target) != _origin(url):
                raise FetchError("a redirect to another host")
            url = target
        raise FetchError("too many redirects")


async def _read(response: httpx2.Response) -> Document:
    if response.status_code != 200:
        raise FetchError(f"status {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError("the answer is packed")
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > _MAX_BYTES:
            raise FetchError(f"more than {_MAX_BYTES} bytes")
    content = orjson.loads(data)
    if not isinstance(content, dict):
        raise FetchError("no JSON object")
    found = _MAX_AGE.search(response.headers.get("cache-control", ""))
    return Document(content, int(found[1]) if found else None)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = check_url(url)
    return parts.scheme, parts.hostname, parts.port
