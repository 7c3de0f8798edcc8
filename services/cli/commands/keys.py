"""`infermesh keys`: who may call the mesh."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.caching import Caching, set_caching
from services.cli.caching import facts as caching_facts
from services.cli.durations import seconds_of
from services.cli.guardrails import (
    BlockedPatterns,
    MaxPromptChars,
    Redactions,
    facts,
    keep_others,
    set_guardrails,
)
from services.cli.options import DEFAULT_ADDRESS, Address, Key

if TYPE_CHECKING:
    from infermesh.auth.v1 import key_service_pb2

app = typer.Typer(help="Create, change, rotate, list and revoke API keys.", no_args_is_help=True)


class RoleName(StrEnum):
    """A role as a person types it."""

    USER = "user"
    NODE = "node"
    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"


Models = Annotated[
    list[str] | None,
    typer.Option("--allow-model", help="Models that it may use, as llama-*; repeat for more."),
]
DeniedModels = Annotated[
    list[str] | None,
    typer.Option("--deny-model", help="Models that it may not use; repeat for more."),
]
Networks = Annotated[
    list[str] | None,
    typer.Option("--network", help="Where it may be used from, as 10.0.0.0/8; repeat for more."),
]
Origins = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", help="Origins of web pages that use it; repeat for more."),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="A note, as team=search; repeat for more.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for people to know the key by.")],
    role: Annotated[RoleName, typer.Option(help="What the key may do.")] = RoleName.USER,
    tenant: Annotated[str, typer.Option(help="The tenant that it acts for.")] = "default",
    project: Annotated[str, typer.Option(help="The tenant's project.")] = "default",
    expires: Annotated[
        str | None, typer.Option(help="How long it is valid, as 12h or 90d; for ever without.")
    ] = None,
    allow_model: Models = None,
    deny_model: DeniedModels = None,
    network: Networks = None,
    cors_origin: Origins = None,
    label: Labels = None,
    max_prompt_chars: MaxPromptChars = None,
    block: BlockedPatterns = None,
    redact: Redactions = None,
    caching: Caching = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Create a key. Its secret is printed this once, alone on standard output."""
    from infermesh.access.v1 import access_pb2
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = key_service_pb2.CreateKeyRequest(
        display_name=name,
        role=access_pb2.Role.Value(f"ROLE_{role.name}"),
        tenant=tenant,
        project=project,
        rules=_rules(allow_model, deny_model, network, cors_origin, label),
    )
    set_guardrails(request.rules, max_prompt_chars, block, redact)
    set_caching(request.rules, caching)
    if expires is not None:
        request.ttl.FromSeconds(seconds_of(expires))
    with connect(address, key) as mesh:
        made = mesh.keys.CreateKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{made.key.key_id} for {name}; the secret is not shown again:", err=True)
    typer.echo(made.secret)


