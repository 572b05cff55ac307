"""The command that serves the playground."""

from __future__ import annotations

from typing import Annotated

import typer

from bartleby.cli.options import Device
from bartleby.cli.writing import Bart, Generator


def playground(
    host: Annotated[
        str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 7860,
    browser: Annotated[
        bool, typer.Option("--browser", help="Open the page in the browser.")
    ] = False,
    model: Generator = None,
    bart: Bart = None,
    device: Device = None,
) -> None:
    """Serve a web page on which to write, edit, fill in and interpolate texts, until Ctrl-C.

    It needs gradio: pip install gradio.

    Example: bartleby playground --browser
    """
    from bartleby.pipeline import load_pipeline
    from bartleby.playground import require_gradio, serve

    require_gradio()  # before the model is loaded
    pipeline = load_pipeline(model, bart=bart, device=device)
    serve(pipeline, model or "the bundled generator", host=host, port=port, browser=browser)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(playground)
