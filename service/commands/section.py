"""``seisbind section``: a long line, in one file or several, as one velocity section."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seisbind.service.commands.retrieve import (
    ModelExtend,
    ModelGrid,
    ModelSmooth,
    ModelWater,
    start_options,
    write_model,
)

if TYPE_CHECKING:
    from seisbind.model.scale import AutoScale, Scale
    from seisbind.service.engine.section import Section
    from seisbind.service.formats.starting_model import StartOptions


def section(
    file: Annotated[
        list[Path],
        typer.Argument(help="SEG-Y, SU, SEG-2, MDIO or npz files of one line, with positions; together one section."),
    ],
    gallery: Annotated[str, typer.Option(help="Folder (or URL) of the gallery whose models are matched.")],
    out: Annotated[Path, typer.Option(help="Write the section here: .npz, .sgy, .segy or .png.")],
    scale: Annotated[
        str, typer.Option(help="True lengths over the frame's, s; with velocities, s,k; or auto. As in 2 or 0.5,0.3.")
    ] = "1",
    target_depth: Annotated[
        float | None, typer.Option(help="Depth in metres that the section has to reach; with --scale auto.")
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="From one window to the next, metres; default: half a window.")
    ] = None,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="Refine each window by full-waveform inversion, at most so many iterations, seconds of a core each.",
        ),
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that refine windows, on a CPU; default: one a core, at most 8.")
    ] = None,
    model_out: Annotated[
        Path | None, typer.Option(help="Write its velocities for an inversion, too: .npz, .npy, .sgy, .nc (netCDF).")
    ] = None,
    grid: ModelGrid = None,
    smooth: ModelSmooth = None,
    water: ModelWater = None,
    extend: ModelExtend = False,
    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print what each window contributed, as JSON.")] = False,
) -> None:
    """Read a long line in overlapping windows, and join them into one velocity section.

    A file beside the output keeps what is done; the same command continues it. It ends with 0: written, 1: the line
    cannot be read, 2: unusable options, gallery or output, 130: interrupted.
    """
    from seisbind.model.errors import GalleryError, InvalidConfig, MissingExtra, WeightsError
    from seisbind.service.bulk.run import ExitCode
    from seisbind.service.commands.errors import print_error

    try:
        start = start_options(model_out, grid=grid, smooth_m=smooth, water=water, extend=extend)
        asked = asked_scale(scale, target_depth)
        if workers is not None and not refine:
            raise InvalidConfig("--workers goes with --refine: windows that are only read need none.")
        _write(file, gallery, out, asked, step, refine, workers, model_out, start, weights, device, as_json)
    except (InvalidConfig, GalleryError, WeightsError, MissingExtra) as error:
        print_error(error)
        sys.exit(ExitCode.UNUSABLE)
    except KeyboardInterrupt:
        print(f"Interrupted. The same command continues {out}.", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)


def _write(
    files: list[Path],
    gallery: str,
    out: Path,
    scale: Scale | AutoScale,
    step_m: float | None,
    refine: int,
    workers: int | None,
    model_out: Path | None,
    start: StartOptions,
    weights: Path | None,
    device: str,
    as_json: bool,
) -> None:
    import json
    from contextlib import nullcontext

    from seisbind.index import open_store
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.service.commands.errors import check_out
    from seisbind.service.engine.engine import Engine
    from seisbind.service.engine.refine import window_refiner
    from seisbind.service.engine.section import join_section, plan_section, section_blocks
    from seisbind.service.engine.section_file import PartialSection, about, check_suffix, save_section
    from seisbind.service.formats.line_file import open_line
    from seisbind.service.terminal.console import counting

    check_suffix(out)
    check_out(out)
    if model_out is not None:
        check_out(model_out, option="--model-out")
    embedder = Embedder.load(weights, device=device)
    with open_store(gallery, fingerprint=embedder.fingerprint, frame=embedder.frame) as opened:
        engine, line = Engine(embedder, opened), open_line(files)
        plan = plan_section(line, frame=engine.frame, scale=scale, step_m=step_m)
        refining = window_refiner(refine, str(embedder.device), workers=workers) if refine else nullcontext()
        named = "Refining windows" if refine else "Reading windows"
        with (
            refining as refiner,  # first: what it refuses leaves no partial file
            PartialSection(out, engine, plan, refine=refine) as partial,
            counting(named, len(plan)) as progress,
        ):
            readings = []
            for number, block in section_blocks(engine, plan, done=partial.done, refine=refiner):
                if number not in partial.done:
                    partial.add(number, block)
                readings += block
                progress(len(readings))
            found = join_section(engine, plan, readings)
            save_section(found, out)
            if model_out is not None:
                write_model(found.model(engine.frame), model_out, start, title="SECTION ALONG A LINE BY SEISBIND")
            partial.remove()
    if as_json:
        print(json.dumps(about(found), indent=1))
    else:
        _show(found, out)


def asked_scale(text: str, target_depth_m: float | None) -> Scale | AutoScale:
    """The scale that is asked for. Raises InvalidConfig."""
    from seisbind.model.errors import InvalidConfig, InvalidSurvey
    from seisbind.model.scale import UNSCALED, parse_scale

    try:
        return parse_scale(text, target_depth_m) or UNSCALED
    except InvalidSurvey as error:
        raise InvalidConfig(f"--scale: {error}") from error


def _show(found: Section, out: Path) -> None:
    """A line on each window, and one on the whole."""
    from rich.table import Table

    from seisbind.service.terminal.console import console

    shown = console()
    columns = ["x (m)", "shots", "live", "like training", "first match", "similarity", "mean velocity (m/s)"]
    refined = any(window.refined is not None for window in found.windows)
    table = Table(*columns, *(["residual read, refined"] if refined else []))
    for window in found.windows:
        place = f"{window.x_m[0]:.0f} to {window.x_m[1]:.0f}"
        if window.lack is not None:
            table.add_row(place, "0", "", "", "no data", "", "")
            continue
        likely = {True: "yes", False: f"no: {window.reason}", None: ""}[window.likely]
        mean = (window.physics or {}).get("mean_velocity")
        table.add_row(
            place,
            str(window.shots),
            f"{window.live:.0%}",
            likely,
            window.model_id or "",
            "" if window.similarity is None else f"{window.similarity:.3f}",
            "" if mean is None else f"{mean.value:.0f} ({mean.low:.0f} to {mean.high:.0f})",
            *([] if (did := window.refined) is None else [f"{did.residual_before:.1%}, {did.residual_after:.1%}"]),
        )
    shown.print(table)
    for note in found.notes:
        shown.print(f"{note.code}: {note.sentence}", markup=False)
    known = (found.weight > 0).mean()
    shown.print(
        f"{out}: {found.velocity.shape[1]} x {found.velocity.shape[0]} cells of {found.cell_m:g} m, "
        f"x {found.x_m[0]:g} to {found.x_m[-1]:g} m, {known:.0%} of the columns known, from "
        f"{sum(window.lack is None for window in found.windows)} of {len(found.windows)} windows.",
        markup=False,
    )
