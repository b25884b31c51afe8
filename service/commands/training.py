"""``seisbind simulate``, ``train`` and ``evaluate``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from seisbind.model.datasets.acquisition import AcquisitionConfig
    from seisbind.model.datasets.openfwi import Split
    from seisbind.model.datasets.pairs import PairSet
    from seisbind.model.frame import Frame, Survey

PER_FILE = 500  # pairs in a file of OpenFWI's layout, as in its own


class WaveEngine(StrEnum):
    """See `seisbind.model.waves.wavefield`."""

    DEEPWAVE = "deepwave"
    OPENFWI = "openfwi"


class Part(StrEnum):
    """See `seisbind.model.datasets.openfwi.find_pairs`."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"


class Acquisitions(StrEnum):
    """See `seisbind.model.datasets.acquisition.ANY_LINE`."""

    FRAME = "frame"
    ANY_LINE = "any-line"


def simulate(
    out: Annotated[Path, typer.Argument(help="Folder of the dataset; run again to go on.")],
    count: Annotated[int, typer.Option(min=1, help="Pairs of each family.")],
    family: Annotated[
        list[str] | None,
        typer.Option(
            help="A family, or openfwi, extra or broad; repeat for several. Default: OpenFWI's ten, of any-line the "
            "six broad ones, too."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    engine: Annotated[
        WaveEngine | None,
        typer.Option(help="Wave-equation solver; default: deepwave, of any-line drawn for each pair."),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Workers; default: one a core, or one on a GPU.")] = None,
    per_file: Annotated[int | None, typer.Option(min=1, help="Pairs a file; default: 500, of shards 250.")] = None,
    frame: Annotated[Path | None, typer.Option(help="JSON file of another line; default: OpenFWI's.")] = None,
    acquisitions: Annotated[
        Acquisitions | None,
        typer.Option(
            help="frame: as the frame has it, in OpenFWI's layout. any-line: solver, boundary, wavelet, depths and "
            "shots drawn for each pair, in prepared shards. Default: frame, with --survey any-line."
        ),
    ] = None,
    survey: Annotated[
        Path | None, typer.Option(help="JSON file of your own survey, to record at its positions, in prepared shards.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of deepwave: cpu or cuda.")] = "cpu",
) -> None:
    """Simulate pairs of velocity models and shot gathers."""
    from seisbind.model.datasets.simulation import simulate_dataset
    from seisbind.model.errors import DatasetError
    from seisbind.model.frame import OPENFWI_FRAME, load_frame
    from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, expanded
    from seisbind.service.terminal.console import counting

    line = load_frame(frame) if frame else OPENFWI_FRAME
    varied = acquisitions is Acquisitions.ANY_LINE or (acquisitions is None and survey is not None)
    families = expanded(family) if family else FAMILIES + BROAD_FAMILIES if varied else FAMILIES
    workers = 1 if processes is None and device != "cpu" else processes
    total = count * len(families)
    if varied or survey is not None:
        from seisbind.model.datasets.acquisition import simulate_pairs
        from seisbind.model.datasets.pairs import SHARD, share_held_out

        config, own_survey = _acquisition(varied, engine, device), _own_survey(survey, line)
        with counting("Simulating", total) as progress:
            simulate_pairs(
                out,
                total,
                seed,
                families,
                config=config,
                frame=line,
                own_survey=own_survey,
                per_shard=per_file or SHARD,
                hold_out=True,
                processes=workers,
                device=device,
                progress=lambda done, total: progress(done),
            )
        shards = -(-total // (per_file or SHARD))
        print(f"{out}: {total} pairs in {shards} shards, the last {share_held_out(shards)} of them held out")
        return
    if _are_shards(out):
        raise DatasetError(f"{out} holds shards; use a new directory for files of OpenFWI's layout.")
    with counting("Simulating", total) as progress:
        made = simulate_dataset(
            out,
            families=families,
            count=count,
            seed=seed,
            engine=(engine or WaveEngine.DEEPWAVE).value,
            frame=line,
            processes=workers,
            per_file=per_file or PER_FILE,
            device=device,
            progress=lambda done, total: progress(done),
        )
    print(f"{made.directory}: {made.pairs} pairs in {made.files} files, {made.kept} of them kept from before")


def _acquisition(varied: bool, engine: WaveEngine | None, device: str) -> AcquisitionConfig:
    """How records vary, by one engine where one is named; on a GPU that is deepwave."""
    from dataclasses import replace

    from seisbind.model.datasets.acquisition import ANY_LINE, EXACT
    from seisbind.model.errors import InvalidConfig

    if engine is WaveEngine.OPENFWI and device != "cpu":
        raise InvalidConfig(f"OpenFWI's operator runs on the CPU, not on {device!r}; use --engine deepwave there.")
    config = ANY_LINE if varied else EXACT
    if engine is None and device == "cpu":
        return config
    return replace(config, deepwave=float(engine is not WaveEngine.OPENFWI))


def _own_survey(path: Path | None, frame: Frame) -> Survey | None:
    """A survey on the cells of the frame; says on standard error what was moved or left out."""
    from seisbind.model.datasets.own_survey import load_survey, on_frame

    if path is None:
        return None
    placed = on_frame(load_survey(path, depth_m=frame.cell_m), frame)
    for note in placed.notes:
        print(f"note: {note}", file=sys.stderr)
    return placed.survey


def train(
    data: Annotated[Path, typer.Option(help="Pairs: an OpenFWI folder, or prepared shards.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log.csv, checkpoint, weights.safetensors.")],
    config: Annotated[str, typer.Option(help="default, further, larger, reading, paper, or a JSON file.")] = "default",
    held_out: Annotated[
        Path | None,
        typer.Option(help="Pairs to calibrate intervals on, all of them; default: the test part of --data."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin from, as those that ship; default: random ones.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's checkpoint.")] = False,
    parts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Embed a batch in so many parts, one after another, which takes less memory; its negatives stay all "
            "others of the batch. Default: the recipe's; under torchrun one a process.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Train encoders on pairs of gathers and velocity models; in several processes under torchrun."""
    from contextlib import nullcontext
    from dataclasses import replace

    from seisbind.model.encoders.weights_file import load_weights
    from seisbind.model.training.ranks import joined
    from seisbind.model.training.recipe import load_config
    from seisbind.model.training.run import WEIGHTS, Stage, shared_parts, train_weights
    from seisbind.model.training.trainer import check_frames, check_start
    from seisbind.service.terminal.console import counting

    recipe = load_config(config)
    from_weights = load_weights(start) if start else None
    encoders = from_weights.encoders if from_weights else None
    check_start(recipe, encoders)  # before the gathers are prepared
    with joined(device) as ranks:
        recipe = replace(recipe, parts=shared_parts(recipe, ranks, out, asked=parts, resume=resume))
        pairs = _pairs(data, "train", rows=lambda count: ranks.rows(count, recipe.parts), quiet=not ranks.first)
        check_frames(pairs, encoders)
        held = recipe.encoders.kind == "seisbind" and ranks.first
        split = _held_out(data, held_out, pairs.frame) if held else None
        what = f"Training on {ranks.total(len(pairs))} pairs"
        with counting(what, recipe.steps) if ranks.first else nullcontext() as progress:
            fingerprint = train_weights(
                [Stage(lambda: pairs)],
                recipe,
                out,
                name=out.name,
                training={"start": from_weights.as_start if from_weights else None},
                start=encoders,
                start_calibration=from_weights.description.calibration if from_weights else None,
                held_out=None if split is None else lambda: split,
                resume=resume,
                device=device,
                progress=None if progress is None else lambda done: progress(done.step),
                ranks=ranks,
            )
    if fingerprint is not None:
        print(f"{out / WEIGHTS}: weights {fingerprint}")


def evaluate(
    data: Annotated[Path, typer.Option(help="Held-out pairs: an OpenFWI folder, or prepared shards.")],
    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None,
    split: Annotated[
        Part, typer.Option(help="Of --data; shards that were not simulated by this command have none: all of them.")
    ] = Part.TEST,
    gallery_size: Annotated[int | None, typer.Option(min=2, help="Pairs in the mixed gallery; default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of the mixed gallery.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: overall, and one object a family.")] = False,
) -> None:
    """Measure retrieval, inferred physics and structure on held-out pairs."""
    import json

    from rich.table import Table

    from seisbind.model.encoders.embedder import Embedder
    from seisbind.model.training.evaluation import evaluate as run
    from seisbind.service.terminal.console import console

    embedder = Embedder.load(weights, device=device)
    report = run(embedder, _pairs(data, split.value), gallery_size=gallery_size, seed=seed)
    if as_json:
        print(json.dumps(report, indent=1))
        return
    table = Table("gallery", "models", "gather → model R@1", "R@5", "R@10", "model → physics R@1", "top-1 MAE / best")
    for name, one in {"all families": report["overall"], **report["families"]}.items():
        found = one["seismic_to_velocity"]
        table.add_row(
            name,
            str(one["gallery_size"]),
            *(f"{found[key]:.3f}" for key in ("r_at_1", "r_at_5", "r_at_10")),
            f"{one['velocity_to_physics']['r_at_1']:.3f}",
            f"{one['structure']['ratio']:.2f}",
        )
    console().print(table)


def _held_out(data: Path, held_out: Path | None, frame: Frame) -> PairSet:
    """The pairs to calibrate on, checked before hours of training and not after.

    Raises:
        InvalidConfig: none were named, and ``data`` are shards without a test part; or too few, or of another frame.
    """
    from seisbind.model.datasets.openfwi import find_pairs
    from seisbind.model.datasets.pairs import held_out_shards
    from seisbind.model.errors import InvalidConfig
    from seisbind.model.training.calibration import MIN_PAIRS

    if held_out is None and _are_shards(data) and held_out_shards(data) is None:
        raise InvalidConfig(f"{data} holds shards, which have no test part: name others with --held-out.")
    source, part = (held_out, Part.ALL) if held_out else (data, Part.TEST)
    shards = _are_shards(source)
    there: object = (held_out or held_out_shards(data)) if shards else find_pairs(source, split=part.value)
    split = _pairs(source, part.value) if there else None
    if split is not None and split.frame != frame:
        raise InvalidConfig(f"The held-out pairs are of another frame than --data: {split.frame}, not {frame}.")
    if split is None or len(split) < MIN_PAIRS:
        source_text = (
            f"all of {held_out}"
            if held_out
            else f"the test part of {data}: without OpenFWI's numbers a fifth of the files of each family is held out, "
            "and none of a single file. Make more or smaller files, or name other pairs with --held-out"
        )
        raise InvalidConfig(
            f"{len(split or ())} held-out pairs are too few to calibrate on; at least {MIN_PAIRS} are needed. They are "
            f"{source_text}."
        )
    return split


def _are_shards(data: Path) -> bool:
    return any(data.glob("pairs-*.safetensors"))


def _pairs(data: Path, part: Split, *, rows: Callable[[int], Tensor] | None = None, quiet: bool = False) -> PairSet:
    """The pairs of a folder: prepared shards as they are, or a part of OpenFWI's files; or ``rows`` of them."""
    from seisbind.model.datasets.openfwi import Dataset, find_pairs
    from seisbind.model.datasets.pairs import held_out_shards, load_pairs, prepare_files
    from seisbind.service.terminal.console import counting

    if _are_shards(data):
        return load_pairs(data, split="all" if held_out_shards(data) is None else part, rows=rows)
    dataset = Dataset(find_pairs(data, split=part))
    if quiet:
        return prepare_files(dataset, rows=rows)
    with counting("Preparing gathers", len(dataset) if rows is None else len(rows(len(dataset)))) as progress:
        return prepare_files(dataset, rows=rows, progress=lambda done, total: progress(done))
