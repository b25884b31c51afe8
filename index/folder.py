"""What lies in a gallery's folder.

gallery/
├── records.sqlite    the truth (`records`)
├── velocity.faiss    snapshots of the indices, derived (`snapshot`)
├── velocity.json
├── physics.faiss
├── physics.json
└── writer.lock       who may write (`lock`)
"""

from __future__ import annotations

from pathlib import Path

from seisbind.model.errors import GalleryError

RECORDS = "records.sqlite"
LOCK = "writer.lock"
SPACES = ("velocity", "physics")


def make_room(folder: Path, *, overwrite: bool) -> None:
    """Clear the folder of an old gallery, and of what a killed writer left.

    Raises:
        GalleryError: there is a gallery and ``overwrite`` is false, or there are files of someone else.
    """
    snapshots = {f"{space}.{ending}" for space in SPACES for ending in ("faiss", "json", "faiss.tmp", "json.tmp")}
    found = [file for file in folder.iterdir() if file.name != LOCK]
    foreign = sorted(f.name for f in found if f.name not in snapshots and not f.name.startswith(RECORDS))
    if foreign:
        raise GalleryError(
            f"{folder} holds {len(foreign)} other files ({foreign[0]!r} ...). Give the gallery a folder of its own."
        )
    if (folder / RECORDS).exists() and not overwrite:
        raise GalleryError(f"There already is a gallery at {folder}. Open it, or overwrite it on purpose.")
    for file in found:
        file.unlink()


def size_bytes(folder: Path) -> int:
    """Of all files in the folder. SQLite's own come and go meanwhile."""
    total = 0
    for file in folder.iterdir():
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total
