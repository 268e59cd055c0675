"""Is a checkpoint whole that several processes wrote in parts: FSDP's folders of shards, DeepSpeed's `global_stepN`."""

import pickle
import zipfile
from pathlib import Path

FSDP_WEIGHTS = "pytorch_model_fsdp_0"
FSDP_OPTIMIZER = "optimizer_0"
DEEPSPEED_TAG = "latest"  # a file that names the folder


class _Record:
    """Stands for every class of a pickle, so that reading it runs no code of anybody's."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _Records(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return _Record


def missing_shard(folder: Path) -> str | None:
    """What a folder of torch.distributed.checkpoint lacks, or None.

    `.metadata`, which is written last, says where each tensor lies: in which `.distcp` file, from which byte on, how
    long.
    """
    try:
        with open(folder / ".metadata", "rb") as file:
            places = list(_Records(file).load().storage_data.values())
        ends: dict[str, int] = {}
        for place in places:
            ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    except Exception as error:  # a damaged pickle raises anything
        return f"{folder.name}/.metadata cannot be read ({type(error).__name__})"
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size < end:
            return f"{folder.name}/{name} is missing or cut short"
    return None


def missing_deepspeed(checkpoint: Path, world_size: int) -> str | None:
    """What DeepSpeed's folder lacks, or None: the model's states, and under ZeRO the optimizer's of every process."""
    tag = (checkpoint / DEEPSPEED_TAG).read_text(encoding="utf-8", errors="replace").strip()
    folder = checkpoint / tag
    if not tag or tag != Path(tag).name or not folder.is_dir():
        return f"{DEEPSPEED_TAG} names no folder of it"
    if not list(folder.glob("*model_states.pt")):
        return f"{tag} holds no model states"
    optimizers = list(folder.glob("*optim_states.pt"))
    if optimizers and len(optimizers) < world_size:
        return f"{tag} holds the optimizer states of {len(optimizers)} processes, {world_size} took part"
    for path in sorted(folder.glob("*.pt")):
        if not zipfile.is_zipfile(path):
            return f"{tag}/{path.name} is cut short"
    return None
