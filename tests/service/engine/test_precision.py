"""What a gallery describes and embeds is the map that it stores, also where it rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed
from seisbind.service.engine.gallery_builder import build_gallery


def test_descriptors_and_embeddings_are_of_the_rounded_map(embedder: Embedder, tmp_path: Path) -> None:
    velocity, family = mixed(3, 5, ("Style-A",))
    build_gallery(tmp_path / "g", embedder, [(velocity, family.tolist())], precision_m_s=2.0)
    with Gallery.open(tmp_path / "g", fingerprint=embedder.fingerprint) as gallery:
        ids = gallery.model_ids()
        stored = np.stack(gallery.velocities(ids))
        np.testing.assert_array_equal(stored, np.rint(velocity / 4) * 4)
        described = np.stack([record.descriptors for record in gallery.records(ids)])
        np.testing.assert_array_equal(described, describe(stored))
        assert not np.array_equal(described, describe(velocity))
        np.testing.assert_allclose(gallery.embeddings(ids)[0], embedder.embed_velocity(stored), atol=2e-6)
