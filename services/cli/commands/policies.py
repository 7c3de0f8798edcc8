"""`infermesh policies`: how nodes are chosen."""

from typing import Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key, fail

app = typer.Typer(help="Say how nodes are chosen for calls.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The policy's name.")]
Model = Annotated[str, typer.Argument(help="The model's name.")]


@app.command("list")
def list_policies(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the policies, and the models that have one or fallbacks of their own."""
    from infermesh.routing.v1 import policy_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    with connect(address, key) as mesh:
        policies = mesh.policies.ListPolicies(
            pb.ListPoliciesRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        ).policies
        routes = mesh.policies.ListModelRoutes(
            pb.ListModelRoutesRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        ).routes
    rows = [
        (
            each.name,
            "built in" if each.built_in else "custom",
            each.picker or "best_first",
            " ".join(f"{name}={weight:g}" for name, weight in sorted(each.scorers.items())),
            f"{each.hedging.delay.ToMilliseconds()} ms" if each.HasField("hedging") else "",
        )
        for each in policies
    ]
    show("Policies", ("policy", "kind", "picker", "scorers", "hedges after"), rows)
    if routes:
        show(
            "Models",
            ("model", "policy", "fallbacks"),
            [
                (each.model, each.policy or "balanced", ", ".join(each.fallback_models))
                for each in routes
            ],
        )


@app.command("set")
def set_policy(
    name: Name,
    scorers: Annotated[
        list[str] | None,
        typer.Option("--scorer", help="A scorer's weight, as in prefix=3. May be repeated."),
    ] = None,
    picker: Annotated[str, typer.Option(help="best_first, random or round_robin.")] = "best_first",
    load_factor: Annotated[
        float | None,
        typer.Option(help="How much busier than the mean a node may be that has the prompt."),
    ] = None,
    max_pressure: Annotated[
        float | None, typer.Option(help="Calls to a slot above which a node gets no more.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="A label that nodes must have, as in zone=eu."),
    ] = None,
    deny: Annotated[
        list[str] | None,
        typer.Option("--deny", help="A label that nodes must not have, as in spot=yes."),
    ] = None,
    hedge_after_ms: Annotated[
        int | None,
        typer.Option(help="Ask a second node when a stream has no first byte by then."),
    ] = None,
    hedge_budget: Annotated[
        float, typer.Option(help="Which share of the calls may be sent twice.")
    ] = 0.05,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Create a policy, or replace the one of that name. It holds from the next call on."""
    from infermesh.routing.v1 import policy_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    policy = pb.Policy(name=name, picker=picker)
    for scorer, weight in pairs(scorers or []):
        try:
            policy.scorers[scorer] = float(weight)
        except ValueError:
            fail(f"{scorer}={weight}: the weight is no number.")
    if load_factor is not None:
        policy.load_factor = load_factor
    if max_pressure is not None:
        policy.max_pressure = max_pressure
    for label, value in pairs(allow or []):
        policy.allow_labels[label].values.append(value)
    for label, value in pairs(deny or []):
        policy.deny_labels[label].values.append(value)
    if hedge_after_ms is not None:
        policy.hedging.delay.FromMilliseconds(hedge_after_ms)
        policy.hedging.budget = hedge_budget
    with connect(address, key) as mesh:
        known = mesh.policies.ListPolicies(
            pb.ListPoliciesRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        ).policies
        if any(each.name == name for each in known):
            made = mesh.policies.UpdatePolicy(
                pb.UpdatePolicyRequest(policy=policy), metadata=mesh.metadata, timeout=TIMEOUT_S
            )
        else:
            made = mesh.policies.CreatePolicy(
                pb.CreatePolicyRequest(policy=policy), metadata=mesh.metadata, timeout=TIMEOUT_S
            )
    typer.echo(f"The policy {made.name} is set.")


@app.command()
def delete(name: Name, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Delete a policy that no model has."""
    from infermesh.routing.v1 import policy_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    with connect(address, key) as mesh:
        mesh.policies.DeletePolicy(
            pb.DeletePolicyRequest(name=name), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"The policy {name} is deleted.")


@app.command()
def use(
    model: Model,
    policy: Annotated[str, typer.Argument(help="The policy's name.")] = "balanced",
    fallbacks: Annotated[
        list[str] | None,
        typer.Option("--fallback", help="A model to answer with instead. May be repeated."),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Give a model a policy and fallbacks."""
    from infermesh.routing.v1 import policy_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    route = pb.ModelRoute(model=model, policy=policy, fallback_models=fallbacks or [])
    with connect(address, key) as mesh:
        mesh.policies.SetModelRoute(
            pb.SetModelRouteRequest(route=route), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"The model {model} has the policy {policy}.")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="The model's name, or an alias.")],
    policy: Annotated[str, typer.Option(help="Decide by this policy instead.")] = "",
    body: Annotated[
        typer.FileText | None, typer.Option(help="A file with the call's body; - for a pipe.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Say where a call would go now, and why."""
    from infermesh.routing.v1 import routing_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    request = pb.ExplainRequest(model=model, policy=policy, body=body.read() if body else "")
    with connect(address, key) as mesh:
        found = mesh.routing.Explain(request, metadata=mesh.metadata, timeout=TIMEOUT_S)
    rows = [
        (
            each.node_id,
            each.model,
            each.refusal or "eligible",
            f"{each.score:.3f}" if each.eligible else "",
            " ".join(f"{name}={score:.2f}" for name, score in sorted(each.scores.items())),
            f"{each.pressure:.2f}" if each.eligible else "",
            f"{each.cached:.0%}" if each.eligible else "",
        )
        for each in found.candidates
    ]
    columns = ("node", "model", "verdict", "score", "scores", "pressure", "cached")
    show(f"Nodes by {found.policy}", columns, rows)


def pairs(texts: list[str]) -> list[tuple[str, str]]:
    """Returns the names and values of `name=value`, or ends the command."""
    found = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not (name and equals and value):
            fail(f"{text}: write name=value.")
        found.append((name, value))
    return found
