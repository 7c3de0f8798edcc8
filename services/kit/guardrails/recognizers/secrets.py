"""Passwords, keys and tokens: by the form that issuers document, and by what announces them."""

from collections.abc import Iterator
from typing import Any

from services.kit.guardrails.recognizers.recognizer import Proofs, apart, compiled

# To its end, or as far as it goes where that was cut off.
_PRIVATE_KEY = compiled(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-[^-])*"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
)
_TOKENS = (
    r"im-[\w-]{43}",  # infermesh
    r"sk-[\w-]{20,}",  # OpenAI, Anthropic and those who do as they do
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS
    r"AIza[\w-]{35}",  # Google, API keys
    r"GOCSPX-[\w-]{20,}",  # Google, client secrets
    r"ya29\.[\w-]{20,}",  # Google, access tokens
    r"gh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
    r"github_pat_\w{22,}",
    r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|imt)-[\w.-]{20,}",  # GitLab
    r"xox[a-z]-[A-Za-z0-9-]{10,}",  # Slack
    r"xapp-[A-Za-z0-9-]{20,}",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{10,}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{20,}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    r"npm_[A-Za-z0-9]{30,}",  # npm
    r"pypi-[\w-]{50,}",  # PyPI
    r"do[opr]_v1_[a-f0-9]{64}",  # DigitalOcean
    r"dapi[a-f0-9]{32}",  # Databricks
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",  # Shopify
    r"hv[sbr]\.[\w-]{24,}",  # Vault
    r"[0-9]{8,10}:[\w-]{35}",  # Telegram
    r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*",  # JSON Web Tokens (RFC 7519)
)
_TOKEN = compiled(rf"\b(?:{'|'.join(_TOKENS)})")
_WEBHOOK = compiled(
    r"https://(?:hooks\.slack\.com/(?:services|workflows|triggers)"
    r"|(?:\w+\.)?discord(?:app)?\.com/api/webhooks)/([\w/-]{8,})"
)
# RFC 3986's user information, and the schemes of RFC 7617 and RFC 6750.
_IN_URL = compiled(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\"']*:([^\s/@\"']+)@")
_HEADER = compiled(
    r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token|apikey)\s+)?([\w.~+/=-]{8,})"
    r"|\bbearer\s+([\w.~+/=-]{20,})"
)
_NAMED = compiled(
    r"(?i)(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credentials?"
    r"|(?:api|access|account|auth|client|encryption|private|secret|shared|signing)[ _-]?key)"
    r"[\"'`]?(?:\s*(?:=|:|:=|=>)\s*|\s+is:?\s+)"
    r"(?:\"([^\"\n]{4,})\"|'([^'\n]{4,})'|`([^`\n]{4,})`|([^\s\"'`,;<>(){}\[\]]{4,}))"
)
_WITH_VALUE = (_WEBHOOK, _IN_URL, _HEADER, _NAMED)
# The group of `_NAMED` that is not in quotes.
_BARE = 4
_MIN_LONG = 16


class Secrets:
    """Finds secrets. One that nothing announces and whose form nobody documents is not found."""

    word = "<SECRET>"

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """See `Recognizer`."""
        found = [match.span() for match in _TOKEN.finditer(text)]
        if "-----BEGIN" in text:
            found += [match.span() for match in _PRIVATE_KEY.finditer(text)]
        for pattern in _WITH_VALUE:
            found += _values(pattern, text)
        yield from apart(found)


def _values(pattern: Any, text: str) -> Iterator[tuple[int, int]]:
    """Returns the places of what a pattern's groups hold, without what announces it."""
    for match in pattern.finditer(text):
        for group in range(1, pattern.groups + 1):
            start, end = match.span(group)
            if start < 0:
                continue
            if group == _BARE and not _is_secret(text[start:end]):
                continue
            yield start, end


def _is_secret(word: str) -> bool:
    """Says whether a word is none of the language's, as it is in `password is required`."""
    word = word.rstrip(".!?:")
    return len(word) >= _MIN_LONG or any(
        character.isdigit() or not (character.isalpha() or character in "-_./'’")
        for character in word
    )
