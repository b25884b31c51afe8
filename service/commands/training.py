"""``seisbind simulate``, ``train`` and ``evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seisbind.model.datasets.openfwi import Split
    from seisbind.model.datasets.pairs import PairSet
    from seisbind.model.frame import Frame


class WaveEngine(StrEnum):
    """See `seisbind.model.waves.wavefield`."""

    DEEPWAVE = "deepwave"
    OPENFWI = "openfwi"


class Part(StrEnum):
    """See `seisbind.model.datasets.openfwi.find_pairs`."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"


def simulate(
    out: Annotated[Path, typer.Argument(help="Folder of the dataset, in OpenFWI's layout; run again to go on.")],
    count: Annotated[int, typer.Option(min=1, help="Pairs of each family.")],
    family: Annotated[list[str] | None, typer.Option(help="Repeat for several; default: OpenFWI's ten.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    engine: Annotated[WaveEngine, typer.Option(help="Wave-equation solver.")] = WaveEngine.DEEPWAVE,
    processes: Annotated[int | None, typer.Option(min=1, help="Workers; default: one a core.")] = None,
    per_file: Annotated[int, typer.Option(min=1, help="Pairs a file.")] = 500,
    frame: Annotated[Path | None, typer.Option(help="JSON file of another line; default: OpenFWI's.")] = None,
) -> None:
    """Simulate pairs of velocity models and shot gathers."""
    from seisbind.model.datasets.simulation import simulate_dataset
    from seisbind.model.frame import OPENFWI_FRAME, load_frame
    from seisbind.model.ground.families import FAMILIES
    from seisbind.service.commands.console import counting

    families = tuple(family) if family else FAMILIES
    line = load_frame(frame) if frame else OPENFWI_FRAME
    with counting("Simulating", count * len(families)) as progress:
        made = simulate_dataset(
            out,
            families=families,
            count=count,
            seed=seed,
            engine=engine.value,
            frame=line,
            processes=processes,
            per_file=per_file,
            progress=lambda done, total: progress(done),
        )
    print(f"{made.directory}: {made.pairs} pairs in {made.files} files, {made.kept} of them kept from before")


def train(
    data: Annotated[Path, typer.Option(help="Pairs: an OpenFWI folder, or prepared shards.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log.csv, checkpoint, weights.safetensors.")],
    config: Annotated[str, typer.Option(help="default, further, larger, reading, paper, or a JSON file.")] = "default",
    held_out: Annotated[
        Path | None,
        typer.Option(help="Pairs to calibrate intervals on, all of them; default: the test part of an OpenFWI --data."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin from, as those that ship; default: random ones.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the run's checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Train encoders on pairs of gathers and velocity models."""
    from seisbind.model.encoders.weights_file import load_weights
    from seisbind.model.training.recipe import load_config
    from seisbind.model.training.run import WEIGHTS, Stage, train_weights
    from seisbind.model.training.trainer import check_frames, check_start
    from seisbind.service.commands.console import counting

    recipe = load_config(config)
    from_weights = load_weights(start) if start else None
    encoders = from_weights.encoders if from_weights else None
    check_start(recipe, encoders)  # before the gathers are prepared
    pairs = _pairs(data, "train")
    check_frames(pairs, encoders)
    split = _held_out(data, held_out, pairs.frame) if recipe.encoders.kind == "seisbind" else None
    with counting(f"Training on {len(pairs)} pairs", recipe.steps) as progress:
        fingerprint = train_weights(
            [Stage(lambda: pairs)],
            recipe,
            out,
            name=out.name,
            training={"start": from_weights.fingerprint if from_weights else None},
            start=encoders,
            held_out=None if split is None else lambda: split,
            resume=resume,
            device=device,
            progress=lambda done: progress(done.step),
        )
    print(f"{out / WEIGHTS}: weights {fingerprint}")


def evaluate(
    data: Annotated[Path, typer.Option(help="Held-out pairs: an OpenFWI folder, or prepared shards.")],
    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None,
    split: Annotated[Part, typer.Option(help="Of an OpenFWI folder; shards have none.")] = Part.TEST,
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
    from seisbind.service.commands.console import console

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
        InvalidConfig: none were named, and ``data`` are shards, which have no test part; or too few, or of another
            frame.
    """
    from seisbind.model.datasets.openfwi import find_pairs
    from seisbind.model.errors import InvalidConfig
    from seisbind.model.training.calibration import MIN_PAIRS

    if held_out is None and _are_shards(data):
        raise InvalidConfig(f"{data} holds shards, which have no test part: name others with --held-out.")
    source, part = (held_out, Part.ALL) if held_out else (data, Part.TEST)
    there = _are_shards(source) or find_pairs(source, split=part.value)
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


def _pairs(data: Path, part: Split) -> PairSet:
    """The pairs of a folder: prepared shards as they are, or a part of OpenFWI's files."""
    from seisbind.model.datasets.openfwi import Dataset, find_pairs
    from seisbind.model.datasets.pairs import load_pairs, prepare_files
    from seisbind.service.commands.console import counting

    if _are_shards(data):
        return load_pairs(data)
    dataset = Dataset(find_pairs(data, split=part))
    with counting("Preparing gathers", len(dataset)) as progress:
        return prepare_files(dataset, progress=lambda done, total: progress(done))
