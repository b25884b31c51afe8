"""A gallery in Milvus (a file of milvus-lite here) from the command line and behind a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from seisbind.index import Gallery, open_store
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidConfig, InvalidQuery, WeightsMismatch
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions

pytest.importorskip("pymilvus", reason="pymilvus is not installed")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")

from seisbind.index.copying import copy_gallery
from seisbind.service.commands.main import app

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("milvus")]


def seisbind(*arguments: object) -> str:
    """What the command prints; in this process, for each of its own would load torch anew."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, gallery_path: Path) -> str:
    """Of a copy of the gallery of all tests."""
    url = f"milvus+lite://{tmp_path_factory.mktemp('lite')}/galleries.db/copied"
    with Gallery.open(gallery_path, fingerprint=None) as source:
        assert copy_gallery(source, url) == len(source)
    return url


def test_a_copy_is_the_gallery(url: str, gallery_path: Path) -> None:
    """Ids, labels, dates, maps and embeddings are the same to the bit, and so are the checksums over all of them."""
    with Gallery.open(gallery_path, fingerprint=None) as source, open_store(url, fingerprint=None) as copy:
        names = source.model_ids()
        assert copy.model_ids() == names
        ours, theirs = copy.records(names), source.records(names)
        assert [record.checksum for record in ours] == [record.checksum for record in theirs]
        assert [record.added_at for record in ours] == [record.added_at for record in theirs]
        assert all(map(np.array_equal, copy.velocities(names), source.velocities(names)))
        assert all(map(np.array_equal, copy.embeddings(names), source.embeddings(names)))
        assert copy.verify().ok
        assert copy.info().descriptor_ranges == source.info().descriptor_ranges


def test_a_copy_goes_on_where_it_was_interrupted(gallery_path: Path, url: str) -> None:
    with Gallery.open(gallery_path, fingerprint=None) as source:
        with open_store(url, fingerprint=None, writable=True) as copy:
            copy.remove(source.model_ids()[:3])
        assert copy_gallery(source, url) == 3 and copy_gallery(source, url) == 0


def test_a_copy_says_that_velocities_are_rounded(gallery_path: Path, url: str, tmp_path: Path) -> None:
    other = url.replace("/copied", "/rounded")
    with Gallery.open(gallery_path, fingerprint=None) as first:
        given = {"fingerprint": first.fingerprint, "frame": first.frame}
    with Gallery.create(tmp_path / "rounded", precision_m_s=0.5, **given) as source:  # type: ignore[arg-type]
        copy_gallery(source, other)
        with open_store(other, fingerprint=None) as copy:
            assert copy.precision_m_s == 0.5
        with pytest.raises(InvalidConfig, match=r"are rounded by up to 0\.5 m/s"):
            copy_gallery(source, url)


def test_what_is_not_copied(gallery_path: Path, url: str, tmp_path: Path) -> None:
    with Gallery.open(gallery_path, fingerprint=None) as source:
        with pytest.raises(InvalidConfig, match="no milvus:// URL"):
            copy_gallery(source, str(tmp_path / "folder"))
        name = source.model_ids()[0]
    with Gallery.create(tmp_path / "other", fingerprint="other weights") as other, pytest.raises(WeightsMismatch):
        copy_gallery(other, url)
    with (
        Gallery.open(gallery_path, fingerprint=None) as source,
        Gallery.create(tmp_path / "same", fingerprint=source.fingerprint, frame=source.frame) as changed,
    ):
        record, (ours, theirs) = source.record(name), source.embeddings([name])
        velocity = source.velocity(name)[None] + 1
        changed.add(velocity, record.descriptors[None], ours, theirs, model_ids=[name])
        with pytest.raises(InvalidQuery, match="already belongs to another velocity model"):
            copy_gallery(changed, url)


def test_answers_from_milvus_are_those_of_the_folder(
    url: str, gallery_path: Path, weights: Path, gathers: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "gathers.npy", gathers[:2])
    content = (tmp_path / "gathers.npy").read_bytes()
    answers = []
    for place in (gallery_path, url):
        with GalleryBackend(place, weights, "cpu", RetrieveOptions(top_k=4)) as backend:
            answers.append(
                [[(m.model_id, m.similarity) for m in each.matches] for each in backend.file(content).results]
            )
    folder, milvus = ({match for one in answer for match in one} for answer in answers)
    assert folder == milvus and [len(one) for one in answers[0]] == [4, 4]


def test_commands(tmp_path: Path, weights: Path, gathers: Any) -> None:
    url = f"milvus+lite://{tmp_path}/g.db/own?maps=file://{tmp_path}/maps"
    assert "20 velocity models" in seisbind("gallery", "build", url, "--count", 20, "--seed", 5, "--weights", weights)
    np.save(tmp_path / "own.npy", np.linspace(1500, 4000, 70 * 70, dtype=np.float32).reshape(1, 70, 70))
    added = seisbind("gallery", "add", url, "--data", tmp_path / "own.npy", "--tag", "own", "--weights", weights)
    assert "1 velocity models added, 21 in all" in added
    assert "21 velocity models, made " in seisbind("gallery", "info", url)
    listed = seisbind("gallery", "list", url, "--tag", "own").splitlines()
    assert len(listed) == 2 and listed[1].startswith("v-")
    name = listed[1].split()[0]
    assert "1 velocity models removed, 20 left" in seisbind("gallery", "remove", url, name)
    assert "20 velocity models, all is well" in seisbind("gallery", "verify", url)
    assert "0 maps and 0 embeddings removed, 20 velocity models kept" in seisbind("gallery", "sweep", url)
    np.save(tmp_path / "gather.npy", gathers[0])
    assert seisbind("retrieve", tmp_path / "gather.npy", "--gallery", url, "--weights", weights, "--json")
    copied = seisbind("gallery", "copy", url, f"milvus+lite://{tmp_path}/h.db/again")
    assert "20 velocity models copied" in copied


def test_a_server_over_milvus(
    url: str, serve: Callable[..., Any], embedder: Embedder, models: Any, gathers: Any, tmp_path: Path
) -> None:
    served = serve(gallery=url, writable=True)
    with httpx.Client(base_url=served.url, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        info = client.get("/v1/gallery").raise_for_status().json()
        assert info["gallery"]["name"] == "copied"
        np.save(tmp_path / "gather.npy", gathers[0])
        files = {"file": ("gather.npy", (tmp_path / "gather.npy").read_bytes())}
        answer = client.post("/v1/retrieve", files=files).raise_for_status().json()
        name = answer["results"][0]["matches"][0]["model_id"]
        assert client.get(f"/v1/models/{name}/velocity.npy").status_code == 200
        assert client.get(f"/v1/models/{name}/image.png").status_code == 200
        np.save(tmp_path / "own.npy", np.linspace(1500, 4000, 70 * 70, dtype=np.float32).reshape(1, 70, 70))
        own = {"file": ("own.npy", (tmp_path / "own.npy").read_bytes())}
        added = client.post("/v1/models", files=own)
        assert added.status_code == 201, added.text
        (new,) = added.json()["model_ids"]
        assert client.post("/v1/gallery/reload").raise_for_status().json()
        assert client.delete(f"/v1/models/{new}").status_code in (200, 204)
        assert client.get(f"/v1/models/{new}").status_code == 404
