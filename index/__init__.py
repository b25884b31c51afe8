"""The gallery of velocity models: its record store and its nearest-neighbour indices."""

if __name__ != "seisbind.index":
    raise ImportError(f"imported as {__name__!r}; write 'import seisbind.index' (after 'pip install -e .')")

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.coarse import CoarseModels
from seisbind.index.coding import CodedMap, CodedModels, code_maps, code_models
from seisbind.index.gallery import Gallery
from seisbind.index.info import Distribution, GalleryInfo
from seisbind.index.search.filter import Filter
from seisbind.index.search.vectors import search_threads
from seisbind.index.search.view import Hit, Hits
from seisbind.index.storage.codec import rounded
from seisbind.index.storage.record import Added, Record
from seisbind.index.store import Store, building_store, list_store, open_store, verify_store
from seisbind.index.verify import VerifyReport, verify_folder

__all__ = [
    "Added",
    "ApproximateInfo",
    "CoarseModels",
    "CodedMap",
    "CodedModels",
    "Distribution",
    "Filter",
    "Gallery",
    "GalleryInfo",
    "Hit",
    "Hits",
    "Record",
    "Store",
    "VerifyReport",
    "building_store",
    "code_maps",
    "code_models",
    "list_store",
    "open_store",
    "rounded",
    "search_threads",
    "verify_folder",
    "verify_store",
]
