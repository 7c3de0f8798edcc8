"""`infermesh chat`: talks to a model in the terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.options import DEFAULT_ADDRESS, Address, Key

if TYPE_CHECKING:
    from infermesh.inference.v1 import inference_service_pb2 as pb
    from services.cli.client import Mesh

DEFAULT_MODEL = "smollm2-135m"


def chat(
    model: Annotated[str, typer.Argument(help="The model to talk to.")] = DEFAULT_MODEL,
    prompt: Annotated[
        str | None, typer.Argument(help="What to say. Without it a conversation starts.")
    ] = None,
    system: Annotated[str, typer.Option(help="Instructions to the model.")] = (
        "You are a helpful assistant. Reply in one short English sentence."
    ),
    temperature: Annotated[float, typer.Option(help="Randomness, 0 to 2.", min=0, max=2)] = 0,
    address: Address = DEFAULT_ADDRESS,
    key: Key = None,
) -> None:
    """Chat with a model; the answer streams."""
    from infermesh.inference.v1 import inference_service_pb2 as pb
    from services.cli.client import connect

    request = pb.StreamChatRequest(
        chat=pb.ChatRequest(model=model, sampling=pb.Sampling(temperature=temperature))
    )
    if system:
        _say(request.chat, pb.CHAT_ROLE_SYSTEM, system)
    with connect(address, key) as mesh:
        if prompt is not None:
            _say(request.chat, pb.CHAT_ROLE_USER, prompt)
            _answer(mesh, request)
            return
        typer.secho(f"{model}. An empty line or Ctrl-D ends the conversation.", dim=True, err=True)
        while text := _read_line():
            _say(request.chat, pb.CHAT_ROLE_USER, text)
            _say(request.chat, pb.CHAT_ROLE_ASSISTANT, _answer(mesh, request))


def _say(chat: "pb.ChatRequest", role: "pb.ChatRole.ValueType", text: str) -> None:
    chat.messages.add(role=role).content.add(text=text)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return ""


def _answer(mesh: "Mesh", request: "pb.StreamChatRequest") -> str:
    """Prints the answer as it comes and returns it. Ctrl-C cuts it short."""
    call = mesh.inference.StreamChat(request, metadata=mesh.metadata)
    said = []
    try:
        for message in call:
            for delta in message.deltas:
                said.append(delta.content)
                typer.echo(delta.content, nl=False)
    except KeyboardInterrupt:
        call.cancel()
    typer.echo()
    return "".join(said)
