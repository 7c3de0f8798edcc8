"""`infermesh up`: the whole mesh on this machine."""

from typing import Annotated

import typer

from services.cli.options import STATE_DIR, StateDir, fail


def up(
    host: Annotated[str, typer.Option(help="The address of the front door.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port of the front door.")] = 8080,
    base_port: Annotated[
        int, typer.Option(help="The parts listen on loopback from this port on.", max=32700)
    ] = 17000,
    nodes: Annotated[int, typer.Option(help="Nodes that serve the chat model.", min=1, max=18)] = 2,
    state_dir: StateDir = STATE_DIR,
) -> None:
    """Start the whole mesh here and stay until Ctrl-C."""
    from services.cli import models
    from services.cli.fetching import fetch_with_progress
    from services.cli.lock import AlreadyRunningError, hold

    folder = state_dir.absolute()
    try:
        with hold(folder):
            fetch_with_progress(models.default_folder())

            from services.cli import running, stack

            options = stack.Options(
                state_dir=folder,
                models_dir=models.default_folder(),
                host=host,
                port=port,
                base_port=base_port,
                chat_nodes=nodes,
            )
            running.run(options, shown_state_dir=state_dir)
    except AlreadyRunningError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
