"""The stage store: results by key, published whole or not at all. Start at `store.py`."""

from .entry import Entry, EntryInfo, canonical_json, stage_key
from .store import Damage, GcReport, Store, Writer, default_store

__all__ = [
    "Damage",
    "Entry",
    "EntryInfo",
    "GcReport",
    "Store",
    "Writer",
    "canonical_json",
    "default_store",
    "stage_key",
]
