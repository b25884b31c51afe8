"""What is published: one small file that names every part of a gallery's files by its SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seisbind.index.storage.database import RECORDS
from seisbind.index.storage.folder import MAPPED, READ
from seisbind.model.errors import GalleryDamaged, GalleryError

FORMAT = 1
LATEST = "latest.json"
PART_BYTES = 16 << 20  # of a file, uploaded and fetched at once: what has not changed in a file is not fetched again
MAX_BYTES = 64 << 20  # of a manifest: of 10 TB
NAMES = (RECORDS, *READ, MAPPED)
SHA256 = re.compile(r"[0-9a-f]{64}")
DIGEST = re.compile(r"[0-9a-f]{8,64}")  # the beginning of one


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file: its parts are of `PART_BYTES` each, but for the last."""

    name: str
    bytes: int
    sha256: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A gallery of one moment.

    Attributes:
        fingerprint: of the weights that it was made with.
        published_at: ISO 8601, UTC.
        embeddings: see `seisbind.model.fingerprint.embeds_alike`; empty where the gallery does not say.
    """

    generation: int
    digest: str
    count: int
    fingerprint: str
    published_at: str
    files: tuple[PublishedFile, ...]
    embeddings: str = ""

    @property
    def stamp(self) -> str:
        """As `seisbind.index.GalleryInfo.stamp`."""
        return f"{self.generation}-{self.digest[:8]}"

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(each.bytes for each in self.files)

    @property
    def key(self) -> str:
        """A name for exactly these files."""
        return f"{self.stamp}-{hashlib.sha256(_canonical([asdict(each) for each in self.files])).hexdigest()[:16]}"

    def dump(self) -> bytes:
        """As it is stored, with a checksum of its own."""
        facts = {"format": FORMAT, "part_bytes": PART_BYTES} | asdict(self)
        return _canonical(facts | {"check": hashlib.sha256(_canonical(facts)).hexdigest()})

    @classmethod
    def parse(cls, content: bytes, where: str) -> Manifest:
        """The inverse of `dump`.

        Raises:
            GalleryDamaged: it is not what was written, or has names and numbers that no gallery has: `key` is a folder.
            GalleryError: it is of another version.
        """
        try:
            facts: dict[str, Any] = json.loads(content)
            check = facts.pop("check")
            if check != hashlib.sha256(_canonical(facts)).hexdigest():
                raise ValueError("it does not match its checksum")
            form, part = facts.pop("format"), facts.pop("part_bytes")
            files = tuple(_file(each) for each in facts.pop("files"))
            found = cls(files=files, **facts)
            _check_facts(found)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise GalleryDamaged(f"The manifest {where} is damaged ({error}). Publish the gallery again.") from error
        if (form, part) != (FORMAT, PART_BYTES):
            raise GalleryError(
                f"The manifest {where} has format {form} with parts of {part} bytes; this version reads {FORMAT} with "
                f"{PART_BYTES}. Take the version that published it, or publish the gallery again."
            )
        return found


def _check_facts(found: Manifest) -> None:
    """Raises ValueError where a fact is of another kind, so that `Manifest.key` cannot lead out of its folder."""
    numbers, texts = (
        (found.generation, found.count),
        (found.digest, found.fingerprint, found.published_at, found.embeddings),
    )
    if not all(type(each) is int and each >= 0 for each in numbers) or not all(type(each) is str for each in texts):
        raise ValueError("a fact in it is of the wrong kind")
    if not DIGEST.fullmatch(found.digest):
        raise ValueError(f"{found.digest!r:.80} is no digest")
    if RECORDS not in (names := [each.name for each in found.files]) or len(set(names)) < len(names):
        raise ValueError(f"its files are {names!r:.200}")


def _file(facts: dict[str, Any]) -> PublishedFile:
    """One file, whose name and keys cannot lead anywhere else."""
    found = PublishedFile(facts["name"], facts["bytes"], facts["sha256"], tuple(facts["parts"]))
    if found.name not in NAMES or type(found.bytes) is not int or found.bytes < 0:
        raise ValueError(f"no gallery has a file {found.name!r} of {found.bytes!r} bytes")
    if not all(SHA256.fullmatch(each) for each in (found.sha256, *found.parts)):
        raise ValueError(f"a checksum of {found.name} is none")
    if len(found.parts) != -(-found.bytes // PART_BYTES):
        raise ValueError(f"{found.name} has {len(found.parts)} parts")
    return found


def described(path: Path) -> PublishedFile:
    """The file at ``path``, read once. Raises OSError."""
    whole, parts, size = hashlib.sha256(), [], 0
    with path.open("rb") as handle:
        while part := handle.read(PART_BYTES):
            whole.update(part)
            parts.append(hashlib.sha256(part).hexdigest())
            size += len(part)
    return PublishedFile(path.name, size, whole.hexdigest(), tuple(parts))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
