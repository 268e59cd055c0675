"""Held-out texts, each with its continuation by the model of a run and the original; kept in samples.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import numpy as np

from mypt.checkpoints.adapter import is_adapter, read_adapter_config, weights_fingerprint
from mypt.checkpoints.complete import last_complete_checkpoint, step_of
from mypt.checkpoints.environment import read_environment
from mypt.checkpoints.model_config import cached_model, is_model
from mypt.checkpoints.tensors import ADAPTER_WEIGHTS, weight_files
from mypt.errors import CheckpointError, MyPTError
from mypt.files import replace_text
from mypt.inspection.training_history import read_training_history
from mypt.json_files import find_json
from mypt.shards.format import METADATA_NAME, read_manifest
from mypt.shards.reader import ShardReader
from mypt.training.result import read_result

SAMPLES_NAME = "samples.json"
EACH = 2  # of an evaluation set
PROMPT, NEW = 32, 64  # tokens; of a short context a third is the prompt
TEMPERATURE, TOP_P = 0.8, 0.95
MOST_BYTES = 1 << 30  # of weights that are loaded when a run ends, without being asked for
_FAR = 4_096  # tokens in which the start of a document is looked for


class Sample(TypedDict):
    """A text of an evaluation set's held-out split: its beginning, how the model continues it, how it really does."""

    set: str
    prompt: str
    text: str
    original: str


class Samples(TypedDict):
    """The content of samples.json. weights: `weights_fingerprint` of the model that wrote them."""

    weights: str | None
    temperature: float
    top_p: float
    each: int
    samples: list[Sample]


def read_samples(run: Path) -> Samples | None:
    """samples.json of a run, if it is by the weights that the run has now. Raises CheckpointError if it is damaged."""
    found = find_json(run / SAMPLES_NAME, Samples, CheckpointError, "delete it: the next report makes it again")
    return found if found and found["weights"] == weights_fingerprint(str(model_folder(run) or run)) else None


def model_folder(run: Path) -> Path | None:
    """The folder of a run's model: the final one, or its last complete checkpoint; None before the first save."""
    saved, result = last_complete_checkpoint(run)[0], read_result(run)
    if not is_model(run):
        return saved
    ended = result is None or (result.state in ("completed", "stopped") and saved and step_of(saved) == result.step)
    return run if saved is None or ended else saved  # a run that went on still holds its former model


def weights_bytes(folder: Path) -> float:
    """Bytes of the weights that loading a model reads, its base's included; infinite where that is not known."""
    names = [ADAPTER_WEIGHTS] if is_adapter(folder) else weight_files(folder)
    paths = [folder / name for name in names] if (folder / names[0]).is_file() else folder.glob("pytorch_model*.bin")
    size = sum(path.stat().st_size for path in paths if path.is_file())
    if not is_adapter(folder):
        return size or float("inf")
    base = read_adapter_config(folder).get("base_model_name_or_path") or ""
    found = Path(base) if Path(base).is_dir() else cached_model(base)
    return size + (weights_bytes(found) if found and not is_adapter(found) else float("inf"))


def held_out(run: Path) -> dict[str, tuple[Path, str]]:
    """{evaluation set: its dataset directory here and the split}, as environment.json records them."""
    found = {}
    for dataset in (read_environment(run) or {}).get("datasets", []):
        directory = _here(run, dataset["name"])
        for use in dataset["uses"]:
            kind, _, name = use.partition(" ")
            if directory and kind == "eval":
                splits = read_manifest(directory).splits
                has_val = "val" in splits and splits["val"].tokens
                found[name] = (directory, "val" if has_val else "train")
    order = (read_training_history(run)["recipe"] or {}).get("data", {}).get("eval") or {}
    return {name: found[name] for name in [*order, *(found.keys() - order.keys())] if name in found}


def _here(run: Path, name: str) -> Path | None:
    """A directory by its recorded name, or, of one in the run folder, which may have moved, its place there."""
    own = [run.joinpath(*Path(name).parts[-count:]) for count in (1, 2)]
    return next((path for path in (Path(name), *own) if (path / METADATA_NAME).is_file()), None)


def make_samples(run: Path, each: int = EACH) -> Samples:
    """Let the model of a run continue the beginnings of held-out texts, and write samples.json.

    The same model and data give the same samples. Raises MyPTError if there is no model, no held-out text here, or the
    model cannot be loaded or gives NaN.
    """
    folder, sets = model_folder(run), held_out(run)
    if folder is None:
        raise CheckpointError("no checkpoint is saved yet")
    if not sets:
        raise MyPTError("no held-out text of the run is here")
    from transformers import logging

    from mypt.checkpoints.load import load_model
    from mypt.generation.engine import Engine
    from mypt.generation.settings import GenerationSettings
    from mypt.tokenization.load import load_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(folder)
    engine = Engine(load_model(folder), tokenizer, say=lambda line: None)
    room = min(engine.context or PROMPT + NEW, PROMPT + NEW)
    length = min(PROMPT, room // 3)
    beginnings, samples = [], []
    for name, (directory, split) in sets.items():
        for ids in _beginnings(directory, split, each, room):
            beginnings.append(ids[:length])
            words = [tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:length], ids[length:])]
            samples.append(Sample(set=name, prompt=words[0], text="", original=words[1]))
    settings = GenerationSettings(max_new_tokens=room - length, temperature=TEMPERATURE, top_p=TOP_P, seed=0)
    written = engine.complete_batch(beginnings, settings, seeds=range(len(beginnings)))
    for sample, completion in zip(samples, written, strict=True):
        sample["text"] = completion.text
    found = Samples(
        weights=weights_fingerprint(str(folder)),
        temperature=TEMPERATURE,
        top_p=TOP_P,
        each=each,
        samples=samples,
    )
    replace_text(run / SAMPLES_NAME, json.dumps(found, indent=1, ensure_ascii=False))
    return found


def _beginnings(directory: Path, split: str, count: int, length: int) -> list[list[int]]:
    """`count` times `length` ids, evenly spread over a split, each from the start of a document if one is near."""
    reader = ShardReader(directory, split, manifest=read_manifest(directory))
    length = min(length, len(reader))
    found = []
    for number in range(count):
        start = int((number + 0.5) * (len(reader) - length) / count)
        near = min(_FAR, len(reader) - length - start)
        if near > 0:
            [ids] = reader.gather(np.array([start]), near)
            ends = np.flatnonzero(ids == reader.eos_token_id)
            start += int(ends[0]) + 1 if len(ends) else 0
        [ids] = reader.gather(np.array([start]), length)
        found.append([int(id) for id in ids])
    return found
