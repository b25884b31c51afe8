"""``seisbind refine``: full-waveform inversion of one gather, on this machine, that goes on where it was stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.model.inversion.refined import Refined
    from seisbind.model.inversion.refinement import Refinement
    from seisbind.service.engine.query import Query
    from seisbind.service.engine.refine import Starts

PART = ".part"  # after the name of the output: what is done, from which the same command goes on
UNLIT = 0.01  # of the strongest illumination
SURFACES = {"auto": None, "absorbing": False, "free": True}


def refine(
    file: Annotated[Path, typer.Argument(help="npy, npz, SEG-Y, SU or SEG-2 file of one gather.")],
    out: Annotated[Path, typer.Option(help="Write the refined model here: .npz (all that is known), .npy, .sgy, .nc.")],
    gallery: Annotated[
        str | None, typer.Option(help="Folder (or URL) of a gallery whose matches are starts, too.")
    ] = None,
    start: Annotated[
        str, typer.Option(help="best (of all there are), read, match, mean, or an npy or npz file of a model.")
    ] = "best",
    iterations: Annotated[int, typer.Option(min=1, help="At most; it stops by itself.")] = 48,
    surface: Annotated[
        str, typer.Option(help="absorbing, free (with ghosts and multiples), or auto: what explains the record better.")
    ] = "auto",
    keep_m: Annotated[
        float, typer.Option("--keep-m", help="Metres from the top that are not changed, as a layer of water.")
    ] = 0.0,
    scale: Annotated[
        str | None,
        typer.Option(metavar="auto|S[,K]", help="Of a line of another size than the weights'; see answers.md."),
    ] = None,
    target_depth: Annotated[
        float | None, typer.Option("--target-depth", help="Metres that a scale of 'auto' has to reach.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done, as JSON.")] = False,
) -> None:
    """Refine the best start of one gather by full-waveform inversion.

    A file beside the output keeps what is done; the same command continues it. It ends with 0: written, 1: the gather
    cannot be read, 2: unusable options, gallery or output, 130: interrupted.
    """
    from seisbind.model.errors import GalleryError, InvalidConfig, InvalidQuery, MissingExtra, WeightsError
    from seisbind.service.bulk.run import ExitCode
    from seisbind.service.commands.errors import print_error

    try:
        if surface not in SURFACES:
            raise InvalidConfig(f"--surface {surface}: choose from {', '.join(SURFACES)}.")
        asked = {"iterations": iterations, "keep_m": keep_m, "start": start, "free_surface": SURFACES[surface]}
        _refine(file, out, gallery, asked, scale, target_depth, weights, device, as_json)
    except (InvalidConfig, InvalidQuery, GalleryError, WeightsError, MissingExtra) as error:
        print_error(error)
        sys.exit(ExitCode.UNUSABLE)
    except KeyboardInterrupt:
        print(f"Interrupted. The same command continues {out}.", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)


def _refine(
    file: Path,
    out: Path,
    gallery: str | None,
    asked: dict[str, Any],
    scale: str | None,
    target_depth_m: float | None,
    weights: Path | None,
    device: str,
    as_json: bool,
) -> None:
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.model.files import replacing
    from seisbind.model.inversion.refined import RefineConfig
    from seisbind.model.scale import parse_scale
    from seisbind.service.bulk.backends import LIMITS
    from seisbind.service.client.calls import file_bytes
    from seisbind.service.commands.errors import check_out
    from seisbind.service.engine.query import Query
    from seisbind.service.engine.refine import contents
    from seisbind.service.formats.reader import read_gathers
    from seisbind.service.formats.velocity_model import format_of
    from seisbind.service.terminal.console import counting

    file_format = format_of(out)
    check_out(out)
    embedder = Embedder.load(weights, device=device)
    upload = read_gathers(
        file_bytes(file), limits=LIMITS, frame=embedder.frame, scale=parse_scale(scale, target_depth_m)
    )  # fmt: skip
    query = Query.prepare(
        upload.gathers, upload.survey, frame=embedder.frame, notes=upload.notes, scale=upload.chosen,
        keep_recorded=True
    )  # fmt: skip
    config = RefineConfig(
        asked["iterations"],
        keep_m=asked["keep_m"] / query.scale.s,
        device=str(embedder.device),
        free_surface=asked["free_surface"],
    )
    starts = _starts(embedder, query, gallery, asked["start"])
    part = out.with_name(out.name + PART)
    with _kept(part, query, starts, config) as (refinement, keep):
        with counting("Refining", config.iterations) as progress:
            while not refinement.done:
                done = refinement.step().iteration
                keep()
                progress(done)
        refined = refinement.result()
        with replacing(out) as temporary:
            temporary.write_bytes(contents(query, refined, file_format, title=f"REFINED FROM {file.name} BY SEISBIND"))
        part.unlink(missing_ok=True)
    _say(out, refined, starts, as_json)


def _starts(embedder: Embedder, query: Query, gallery: str | None, start: str) -> Starts:
    """The models to start from."""
    from seisbind.index import open_store
    from seisbind.model.errors import InvalidConfig, InvalidQuery
    from seisbind.service.client.calls import file_bytes
    from seisbind.service.engine.engine import Engine
    from seisbind.service.engine.refine import STARTS, find_starts, given_start, read_start
    from seisbind.service.formats.reader import read_velocity

    if len(query) != 1:
        raise InvalidQuery(f"A refinement is of one gather; the file holds {len(query)}.")
    named = next((name for name in STARTS if name == start != "given"), None)
    if named is None:
        path = Path(start)
        if not path.exists():
            raise InvalidConfig(f"--start {start}: neither best, read, match or mean, nor a file.")
        return given_start(query, read_velocity(file_bytes(path)))
    if gallery is None:
        if named not in ("best", "read"):
            raise InvalidConfig(f"--start {start} is a model of a gallery; give --gallery.")
        return read_start(embedder, query)
    with open_store(gallery, fingerprint=embedder.fingerprint, frame=embedder.frame) as opened:
        return find_starts(Engine(embedder, opened), query, start=named)


@contextmanager
def _kept(part: Path, query: Query, starts: Starts, config: Any) -> Iterator[tuple[Refinement, Any]]:
    """The refinement, from its file if there is one, and what writes that file."""
    import hashlib
    import io
    import zlib
    from zipfile import BadZipFile

    import numpy as np

    from seisbind.model.errors import InvalidConfig, SeisBindError
    from seisbind.model.files import replacing
    from seisbind.model.inversion.observed import Observed
    from seisbind.model.inversion.refinement import Refinement
    from seisbind.service.engine.refine import begin

    observed, digest = Observed.of(query.prepared), hashlib.sha256()
    prior = np.zeros(0) if starts.prior is None else starts.prior
    for content in (observed.traces[None], observed.live[None], observed.shot_x_m[None], starts.velocity, prior):
        digest.update(np.ascontiguousarray(content).tobytes())
    asked = f"{digest.hexdigest()} {config}"
    if part.exists():
        try:
            with np.load(io.BytesIO(part.read_bytes()), allow_pickle=False) as arrays:
                state = {name: arrays[name] for name in arrays.files}
            other = str(state.pop("asked")) != asked
            refinement = Refinement.resume(observed, config, state)
        except SeisBindError:
            raise
        except (ValueError, KeyError, OSError, EOFError, TypeError, BadZipFile, zlib.error) as error:
            raise InvalidConfig(
                f"{part} is none that seisbind refine writes. Remove it, or give another --out."
            ) from error
        if other:
            raise InvalidConfig(f"{part} is of another gather, start or option. Remove it, or give another --out.")
    else:
        refinement = begin(query, starts, config)

    def keep() -> None:
        buffer = io.BytesIO()
        np.savez(buffer, asked=np.array(asked), **refinement.state())  # type: ignore[arg-type]
        with replacing(part) as temporary:
            temporary.write_bytes(buffer.getvalue())

    yield refinement, keep


def _say(out: Path, refined: Refined, starts: Starts, as_json: bool) -> None:
    """What was done, in a sentence or as JSON."""
    import json

    residual = [float(each) for each in refined.residual]
    unlit = float((refined.illumination < UNLIT).mean())
    start = starts.names[refined.start]
    surface = "with a free surface" if refined.free_surface else "without a free surface"
    if as_json:
        about = {"out": str(out), "start": start, "iterations": len(residual), "residual": residual}
        about |= {"residual_before": refined.residual_before, "residual_after": refined.residual_after}
        about |= {"free_surface": refined.free_surface}
        print(json.dumps(about | {"stopped": refined.stopped, "unlit": unlit}, indent=1))
        return
    print(
        f"{out}: from the {start} model, {surface}, {len(residual)} iterations; "
        f"residual {refined.residual_before:.3f} -> {refined.residual_after:.3f} of the record; "
        f"{unlit:.0%} of the cells hardly seen by any wave. {refined.stopped or ''}".rstrip()
    )
