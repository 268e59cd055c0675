"""Find the store of a URI by its scheme."""

from mypt.errors import MyPTError, without_secrets
from mypt.remote.clients import SCHEMES
from mypt.storage.hub import HubStore
from mypt.storage.objects import ObjectStore
from mypt.storage.store import Store

STORES: dict[str, type[Store]] = {"hf": HubStore, **dict.fromkeys(SCHEMES, ObjectStore)}


def parse_uri(uri: str) -> Store:
    """Return the store that a URI names. Raises MyPTError for an unknown scheme or form; no secret is repeated."""
    scheme, found, _ = uri.partition("://")
    if not found or scheme not in STORES:
        forms = ", ".join(dict.fromkeys(store.form for store in STORES.values()))
        raise MyPTError(f"{without_secrets(uri)!r} is no place for models that mypt knows; give {forms}")
    return STORES[scheme].parse(uri)
