"""``seisbind gallery publish``: put a gallery where servers without its disk fetch it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to those of ``seisbind gallery``."""
    app.command()(publish)


def publish(
    path: Annotated[Path, typer.Argument(help="Folder of the gallery; it may be served and written meanwhile.")],
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PATH, gs://BUCKET/PATH or file:///FOLDER.")],
    workspace: Annotated[
        Path | None, typer.Option(help="Folder for a copy while it is uploaded; default: beside the gallery.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Upload a gallery for servers whose --gallery is that URL; they see the old one or the new one, whole."""
    import json

    from seisbind.index.replicas.publish import publish as run

    found = run(path, url, workspace=workspace)
    manifest = found.manifest
    if as_json:
        facts = {"generation": manifest.stamp, "models": manifest.count, "bytes": manifest.bytes}
        print(json.dumps(facts | {"sent_bytes": found.sent, "changed": found.changed}))
        return
    state = f"{found.sent / 1e6:.1f} of {manifest.bytes / 1e6:.1f} MB sent" if found.changed else "published already"
    print(f"{url}: generation {manifest.stamp}, {manifest.count} velocity models, {state}")
