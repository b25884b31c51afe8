"""``seisbind gallery backup``, ``restore``, ``merge`` and ``optimize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OverwriteOption = Annotated[bool, typer.Option(help="Replace the gallery that is there, when all is done.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module into ``app``."""
    for command in (backup, restore, merge, optimize):
        app.command()(command)


def backup(
    path: Annotated[Path, typer.Argument(help="Folder of the gallery.")],
    out: Annotated[Path, typer.Argument(help="Folder of the backup.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Copy a gallery as it is at one moment, while others read and write it, and verify the copy."""
    from seisbind.index.maintenance.backup import backup as copy
    from seisbind.service.terminal.console import counting

    with counting("Copying pages", 0) as progress:
        copied = copy(path, out, overwrite=overwrite, progress=lambda done, _: progress(done))
    print(f"{out}: {copied.count} velocity models, generation {copied.generation}, verified")


def restore(
    backup: Annotated[Path, typer.Argument(help="Folder of the backup.")],
    path: Annotated[Path, typer.Argument(help="Folder of the gallery.")],
    overwrite: OverwriteOption = False,
) -> None:
    """Put a backup in the place of a gallery, whole or not at all; a damaged one is refused."""
    from seisbind.index.maintenance.backup import restore as put
    from seisbind.service.terminal.console import counting

    with counting("Copying pages", 0) as progress:
        copied = put(backup, path, overwrite=overwrite, progress=lambda done, _: progress(done))
    print(f"{path}: {copied.count} velocity models, generation {copied.generation}, verified")


def merge(
    out: Annotated[Path, typer.Argument(help="Folder of the gallery to make, or with --into to add to.")],
    source: Annotated[list[Path], typer.Argument(metavar="IN…", help="Folders of the galleries to merge.")],
    into: Annotated[bool, typer.Option("--into", help="Add to the gallery OUT, which is there.")] = False,
    overwrite: OverwriteOption = False,
    rename: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help="New id of a model whose id another map has, such as '{gallery}.{id}'; else refused."
        ),
    ] = None,
) -> None:
    """Put the models of several galleries into one, as they are stored: nothing is embedded again."""
    from seisbind.index.maintenance.merge import merge as put
    from seisbind.service.terminal.console import counting

    with counting("Copying models", 0) as progress:
        done = put(out, source, into=into, overwrite=overwrite, rename=rename, progress=progress)
    print(f"{out}: {done.added} velocity models added, {done.count} in all")
    if done.present:
        print(f"{done.present} were there already, with the same id and map: stored once")
    if done.renamed:
        print(f"{done.renamed} have a new id, for another map has theirs")
    if done.same_map:
        named = ", ".join(f"{one} that of {other}" for one, other in done.examples)
        print(f"{done.same_map} have the map of another model: {named}{', …' * (done.same_map > len(done.examples))}")


def optimize(path: Annotated[Path, typer.Argument(help="Folder of the gallery.")]) -> None:
    """Rewrite a gallery in the newest format, smaller; until that is verified as a whole the old one stays.

    Nothing in it changes: ids, maps, descriptors, embeddings and times stay as they are to the bit. Rounding would
    change them, so it is chosen when a gallery is built (build --precision).
    """
    from seisbind.index import Gallery
    from seisbind.index.optimize import optimize as rewrite
    from seisbind.service.terminal.console import counting

    with Gallery.open(path, fingerprint=None) as gallery:
        models = len(gallery)
    with counting("Rewriting", models) as progress:
        done = rewrite(path, progress=progress)
    before, after = (size / max(done.count, 1) for size in (done.bytes_before, done.bytes_after))
    print(
        f"{path}: {done.count} velocity models, format {done.format_after}, {done.bytes_after / 1e6:.1f} MB "
        f"({after:,.0f} bytes a model); before, format {done.format_before}, {done.bytes_before / 1e6:.1f} MB "
        f"({before:,.0f})"
    )
