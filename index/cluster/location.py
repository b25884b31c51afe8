"""URLs of galleries in Milvus."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from seisbind.model.errors import InvalidConfig

FORM = "milvus://HOST:PORT/COLLECTION?maps=s3://BUCKET/PREFIX"
LITE_FORM = "milvus+lite:///PATH/FILE.db/COLLECTION"
COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
PORT = 19530
MAPS = ("s3", "gs", "az", "file")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a gallery in Milvus is.

    Attributes:
        uri: as `pymilvus` takes it: of a server, or the path of a file of milvus-lite.
        maps: URL of the object store with the velocity maps; None: Milvus holds them, too.
        text: the whole, for people and logs; nothing in it is secret.
    """

    uri: str
    collection: str
    maps: str | None
    text: str

    @property
    def lite(self) -> bool:
        """Whether it is a file of milvus-lite."""
        return "://" not in self.uri

    @classmethod
    def parse(cls, url: str) -> Location:
        """The location that ``url`` names.

        Raises:
            InvalidConfig: it is no such URL, or has a user or a password in it, which would be seen in logs.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidConfig(f"The URL of a gallery in Milvus cannot be read ({error}); it is {FORM}.") from error
        shown = url if parts.username is None and parts.password is None else "The URL"
        if parts.username is not None or parts.password is not None:
            raise InvalidConfig(
                "The URL of a gallery in Milvus has a user or a password in it, which logs would show: set "
                "MILVUS_TOKEN in the environment instead."
            )
        folder, _, collection = parts.path.rpartition("/")
        if parts.scheme == "milvus+lite":
            if parts.netloc or not folder.endswith(".db"):
                raise InvalidConfig(f"{shown} is no file of milvus-lite; it is {LITE_FORM}.")
            uri = folder
        elif parts.scheme in ("milvus", "milvus+tls"):
            if not parts.hostname or folder:
                raise InvalidConfig(f"{shown} is no collection of a Milvus server; it is {FORM}.")
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            uri = f"http{'s' if parts.scheme == 'milvus+tls' else ''}://{host}:{port or PORT}"
        else:
            raise InvalidConfig(f"{shown} is no gallery in Milvus; it is {FORM} or {LITE_FORM}.")
        if not COLLECTION.fullmatch(collection):
            raise InvalidConfig(f"{collection!r:.100} cannot be a collection of Milvus: letters, digits and _ only.")
        return cls(uri, collection, _maps(parts.query), url)


def _maps(query: str) -> str | None:
    """The only parameter that such a URL has, checked."""
    try:
        found = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise InvalidConfig(f"{query!r:.100} cannot be read as parameters of a URL; give ?maps=URL.") from error
    unknown = set(found) - {"maps"}
    if unknown:
        raise InvalidConfig(f"A gallery in Milvus has no parameter {sorted(unknown)[0]!r:.100}; known: maps.")
    maps = found.get("maps")
    if maps is None:
        return None
    parts = urlsplit(maps)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidConfig("maps= takes a plain URL without user, password or parameters: they come from AWS_….")
    here = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    if parts.scheme not in MAPS or not (here or (parts.scheme != "file" and parts.netloc)):
        raise InvalidConfig(
            f"maps={maps!r:.150} is no object store: s3://BUCKET/PREFIX, gs://…, az://… or file:///PATH."
        )
    return urlunsplit(parts).rstrip("/")
