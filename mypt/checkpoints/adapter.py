"""Read a LoRA adapter's folder, and check that a base model is the one that it was trained with."""

import json
import mmap
from pathlib import Path
from typing import Annotated, TypedDict

from mypt.checkpoints.model_config import ADAPTER_CONFIG, CONFIG_NAME, cached_file
from mypt.checkpoints.tensors import ADAPTER_WEIGHTS, read_header, weight_files
from mypt.errors import CheckpointError
from mypt.files import replace_text
from mypt.json_files import Rule, find_json, read_json

BASE_NAME = "adapter_base.json"  # ours, beside it
INSTALL_PEFT = "LoRA needs the package peft: pip install mypt[lora]"


class _Config(TypedDict, total=False):
    base_model_name_or_path: Annotated[str, Rule(lambda name: "\0" not in name, "a folder or a hub id")] | None
    target_modules: list[str] | str | None


class _Base(TypedDict):
    weights: str | None


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, as peft saves them, and no model of its own."""
    return Path(folder, ADAPTER_CONFIG).is_file() and not Path(folder, CONFIG_NAME).is_file()


def read_adapter_config(folder: str | Path) -> dict:
    """Read peft's adapter_config.json. Raises CheckpointError if it is damaged."""
    return read_json(Path(folder, ADAPTER_CONFIG), _Config, CheckpointError, "save or copy the adapter again")


def recorded_base(folder: str | Path) -> str:
    """The base model that peft's adapter_config.json names: a folder or a hub id.

    Raises CheckpointError if the file is damaged or names none, or if it names a folder that is not there.
    """
    path = Path(folder, ADAPTER_CONFIG)
    base = read_adapter_config(folder).get("base_model_name_or_path")
    advice = f"name it: mypt merge {folder} --base DIR --out DIR"
    if not base:
        raise CheckpointError(f"{path} does not say which base model the adapter belongs to; {advice}")
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise CheckpointError(
            f"the base model of adapter {folder} is not in {base} any more; put it back there, or {advice}"
        )
    return base


def save_base(folder: str | Path, base: str, weights: str | None) -> None:
    """Record the base model in an adapter's folder: its name and `weights_fingerprint`."""
    replace_text(Path(folder, BASE_NAME), json.dumps({"base_model_name_or_path": base, "weights": weights}, indent=1))


def require_base(folder: str | Path, base: str) -> None:
    """Raise CheckpointError if `base` does not hold the weights that the adapter was trained beside.

    An adapter that others made, which has no record of them, is taken on trust.
    """
    record = find_json(Path(folder, BASE_NAME), _Base, CheckpointError, "copy the adapter again")
    recorded = record and record["weights"]
    if recorded and (found := weights_fingerprint(base)) and recorded != found:
        raise CheckpointError(
            f"adapter {folder} was trained beside other weights ({recorded[:8]}) than those that {base} holds "
            f"({found[:8]}): restore that base model, or train the adapter again"
        )


def weights_fingerprint(model: str) -> str | None:
    """xxh3-128 (32 hex digits) of a model's tensors: names, dtypes, shapes and bytes, in however many files.

    model: a folder, or a hub id that the cache holds. For an adapter, its own tensors and its base's fingerprint count;
    for a model without safetensors, the names and bytes of its pytorch_model*.bin. None without any of these.
    """
    import xxhash

    cached = None if Path(model).is_dir() else cached_file(model, CONFIG_NAME)
    if cached is None and not Path(model).is_dir():
        return None
    folder, digest = cached.parent if cached else Path(model), xxhash.xxh3_128()
    adapter = is_adapter(folder)
    files = [folder / name for name in ([ADAPTER_WEIGHTS] if adapter else weight_files(folder))]
    if not all(path.is_file() for path in files):
        pickles = sorted(folder.glob("pytorch_model*.bin"))
        for path in pickles:
            digest.update(path.name.encode())
            digest.update(_mapped(path))
        return digest.hexdigest() if pickles else None
    if adapter and (folder / BASE_NAME).is_file():
        digest.update((folder / BASE_NAME).read_bytes())
    tensors = {name: (path, entry) for path in files for name, entry in read_header(path)[0].items()}
    views = {path: _mapped(path) for path in files}
    for name in sorted(tensors):
        path, entry = tensors[name]
        first = 8 + int.from_bytes(views[path][:8], "little")  # the length of the header comes before it
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        digest.update(views[path][first + begin : first + end])
    return digest.hexdigest()


def _mapped(path: Path) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
