"""onnxruntime gives the answers of torch. Where it is not installed, its tests are skipped and say so."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.runtimes import ONNX_PACKAGES, choose_runtime
from seisbind.model.encoders.weights_file import Description, Weights
from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.survey.preparation import Prepared, prepare
from seisbind.service.engine.engine import canary_gather

BOUND = 1e-5  # of unit vectors, of probabilities, and of each descriptor and velocity relative to its size
CONFIGS = {
    "default": EncoderConfig(families=("flat", "curved", "salt")),
    "no families": EncoderConfig(width=8, velocity_width=8, hidden=32),
    "larger": EncoderConfig(width=8, velocity_width=8, hidden=32, ahead=1, blocks=(3, 2, 3), mixers=1, finish=1),
    "paper": EncoderConfig(kind="paper"),
}


def random_weights(config: EncoderConfig) -> Weights:
    """Encoders whose norms have seen something: untrained running statistics would hide how they are folded away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = Encoders(config).eval()
        for module in encoders.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        for parameter in encoders.parameters():
            if not parameter.any():  # layers that are added begin by adding nothing
                torch.nn.init.normal_(parameter, 0, 0.1)
        encoders.descriptor_mean.uniform_(100, 3000)
        encoders.descriptor_std.uniform_(1, 300)
    return Weights(encoders, Description("test", config), "0" * 16)


def prepared(gathers: int, shots: int) -> Prepared:
    """Noise at any shot positions; a third of the receivers dead, here and there a whole shot, and one gather's end."""
    rng = np.random.default_rng(100 * gathers + shots)
    live = rng.random((gathers, shots, 70)) > 1 / 3
    live[rng.random((gathers, shots)) < 0.1] = False
    live[0, 0, :35] = False
    return Prepared(
        traces=(rng.standard_normal((gathers, shots, 250, 70)) * rng.lognormal(0, 3)).astype(np.float32),
        live=live,
        shot_x_m=rng.uniform(-20, OPENFWI_FRAME.line_m + 20, (gathers, shots)).astype(np.float32),
    )


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[Embedder, Embedder]:
    """The same weights by torch and by onnxruntime."""
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    weights = random_weights(CONFIGS[request.param])
    both = [Embedder(weights, device="cpu", runtime=name) for name in ("torch", "onnxruntime")]
    assert [each.runtime for each in both] == ["torch", "onnxruntime"]
    return both[0], both[1]


@pytest.mark.parametrize(("gathers", "shots"), [(1, 5), (1, 1), (2, 64), (7, 3), (65, 5)])
def test_equal_to_torch(pair: tuple[Embedder, Embedder], gathers: int, shots: int) -> None:
    torch_s, onnx_s = (each.embed_gathers(prepared(gathers, shots)) for each in pair)
    for head in fields(EncodedGathers):
        expected, got = getattr(torch_s, head.name), getattr(onnx_s, head.name)
        assert (expected is None) == (got is None), head.name
        if expected is not None:
            assert got.dtype == np.float32 and np.isfinite(expected).all()
            relative = head.name not in ("embedding", "family")
            np.testing.assert_allclose(got, expected, rtol=BOUND if relative else 0, atol=0 if relative else BOUND)


def test_the_bound_can_fail(pair: tuple[Embedder, Embedder]) -> None:
    """One receiver of 350 that lives or not is already beyond it."""
    p = prepared(2, 5)
    before = pair[0].embed_gathers(p).embedding
    p.live[:, 0, 40] ^= True
    assert np.abs(pair[1].embed_gathers(p).embedding - before).max() > 2 * BOUND


def test_alone_or_in_a_batch_of_64(pair: tuple[Embedder, Embedder]) -> None:
    p = prepared(64, 5)
    together = pair[1].embed_gathers(p).embedding
    for i in (0, 31, 63):
        alone = Prepared(p.traces[i : i + 1], p.live[i : i + 1], p.shot_x_m[i : i + 1])
        np.testing.assert_allclose(pair[1].embed_gathers(alone).embedding[0], together[i], atol=1e-5)


def test_auto_takes_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders, cpu = random_weights(CONFIGS["no families"]).encoders, torch.device("cpu")
    assert choose_runtime("auto", encoders, torch.device("cuda")).name == "torch"
    monkeypatch.setattr("seisbind.model.encoders.runtimes.find_spec", lambda name: None if name == "onnx" else object())
    assert choose_runtime("auto", encoders, cpu).name == "torch"
    with pytest.raises(InvalidConfig, match=r"needs onnx: pip install 'seisbind\[onnxruntime\]'"):
        choose_runtime("onnxruntime", encoders, cpu)


def test_auto_is_onnxruntime_on_a_cpu() -> None:
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)
    assert Embedder(random_weights(CONFIGS["no families"]), device="cpu").runtime == "onnxruntime"


def test_what_cannot_run_is_refused() -> None:
    encoders = random_weights(CONFIGS["no families"]).encoders
    with pytest.raises(InvalidConfig, match="'tensorrt'; use auto, torch, onnxruntime"):
        choose_runtime("tensorrt", encoders, torch.device("cpu"))
    with pytest.raises(InvalidConfig, match="for the CPU; on cuda use torch"):
        choose_runtime("onnxruntime", encoders, torch.device("cuda"))


def test_an_export_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)

    def gone(*args: object, **kwargs: object) -> None:
        raise TypeError("unexpected keyword argument 'dynamo'")

    monkeypatch.setattr("torch.onnx.export", gone)
    with pytest.raises(InvalidConfig, match=r"'dynamo'.*SEISBIND_RUNTIME=torch"):
        Embedder(random_weights(CONFIGS["no families"]), device="cpu")


def test_bf16_turns_an_embedding_by_little() -> None:
    """Promise 10's bound, here on a CPU: the shipped encoders, gathers of a direct wave with noise."""
    rng = np.random.default_rng(0)
    gathers = prepare(canary_gather() + 0.02 * rng.standard_normal((3, 5, 1000, 70)).astype(np.float32))
    exact, rough = (
        Embedder.load(device="cpu", runtime="torch", precision=each).embed_gathers(gathers) for each in ("fp32", "bf16")
    )
    cosine = (exact.embedding * rough.embedding).sum(axis=1)
    assert (cosine > 0.999).all() and (cosine < 1 - 1e-7).all()  # it is another arithmetic
    given = {head.name: getattr(rough, head.name) for head in fields(EncodedGathers)}
    heads = [head for name, head in given.items() if name not in ("measured", "shot_distance")]  # of the record itself
    assert all(head.dtype == np.float32 for head in heads if head is not None)


def test_precisions_that_cannot_be() -> None:
    encoders, cpu = random_weights(CONFIGS["no families"]).encoders, torch.device("cpu")
    assert choose_runtime("auto", encoders, cpu, precision="bf16").name == "torch"
    with pytest.raises(InvalidConfig, match="fp32 only"):
        choose_runtime("onnxruntime", encoders, cpu, precision="bf16")
    with pytest.raises(InvalidConfig, match="Unknown precision 'fp16'"):
        choose_runtime("torch", encoders, cpu, precision="fp16")
