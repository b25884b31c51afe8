"""SeisBind: velocity models and their physics from seismic shot gathers, by retrieval.

The names below are what scripts and pipelines need; each is imported when it is first used, so that
``import seisbind`` costs nothing and a client of a server loads neither torch nor FAISS.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seisbind.index import Filter as Filter
    from seisbind.index import Gallery as Gallery
    from seisbind.model.encoders.embedder import Embedder as Embedder
    from seisbind.model.errors import SeisBindError as SeisBindError
    from seisbind.model.frame import Frame as Frame
    from seisbind.model.frame import Survey as Survey
    from seisbind.model.ground.families import generate as generate
    from seisbind.model.survey.preparation import OPENFWI as OPENFWI
    from seisbind.model.waves.wavefield import simulate as simulate
    from seisbind.service.client.client import AsyncClient as AsyncClient
    from seisbind.service.client.client import Client as Client
    from seisbind.service.engine.engine import Engine as Engine
    from seisbind.service.engine.gallery_builder import build_gallery as build_gallery
    from seisbind.service.engine.gallery_builder import random_models as random_models
    from seisbind.service.formats.reader import read_gathers as read_gathers

    __version__: str

_HOME = {
    "AsyncClient": "seisbind.service.client.client",
    "Client": "seisbind.service.client.client",
    "Embedder": "seisbind.model.encoders.embedder",
    "Engine": "seisbind.service.engine.engine",
    "Filter": "seisbind.index",
    "Frame": "seisbind.model.frame",
    "Gallery": "seisbind.index",
    "OPENFWI": "seisbind.model.survey.preparation",
    "SeisBindError": "seisbind.model.errors",
    "Survey": "seisbind.model.frame",
    "build_gallery": "seisbind.service.engine.gallery_builder",
    "generate": "seisbind.model.ground.families",
    "random_models": "seisbind.service.engine.gallery_builder",
    "read_gathers": "seisbind.service.formats.reader",
    "simulate": "seisbind.model.waves.wavefield",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("seisbind")
    if name not in _HOME:
        raise AttributeError(f"module 'seisbind' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
