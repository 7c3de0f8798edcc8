"""`infermesh prices`: what models cost."""

from typing import Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

app = typer.Typer(
    help="Set what models cost. Calls of a model without a price cost an unknown amount.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="The model, by the name under which it answers.")]

_UNIT = "US dollars for a million tokens, as in 0.15"


@app.command("list")
def list_prices(address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """List the prices, in US dollars for a million tokens."""
    from infermesh.metrics.v1 import price_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect
    from services.cli.tables import show

    with connect(address, key) as mesh:
        prices = mesh.prices.ListPrices(
            pb.ListPricesRequest(), metadata=mesh.metadata, timeout=TIMEOUT_S
        ).prices
    rows = [
        (
            price.model,
            price.input_usd,
            price.cached_input_usd if price.HasField("cached_input_usd") else "as prompt",
            price.output_usd,
            f"{price.update_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
        )
        for price in prices
    ]
    show("Prices", ("model", "prompt", "cached prompt", "made", "set at (UTC)"), rows)


@app.command("set")
def set_price(
    model: Model,
    prompt: Annotated[str, typer.Option("--input", help=f"Of prompts: {_UNIT}.")],
    made: Annotated[str, typer.Option("--output", help=f"Of what is made: {_UNIT}.")],
    cached: Annotated[
        str | None,
        typer.Option(
            "--cached-input",
            help=f"Of prompts as far as they were cached: {_UNIT}. Default: as --input.",
        ),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Set the price of a model. It holds for calls that end from now on."""
    from infermesh.metrics.v1 import price_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    price = pb.Price(model=model, input_usd=prompt, cached_input_usd=cached, output_usd=made)
    with connect(address, key) as mesh:
        mesh.prices.SetPrice(
            pb.SetPriceRequest(price=price), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"The price of {model} is set.")


@app.command()
def delete(model: Model, address: Address = DEFAULT_ADDRESS, key: Key = None) -> None:
    """Take the price from a model: what it answers from now on costs an unknown amount."""
    from infermesh.metrics.v1 import price_service_pb2 as pb
    from services.cli.client import TIMEOUT_S, connect

    with connect(address, key) as mesh:
        mesh.prices.DeletePrice(
            pb.DeletePriceRequest(model=model), metadata=mesh.metadata, timeout=TIMEOUT_S
        )
    typer.echo(f"{model} has no price any more.")
