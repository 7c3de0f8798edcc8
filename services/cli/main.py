"""The command line of infermesh. Commands import what they need when they run, so help is fast."""

import typer

from services.cli.commands import (
    audit,
    bench,
    certs,
    chat,
    keys,
    limits,
    models,
    node,
    nodes,
    policies,
    prices,
    projects,
    splits,
    status,
    tenants,
    trust,
    up,
    usage,
)

app = typer.Typer(
    help="Turns a handful of GPU machines into one LLM endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(trust.trust)
app.command("up")(up.up)
app.command("status")(status.status)
app.command("chat")(chat.chat)
app.command("node")(node.node)
app.command("bench")(bench.bench)
app.command("usage")(usage.usage)
app.add_typer(audit.app, name="audit")
app.add_typer(certs.app, name="certs")
app.add_typer(tenants.app, name="tenants")
app.add_typer(projects.app, name="projects")
app.add_typer(keys.app, name="keys")
app.add_typer(limits.app, name="limits")
app.add_typer(models.app, name="models")
app.add_typer(nodes.app, name="nodes")
app.add_typer(policies.app, name="policies")
app.add_typer(splits.app, name="splits")
app.add_typer(prices.app, name="prices")
