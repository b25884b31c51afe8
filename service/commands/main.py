"""The ``seisbind`` command. Each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from seisbind.model.errors import SeisBindError
from seisbind.service.commands import bulk, check, gallery, inspect, refine, retrieve, section, training
from seisbind.service.commands.errors import print_error
from seisbind.service.gallery_commands import copies, elsewhere, export
from seisbind.service.transport.keys import Scope, make_key

app = typer.Typer(
    name="seisbind",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
key_app = typer.Typer(help="Make API keys.", no_args_is_help=True)
copies.register(gallery.app)
export.register(gallery.app)
elsewhere.register(gallery.app)
app.add_typer(gallery.app, name="gallery")
app.add_typer(bulk.app, name="bulk")
app.add_typer(key_app, name="key")
app.command()(training.simulate)
app.command()(training.train)
app.command()(training.evaluate)
app.command()(inspect.inspect)
app.command()(retrieve.retrieve)
app.command()(check.check)
app.command()(section.section)
app.command()(refine.refine)


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"seisbind {version('seisbind')}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Velocity models and their physics from seismic shot gathers, by retrieval."""


@key_app.callback()
def _keys() -> None:
    """Make API keys."""


@key_app.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; logs say it.")],
    scope: Annotated[Scope, typer.Option(help="read, or write: also change the gallery.")] = Scope.READ,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a new key, which is kept nowhere, and the line that makes a server know it."""
    import json

    secret, key = make_key(name, scope)
    if as_json:
        print(json.dumps({"key": secret, "line": key.line}))
        return
    print(f"Key, shown this once; the caller sends 'Authorization: Bearer KEY':\n{secret}")
    print(f"Line for SEISBIND_API_KEYS or the file of SEISBIND_API_KEYS_FILE:\n{key.line}")


@app.command()
def serve(
    gallery: Annotated[
        str | None, typer.Option(help="Folder of the gallery, or its URL (s3://…). [SEISBIND_GALLERY, gallery]")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [SEISBIND_HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [SEISBIND_PORT, 8000]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda. [SEISBIND_DEVICE, auto]")] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Processes behind the port; auto: one a GPU, or for two cores. [SEISBIND_WORKERS, 1]"),
    ] = None,
    search_device: Annotated[
        str | None, typer.Option(help="What searches: auto, cpu, cuda. [SEISBIND_SEARCH_DEVICE, auto]")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(help="Seconds between looks at the gallery; 0: none. [SEISBIND_WATCH_S, 0]")
    ] = None,
) -> None:
    """Serve a gallery over HTTP until Ctrl-C or SIGTERM."""
    from seisbind.service.http.server import serve as run
    from seisbind.service.settings import read_settings

    settings = read_settings(
        gallery=gallery,
        weights=weights,
        host=host,
        port=port,
        device=device,
        workers=workers,
        search_device=search_device,
        watch_s=watch,
    )
    run(settings, announce=lambda url: print(f"Serving {settings.gallery} at {url}", flush=True))


@app.command()
def demo(
    count: Annotated[int, typer.Option(help="Velocity models in the gallery.", min=20)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the gallery; the gathers that are asked about have another.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the gallery and the picture.")] = Path("demo-output"),
    port: Annotated[int, typer.Option(help="Port; another is taken if this one is.")] = 8000,
    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None,
    stay: Annotated[
        bool | None, typer.Option("--stay/--no-stay", help="Leave the server running; default: on a terminal.")
    ] = None,
) -> None:
    """Build a gallery, serve it, post simulated gathers to it over HTTP, and show the answers."""
    from seisbind.service.commands.demo import demo as run

    run(count=count, seed=seed, out=out, port=port, weights=weights, stay=sys.stdout.isatty() if stay is None else stay)


def main() -> None:
    """Run the command line. An error of SeisBind or of a file is one line on standard error, and exit code 1."""
    try:
        app()
    except BrokenPipeError:  # the reader of the pipe has ended
        sys.stderr.close()
        sys.exit(1)
    except (SeisBindError, OSError) as error:
        print_error(error)
        sys.exit(1)
