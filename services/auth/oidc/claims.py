"""From what a token claims to who calls: times, audience, tenant, project, role, models."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from infermesh.access.v1 import access_pb2
from services.auth import rules
from services.auth.keyring import Grant
from services.auth.oidc.config import TENANT, IssuerSettings
from services.auth.oidc.parsing import RefusedTokenError
from services.auth.rules import Rules
from services.kit.errors import MeshError

_MAX_SUBJECT_CHARS = 1000
_MAX_ROLE_VALUES = 1000
_SUBJECT_HASH_CHARS = 22

# The last second of the year 9999; what comes later is no time.
_LAST_SECOND = 253402300799

# As `key_service.proto` has them for keys.
_MODELS = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._:/@+*?-]*")
_MAX_MODELS, _MAX_MODEL_CHARS = 50, 200

# The claims that are lists in one string, with spaces between (RFC 8693, section 4.2). Any other
# string is one value: a group `not admin` is not the group `admin`.
_SPACED = ("scope", "scp")

_POWER: Sequence[tuple[str, int]] = (
    ("admin", access_pb2.ROLE_ADMIN),
    ("operator", access_pb2.ROLE_OPERATOR),
    ("auditor", access_pb2.ROLE_AUDITOR),
    ("user", access_pb2.ROLE_USER),
)
"""The roles, the most powerful first."""

_NUMBERS = dict(_POWER)
_MISSING = object()


def check(claims: Mapping[str, Any], settings: IssuerSettings, now: float) -> float:
    """Checks whom a token is from and for, and when it is good.

    Args:
        claims: All of its claims.
        settings: What is asked of it.
        now: The time in seconds since 1970.

    Returns:
        Until when it is good, in seconds since 1970.

    Raises:
        RefusedTokenError: It is not good, or not now.
    """
    if claims.get("iss") != settings.issuer:
        raise RefusedTokenError("issuer")
    audience = claims.get("aud")
    said = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(each, str) and each in settings.audience for each in said):
        raise RefusedTokenError("audience")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARS:
        raise RefusedTokenError("subject")
    if "cnf" in claims:
        # Good only with a proof that the caller holds a key (RFC 7800); none is asked for here.
        raise RefusedTokenError("bound_to_a_key")
    return _check_times(claims, settings, now)


def _check_times(claims: Mapping[str, Any], settings: IssuerSettings, now: float) -> float:
    leeway = settings.leeway_s
    expires = _time(claims, "exp")
    if expires is None:
        raise RefusedTokenError("no_expiry")
    if now >= expires + leeway:
        raise RefusedTokenError("expired", is_expired=True)
    issued, begins = _time(claims, "iat"), _time(claims, "nbf")
    if (issued or 0) > now + leeway or (begins or 0) > now + leeway:
        raise RefusedTokenError("not_yet")
    # One that does not say when it was issued was issued now, at the latest.
    born = now if issued is None else issued
    if expires - min(born, now) > settings.max_lifetime_s:
        raise RefusedTokenError("lives_too_long")
    return expires + leeway


def grant(claims: Mapping[str, Any], settings: IssuerSettings, until_s: float) -> Grant:
    """Returns whom a verified token stands for.

    Every claim that the settings name must be there; only a role may have a default.

    Args:
        claims: Its claims, after `check`.
        settings: Which of them mean what.
        until_s: Until when it is good.

    Raises:
        RefusedTokenError: It stands for nobody here.
    """
    tenant = settings.tenant
    if tenant is None:
        tenant = _name(claims, settings.tenant_claim or "", "tenant")
    project = "default"
    if settings.project_claim is not None:
        project = _name(claims, settings.project_claim, "project")
    bound_to = rules.NONE
    if settings.models_claim is not None:
        bound_to = Rules(allowed_models=_models(claims, settings.models_claim))
    role = _role(claims, settings)
    key_id = f"oidc:{settings.name}:{subject_hash(claims['sub'])}"
    return Grant(key_id, tenant, project, role, until_s, rules.bounds_of(bound_to))


def subject_hash(subject: str) -> str:
    """Returns what stands for a subject in its key id: 132 bits of its SHA-256, in base64url.

    Raises:
        RefusedTokenError: It is no text that UTF-8 can write.
    """
    try:
        digest = hashlib.sha256(subject.encode()).digest()
    except UnicodeEncodeError:
        raise RefusedTokenError("subject") from None
    return base64.urlsafe_b64encode(digest)[:_SUBJECT_HASH_CHARS].decode()


def find(claims: Mapping[str, Any], path: str) -> Any:
    """Returns a claim by its name, else by its path; None where it is not there.

    A claim that is null is not there.
    """
    found = claims.get(path, _MISSING)
    if found is not _MISSING:
        return found
    found = claims
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # Not `isinstance`: to Python, True is a number. What compares to nothing, NaN, is out as well.
    if type(value) not in (int, float) or not 0 <= value <= _LAST_SECOND:
        raise RefusedTokenError("no_time")
    return float(value)


def _name(claims: Mapping[str, Any], path: str, what: str) -> str:
    value = find(claims, path)
    if not isinstance(value, str) or not TENANT.fullmatch(value):
        raise RefusedTokenError(what)
    return value


def _role(claims: Mapping[str, Any], settings: IssuerSettings) -> int:
    path = settings.role_claim
    if path is not None:
        said = find(claims, path)
        if isinstance(said, str):
            said = said.split(" ") if path.rpartition(".")[2] in _SPACED else [said]
        if isinstance(said, list):
            if len(said) > _MAX_ROLE_VALUES:
                raise RefusedTokenError("role")
            found = {settings.roles.get(each) for each in said if isinstance(each, str)}
            for name, number in _POWER:
                if name in found:
                    return number
    if settings.default_role is None:
        raise RefusedTokenError("role")
    return _NUMBERS[settings.default_role]


def _models(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    said = find(claims, path)
    if isinstance(said, str):
        said = said.split(" ") if path.rpartition(".")[2] in _SPACED else [said]
    # An empty list would allow all models, to a key.
    if not isinstance(said, list) or not 0 < len(said) <= _MAX_MODELS:
        raise RefusedTokenError("models")
    for each in said:
        if not isinstance(each, str) or len(each) > _MAX_MODEL_CHARS or not _MODELS.fullmatch(each):
            raise RefusedTokenError("models")
    found = Rules(allowed_models=tuple(said))
    try:
        rules.check(found)
    except MeshError:
        raise RefusedTokenError("models") from None
    return found.allowed_models
