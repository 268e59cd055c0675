"""Read a checkpoint of the original MyPT: a single `.pt` file, or a bundle folder around `model.pt`."""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import CheckpointError
from mypt.json_files import LARGER, read_json

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "model.pt"
_EMBEDDING = "token_embedding_table.weight"
_PREFIXES = re.compile(r"((_orig_mod|module)\.)+")  # what torch.compile and DDP put before every name
_BUFFERS = (".tril", ".mask", "rope_cos", "rope_sin")  # constants, computed again from the configuration


@dataclass(frozen=True)
class Original:
    """The content of a checkpoint of the original; tensors are mapped from the file, and read when they are used."""

    path: Path
    form: str  # "single file" or "bundle"
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    tokenizer: dict[str, Any] | None
    step: int | None
    training_state: dict[str, Any] = field(default_factory=dict)
    checkpoint_dtype: str | None = None
    has_optimizer: bool = False

    @property
    def per_head(self) -> bool:
        """Whether every head has projections of its own (until December 2025), not one `qkv` for all."""
        return any(".sa.heads." in name for name in self.tensors)

    @property
    def era(self) -> str:
        return "per-head" if self.per_head else "fused"


class NotOriginal(CheckpointError):
    """A file that can be read and holds something else."""


def is_original(path: Path) -> bool:
    """Whether `path` looks like one, by the names of its files: a `.pt` file, a bundle, a folder around `.pt` files."""
    if path.is_file():
        return path.suffix in (".pt", ".pth")
    named = any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin"))
    if named or (path / "trainer_state.json").is_file():  # whose states are .pt files, too
        return False
    return is_bundle(path) or bool(single_files(path))


def refuse_original(path: str | Path) -> None:
    """Raise CheckpointError with the command that converts it, if `path` is a checkpoint of the original MyPT's."""
    path = Path(path)
    if not path.exists() or not is_original(path):
        return
    if path.is_dir() and ("model_type" in _read_json(path / "config.json", strict=False)):
        return  # a GPT-2 of transformers has the field n_embd, too
    try:
        tokenizer = read_original(path).tokenizer or {}
    except NotOriginal:
        return
    # A model of characters alone can neither end a text nor be trained on prepared data.
    more = " --add-bytes" if tokenizer.get("chars") else ""
    name = path.parent.name if path.name == WEIGHTS_NAME else path.stem
    out = f"models/{name}"
    raise CheckpointError(
        f"{path} is a checkpoint of the original MyPT; convert it, then name {out}: "
        f"mypt convert {path} --out {out}{more}"
    )


def is_bundle(path: Path) -> bool:
    config = _read_json(path / "config.json", strict=False)
    return (path / WEIGHTS_NAME).is_file() or ("n_embd" in config and "model_type" not in config)  # GPT-2 has both


def single_files(folder: Path) -> list[Path]:
    """The `.pt` files right in a folder that is no bundle."""
    return sorted(path for path in folder.glob("*.pt") if path.is_file())


def read_original(path: str | Path) -> Original:
    """The checkpoint in a `.pt` file, in a bundle, or in a folder with one `.pt` file.

    Only tensors, texts, numbers and containers of them are unpickled. Raises CheckpointError for a file that needs
    more than that or is damaged, NotOriginal for one that holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; name a .pt file, or the folder with config.json and model.pt")
    if path.name == WEIGHTS_NAME and (path.parent / "config.json").is_file():
        path = path.parent
    if path.is_dir() and not is_bundle(path):
        path = _only_file(path)
    original = _read_bundle(path) if path.is_dir() else _read_single_file(path)
    if _EMBEDDING not in original.tensors:
        raise NotOriginal(f"{path} holds no {_EMBEDDING}: it is no checkpoint of the original MyPT")
    return original


def _only_file(folder: Path) -> Path:
    files = single_files(folder)
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"{folder} holds neither config.json with model.pt nor a .pt file")
    names = ", ".join(file.name for file in files)
    raise CheckpointError(
        f"{folder} holds {len(files)} checkpoints, {names}; name one of them (mypt convert --all takes all)"
    )


def _read_single_file(path: Path) -> Original:
    content = load_plain(path)
    if "model_state_dict" not in content:
        if any(str(name).endswith(_EMBEDDING) for name in content) or "state_dict" in content:
            raise CheckpointError(f"{path} holds weights alone; put the config.json of its model beside it")
        raise NotOriginal(f"{path} holds no model_state_dict: it is no checkpoint of the original MyPT")
    return Original(
        path,
        "single file",
        _object(content.get("config"), f"the config in {path}"),
        _clean(content["model_state_dict"], path),
        content.get("tokenizer") and _object(content["tokenizer"], f"the tokenizer in {path}"),
        _step(content),
        has_optimizer=bool(content.get("optimizer_state_dict")),
    )


def _read_bundle(path: Path) -> Original:
    for name in ("config.json", WEIGHTS_NAME):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} holds no {name}; a checkpoint of the original is config.json and model.pt")
    content = load_plain(path / WEIGHTS_NAME)
    about = content if "state_dict" in content else {"state_dict": content}
    state = _read_json(path / "training_state.json")
    return Original(
        path,
        "bundle",
        _read_json(path / "config.json"),
        _clean(about["state_dict"], path / WEIGHTS_NAME),
        _read_json(path / "tokenizer.json") or None,
        _step(state),
        state,
        about.get("checkpoint_dtype"),
        (path / str(state.get("optimizer_file") or "optimizer.pt")).is_file(),
    )


def load_plain(path: Path) -> dict[str, Any]:
    import torch

    try:
        # A file of the older format of torch.save is no zip archive and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = str(error).split("GLOBAL ")[1:] or str(error).split("class ")[1:]
        needs = named[0].split()[0].strip("`'\".") if named else "more than tensors and plain values"
        raise CheckpointError(
            f"{path} is damaged, or needs {needs}, which only running its pickle would give: refused; "
            "save it again as tensors and plain values"
        ) from None
    except OSError:
        raise
    except Exception as error:  # any error that a damaged or hostile file can provoke
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise CheckpointError(f"{path} is no whole file of torch.save ({reason}); restore it") from None
    if not isinstance(content, dict):
        raise NotOriginal(f"{path} holds a {type(content).__name__}: it is no checkpoint of the original MyPT")
    return content


def _clean(state: object, where: Path) -> dict[str, torch.Tensor]:
    """The parameters of a state dict under the original's own names."""
    import torch

    tensors = {}
    for name, value in _object(state, f"the state dict in {where}").items():
        name = str(name)
        if prefix := _PREFIXES.match(name):
            name = name[prefix.end() :]
        if isinstance(value, torch.Tensor) and not name.endswith(_BUFFERS):
            tensors[name] = value
    return tensors


def _step(state: dict[str, Any]) -> int | None:
    return state["step"] if isinstance(state.get("step"), int) else None


def _object(value: object, what: str) -> dict:
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a {type(value).__name__}; an object with names and values was expected")
    return value


def _read_json(path: Path, strict: bool = True) -> dict[str, Any]:
    """The object in a file, empty if there is no such file; if not `strict`, also if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return read_json(path, dict[str, object], CheckpointError, largest=LARGER)
    except CheckpointError:
        if strict:
            raise
        return {}
