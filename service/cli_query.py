"""``seisbind retrieve``: ask a server, or a gallery on this machine, about gathers in files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seisbind.service.schemas import RetrieveAnswer


def retrieve(
    file: Annotated[list[Path], typer.Argument(help="npy, npz, SEG-Y or SU files of gathers.")],
    url: Annotated[str | None, typer.Option(help="A running server, as in http://127.0.0.1:8000.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SEISBIND_API_KEY", help="API key; other users see options, not variables.")
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="Folder of a gallery to ask without a server.")] = None,
    weights: Annotated[Path | None, typer.Option(help="With --gallery; default: those that ship.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda; with --gallery.")] = "auto",
    top_k: Annotated[int, typer.Option(min=1, help="Matches a gather.")] = 5,
    filter: Annotated[str | None, typer.Option(help='JSON, as in {"family": "FlatVel-A"}.')] = None,
    dt_s: Annotated[float | None, typer.Option("--dt-s", help="Sampling interval, seconds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers here, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one answer a file.")] = False,
) -> None:
    """Retrieve velocity models and physics for shot gathers."""
    import json

    from seisbind.model.errors import InvalidConfig
    from seisbind.service.asking import ask_gallery, ask_server

    if (url is None) == (gallery is None):
        raise InvalidConfig("Say whom to ask: --url http://… (a server), or --gallery PATH (on this machine).")
    if out is not None:
        out.open("a").close()  # a folder that is not there is told before anyone is asked
    if url is not None:
        answers = ask_server(url, file, top_k=top_k, filter=filter, dt_s=dt_s, key=key)
    else:
        answers = ask_gallery(gallery or Path(), weights, device, file, top_k=top_k, filter=filter, dt_s=dt_s)
    found: dict[str, RetrieveAnswer] = {}
    for path, answer in answers:
        found[str(path)] = answer
        if not as_json:
            _show(path, answer)
    text = json.dumps({name: answer.model_dump() for name, answer in found.items()}, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
        print(f"Written to {out}", file=sys.stderr)
    if as_json:
        print(text)


def _show(path: Path, answer: RetrieveAnswer) -> None:
    from rich.table import Table

    from seisbind.model.descriptors import DESCRIPTORS
    from seisbind.service.progress import console

    out = console()
    read = answer.ingest
    out.print(
        f"{path.name}: {read.format}, {read.sample_format}, {read.shots} shots into {read.receivers} receivers, "
        f"{read.samples} samples of {read.dt_s * 1e3:g} ms, receivers at {read.receiver_x_m[0]:g} to "
        f"{read.receiver_x_m[1]:g} m",
        markup=False,
    )
    for number, result in enumerate(answer.results):
        title = f"{path.name}, gather {number}" if len(answer.results) > 1 else path.name
        table = Table("rank", "model", "family", "similarity", title=title, title_justify="left")
        for match in result.matches:
            table.add_row(str(match.rank), match.model_id, match.family or "", f"{match.similarity:.3f}")
        out.print(table)
        physics = Table("quantity", "inferred", "90 % interval")
        for d in DESCRIPTORS:
            q = (result.physics or {}).get(d.name)
            if q is not None:
                interval = f"{q.low:.{d.decimals}f} to {q.high:.{d.decimals}f}"
                physics.add_row(d.name.replace("_", " "), d.format(q.value), interval)
        out.print(physics)
        if result.in_distribution.likely is False:
            out.print(f"Unlike the gathers of training: {result.in_distribution.detail}", markup=False)
        for warning in result.warnings:
            out.print(f"{warning.code}: {warning.detail}", markup=False)