@app.command("list")
def list_keys(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the keys, newest first, revoked ones included."""
    from infermesh.access.v1 import access_pb2
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    found: list[key_service_pb2.Key] = []
    request = key_service_pb2.ListKeysRequest(page_size=1000)
    with connect(address, key) as mesh:
        while True:
            page = mesh.keys.ListKeys(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
            found.extend(page.keys)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    rows = [
        (
            each.key_id,
            each.display_name,
            access_pb2.Role.Name(each.role).removeprefix("ROLE_").lower(),
            each.tenant if each.project in ("", "default") else f"{each.tenant}/{each.project}",
            f"{each.prefix}…",
            f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M}",
            _day(each, "last_use_time"),
            _bound(each.rules),
            _state(each),
        )
        for each in found
    ]
    columns = ("id", "name", "role", "tenant/project", "secret", "created (UTC)")
    show("Keys", (*columns, "last used", "bound to", "state"), rows)


def _state(key: "key_service_pb2.Key") -> str:
    from datetime import UTC, datetime

    if key.HasField("revoke_time"):
        return "revoked"
    expires = key.expire_time.ToDatetime(UTC) if key.HasField("expire_time") else None
    return "valid" if expires is None or expires > datetime.now(UTC) else "expired"


def _day(key: "key_service_pb2.Key", field: str) -> str:
    when = {each.name: value for each, value in key.ListFields()}.get(field)
    return "" if when is None else f"{when.ToDatetime():%Y-%m-%d %H:%M}"


def _bound(rules: "key_service_pb2.KeyRules") -> str:
    denied = (f"not {pattern}" for pattern in rules.denied_models)
    guarded = ["guardrails"] if rules.HasField("guardrails") else []
    return ", ".join([*rules.allowed_models, *denied, *rules.networks, *guarded])


def _rules(
    allowed: list[str] | None,
    denied: list[str] | None,
    networks: list[str] | None,
    origins: list[str] | None,
    labels: list[str] | None,
) -> "key_service_pb2.KeyRules":
    from infermesh.auth.v1 import key_service_pb2

    rules = key_service_pb2.KeyRules(
        allowed_models=allowed or (),
        denied_models=denied or (),
        networks=networks or (),
        cors_origins=origins or (),
    )
    for label in labels or ():
        name, equals, value = label.partition("=")
        if not equals:
            raise typer.BadParameter(f"{label} is not a label such as team=search.")
        rules.labels[name] = value
    return rules


@app.command()
def show(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Show all that is known of a key."""
    from infermesh.access.v1 import access_pb2
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show as show_table

    request = key_service_pb2.GetKeyRequest(key_id=key_id)
    with connect(address, key) as mesh:
        found = mesh.keys.GetKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    rules = found.rules
    known = [
        ("name", found.display_name),
        ("role", access_pb2.Role.Name(found.role).removeprefix("ROLE_").lower()),
        ("tenant", found.tenant),
        ("project", found.project),
        ("secret", f"{found.prefix}…"),
        ("state", _state(found)),
        ("created (UTC)", _day(found, "create_time")),
        ("expires (UTC)", _day(found, "expire_time")),
        ("revoked (UTC)", _day(found, "revoke_time")),
        ("old secret until (UTC)", _day(found, "old_secret_expire_time")),
        ("last used (UTC)", _day(found, "last_use_time")),
        ("models", ", ".join(rules.allowed_models)),
        ("not models", ", ".join(rules.denied_models)),
        ("networks", ", ".join(rules.networks)),
        ("origins", ", ".join(rules.cors_origins)),
        ("labels", ", ".join(f"{name}={value}" for name, value in sorted(rules.labels.items()))),
        *facts(rules),
        *caching_facts(rules),
    ]
    show_table(key_id, ("what", "detail"), [(name, value) for name, value in known if value])


@app.command()
def update(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    role: Annotated[RoleName | None, typer.Option(help="A new role.")] = None,
    allow_model: Models = None,
    deny_model: DeniedModels = None,
    network: Networks = None,
    cors_origin: Origins = None,
    label: Labels = None,
    max_prompt_chars: MaxPromptChars = None,
    block: BlockedPatterns = None,
    redact: Redactions = None,
    caching: Caching = None,
    free: Annotated[
        bool, typer.Option("--free", help="Take all rules and labels away that are not named here.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Change a key. A rule that is named takes the place of that rule alone."""
    from infermesh.access.v1 import access_pb2
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    wanted = _rules(allow_model, deny_model, network, cors_origin, label)
    set_guardrails(wanted, max_prompt_chars, block, redact)
    request = key_service_pb2.UpdateKeyRequest(key_id=key_id, display_name=name)
    if role is not None:
        request.role = access_pb2.Role.Value(f"ROLE_{role.name}")
    with connect(address, key) as mesh:
        if free or caching is not None or wanted != key_service_pb2.KeyRules():
            request.rules.CopyFrom(wanted)
            if not free:
                asked = key_service_pb2.GetKeyRequest(key_id=key_id)
                old = mesh.keys.GetKey(asked, metadata=mesh.metadata, timeout=TIMEOUT_S).rules
                request.rules.CopyFrom(keep_others(wanted, old))
            set_caching(request.rules, caching)
        changed = mesh.keys.UpdateKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{changed.key_id} ({changed.display_name}) is changed.")


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    overlap: Annotated[
        str, typer.Option(help="How long the secret until now stays valid, as 0s, 1h or 7d.")
    ] = "1h",
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Give a key a new secret. It is printed this once, alone on standard output."""
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = key_service_pb2.RotateKeyRequest(key_id=key_id)
    request.overlap.FromSeconds(seconds_of(overlap))
    with connect(address, key) as mesh:
        made = mesh.keys.RotateKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    until = _day(made.key, "old_secret_expire_time")
    stays = f"the old one is valid until {until} UTC" if until else "the old one is not valid"
    typer.echo(f"{key_id} has a new secret, not shown again; {stays}:", err=True)
    typer.echo(made.secret)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Revoke a key for good."""
    from infermesh.auth.v1 import key_service_pb2
    from services.cli.client import TIMEOUT_S, connect

    request = key_service_pb2.RevokeKeyRequest(key_id=key_id)
    with connect(address, key) as mesh:
        revoked = mesh.keys.RevokeKey(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    typer.echo(f"{revoked.key_id} ({revoked.display_name}) is revoked.")
