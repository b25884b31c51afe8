"""``seisbind check``: one gather's matches, the model that is read and one's own, against the wave equation."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seisbind.model.scale import AutoScale, Scale
    from seisbind.service.check_schemas import CheckAnswer
    from seisbind.service.formats.reader import Geometry

FORMATS = ("npz", "png")  # of --out


def check(
    file: Annotated[Path, typer.Argument(help="npy, npz, SEG-Y, SU or SEG-2 file of one gather.")],
    url: Annotated[str | None, typer.Option(help="A running server, as in http://127.0.0.1:8000.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SEISBIND_API_KEY", help="API key; other users see options, not variables.")
    ] = None,
    gallery: Annotated[str | None, typer.Option(help="Folder (or URL) of a gallery to ask without a server.")] = None,
    weights: Annotated[Path | None, typer.Option(help="With --gallery; default: those that ship.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda; with --gallery.")] = "auto",
    top_k: Annotated[int, typer.Option(min=1, help="Matches to check, 16 at most.")] = 5,
    model: Annotated[Path | None, typer.Option(help="A velocity model of your own to check too: npy or npz.")] = None,
    dt_s: Annotated[float | None, typer.Option("--dt-s", help="Sampling interval, seconds.")] = None,
    shot_x_m: Annotated[
        str | None, typer.Option("--shot-x-m", help="Shot positions, metres, separated by commas.")
    ] = None,
    receiver_x_m: Annotated[
        str | None, typer.Option("--receiver-x-m", help="Receiver positions, metres, separated by commas.")
    ] = None,
    peak_hz: Annotated[float | None, typer.Option("--peak-hz", help="Peak frequency of the source, hertz.")] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="auto|S[,K]", help="Of a line of another size than the weights'; see answers.md."),
    ] = None,
    target_depth: Annotated[
        float | None, typer.Option("--target-depth", help="Metres that a scale of 'auto' has to reach.")
    ] = None,
    candidate: Annotated[
        str, typer.Option(help="Of a picture: best, read, mean, given, 'match 1' and so on.")
    ] = "best",
    out: Annotated[
        Path | None, typer.Option(help="Write a picture of one candidate (.png) or everything (.npz) here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Model what each answer predicts of a gather, and say which is usable as a starting model.

    It ends with 0: checked, 1: the file cannot be read, 2: unusable options, gallery or output, 3: no server.
    """
    from seisbind.model.errors import GalleryError, InvalidConfig, InvalidQuery, ServiceError, WeightsError
    from seisbind.model.files import replacing
    from seisbind.service.bulk.run import ExitCode
    from seisbind.service.commands.errors import check_out, print_error

    try:
        file_format = None if out is None else out.suffix.removeprefix(".")
        if file_format not in (None, *FORMATS):
            raise InvalidConfig(f"--out ends with .npz or .png; got {out}.")
        if out is not None:
            check_out(out)
        if (url is None) == (gallery is None):
            raise InvalidConfig("Give --url http://… (a server) or --gallery PATH (on this machine), one of the two.")
        geometry, parsed = _line(dt_s, shot_x_m, receiver_x_m, peak_hz, scale, target_depth)
        asked = Asked(file, geometry, parsed, top_k, _model(model), candidate, file_format)
        if url is not None:
            answer, content = _by_server(asked, url, key)
        else:
            answer, content = _by_gallery(asked, gallery or "", weights, device)
        if out is not None:
            with replacing(out) as partial:
                partial.write_bytes(content)
    except (InvalidConfig, InvalidQuery, GalleryError, WeightsError) as error:
        print_error(error)
        sys.exit(ExitCode.UNUSABLE)
    except ServiceError as error:
        print_error(error)
        sys.exit(ExitCode.UNREACHABLE)
    if as_json:
        print(answer.model_dump_json(indent=1))
    else:
        _show(file, answer, out)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is checked, and the format of the file that is written; None for none."""

    file: Path
    geometry: Geometry
    scale: Scale | AutoScale | None
    top_k: int
    model: NDArray[np.float32] | None
    candidate: str
    file_format: str | None


def _line(
    dt_s: float | None,
    shot_x_m: str | None,
    receiver_x_m: str | None,
    peak_hz: float | None,
    scale: str | None,
    target_depth_m: float | None,
) -> tuple[Geometry, Scale | AutoScale | None]:
    """The options on the line, read as the fields of a request are."""
    from seisbind.model.scale import parse_scale
    from seisbind.service.http.parameters import parse_geometry
    from seisbind.service.schemas import RetrieveFields

    fields = RetrieveFields.model_construct(
        dt_s=dt_s, shot_x_m=shot_x_m, receiver_x_m=receiver_x_m, peak_hz=peak_hz
    )  # fmt: skip
    return parse_geometry(fields), parse_scale(scale, target_depth_m)


def _model(path: Path | None) -> NDArray[np.float32] | None:
    from seisbind.service.client.calls import file_bytes
    from seisbind.service.formats.reader import read_velocity

    return None if path is None else read_velocity(file_bytes(path))


def _by_server(asked: Asked, url: str, key: str | None) -> tuple[CheckAnswer, bytes]:
    """The answer, and the file. A picture is a check of its own to a server, which keeps none."""
    from seisbind.service.check_schemas import CheckAnswer
    from seisbind.service.client.client import Client
    from seisbind.service.formats.npy import npz

    with Client(url, key=key) as client:
        if asked.file_format == "npz":
            arrays = client.check_arrays(
                asked.file, asked.geometry, top_k=asked.top_k, scale=asked.scale, model=asked.model
            )  # fmt: skip
            return CheckAnswer.model_validate_json(arrays["answer"].tobytes()), npz(arrays)
        picture = b""
        if asked.file_format == "png":  # first: it may be of a candidate that there is not
            picture = client.check_image(
                asked.file, asked.geometry, candidate=asked.candidate, top_k=asked.top_k, scale=asked.scale,
                model=asked.model,
            )  # fmt: skip
        answer = client.check_file(
            asked.file, asked.geometry, top_k=asked.top_k, scale=asked.scale, model=asked.model
        )  # fmt: skip
        return answer, picture


def _by_gallery(asked: Asked, gallery: str, weights: Path | None, device: str) -> tuple[CheckAnswer, bytes]:
    from seisbind.index import open_store
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.service.bulk.backends import LIMITS
    from seisbind.service.check_schemas import CheckAnswer
    from seisbind.service.client.calls import file_bytes
    from seisbind.service.engine.bodies import gallery_body, ingest_body, retrieval_body, weights_body
    from seisbind.service.engine.check import check_top_k, named
    from seisbind.service.engine.check_bodies import check_body, check_npz
    from seisbind.service.engine.engine import Engine
    from seisbind.service.formats.reader import read_gathers
    from seisbind.service.runtime.check_picture import check_png
    from seisbind.service.schemas import PARTS

    check_top_k(asked.top_k)
    embedder = Embedder.load(weights, device=device)
    with open_store(gallery, fingerprint=embedder.fingerprint, frame=embedder.frame) as opened:
        engine = Engine(embedder, opened)
        upload = read_gathers(
            file_bytes(asked.file), geometry=asked.geometry, limits=LIMITS, frame=engine.frame, scale=asked.scale
        )
        checked = engine.check(
            upload.gathers,
            upload.survey,
            top_k=asked.top_k,
            notes=upload.notes,
            scale=upload.chosen,
            model=asked.model,
            named=asked.candidate,
            device=str(embedder.device),
        )
        answer = CheckAnswer(
            request_id="",
            weights=weights_body(embedder.weights),
            gallery=gallery_body(engine.info()),
            ingest=ingest_body(upload.ingest),
            result=retrieval_body(checked.retrieval, PARTS, engine.frame),
            check=check_body(checked),
            timings_ms=checked.retrieval.timings_ms,
        )
    if asked.file_format == "png":
        return answer, check_png(checked, named(checked, asked.candidate), title=asked.file.name)
    return answer, check_npz(checked, answer.model_dump_json()) if asked.file_format == "npz" else b""


def _show(file: Path, answer: CheckAnswer, out: Path | None) -> None:
    """A line on each candidate, and one on the best."""
    from rich.table import Table

    from seisbind.service.terminal.console import console

    shown, check = console(), answer.check
    surface = "a free surface" if check.free_surface else "no free surface"
    table = Table(
        "candidate", "model", "unexplained", "residual", "in time", "cosine", "usable",
        title=f"{file.name}: lowest usable frequency {check.lowest_hz:.3g} Hz, {surface}", title_justify="left",
    )  # fmt: skip
    for each in check.candidates:
        m = each.measures
        table.add_row(
            each.name,
            each.model_id or "",
            "" if m.unexplained is None else f"{m.unexplained:.1%}",
            f"{m.residual:.1%}",
            "" if m.in_time is None else f"{m.in_time:.0%}",
            f"{m.cosine:.3f}",
            f"{'yes' if each.verdict.usable else 'no'}: {each.verdict.reason}",
        )
    shown.print(table)
    best = next(each for each in check.candidates if each.name == check.best)
    shown.print(f"Best: {best.name}. {best.verdict.detail}", markup=False)
    if check.reordered:
        shown.print(f"The first match is now {answer.result.matches[0].model_id}.", markup=False)
    for warning in answer.result.warnings:
        shown.print(f"{warning.code}: {warning.detail}", markup=False)
    if out is not None:
        shown.print(f"Written to {out}", markup=False)
