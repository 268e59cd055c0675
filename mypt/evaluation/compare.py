"""Compare several models on the same evaluation sets: exact losses, and changes from the first model to the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.checkpoints.interpolated import read_interpolation
from mypt.checkpoints.load import load_model, require_model
from mypt.checkpoints.meta import read_config
from mypt.checkpoints.state import run_tolerance
from mypt.errors import MyPTError
from mypt.evaluation.forgetting import TOLERANCE, judge, require_tolerance
from mypt.shards.opening import open_dataset
from mypt.shards.reader import check_files
from mypt.terminal import progress_bar
from mypt.tokenization.load import require_model_tokenizer

if TYPE_CHECKING:
    from mypt.streams.eval_windows import EvalWindows


@dataclass(frozen=True)
class Score:
    """One model on one evaluation set; losses in nats per token, `delta` against the first model (None for itself)."""

    model: str
    data: str
    loss: float
    standard_error: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    delta: float | None
    delta_error: float | None
    state: str | None  # of a guarded set: healthy, watch, warning or critical
    tolerance: float | None  # nats per token, by which the state was judged
    alpha: float | None  # of a model that was interpolated between two others


def compare(
    models: list[str],
    data: dict[str, str],
    *,
    split: str = "val",
    block_size: int | None = None,
    batch_size: int = 8,
    guard: list[str] | None = None,
    tolerance: float | None = None,
    document_mask: bool = False,
) -> list[Score]:
    """Exact loss of every model on every `{name: dataset directory}`, over the whole split.

    The models compute in float32.

    Args:
        block_size: Context in tokens; default the shortest among the models' contexts, so that all see the same
            windows.
        guard: Sets whose change is judged as forgetting.
        tolerance: Nats per token that they may lose; default that of the run which trained the model, else 0.05.
        document_mask: Tokens see their own document only.

    Raises:
        CheckpointError: A model cannot be loaded or is not causal.
        TokenizerError: A model's tokenizer is not the data's.
        DataError: A dataset directory is damaged.
        MyPTError: The context is too long, a model cannot keep documents apart, or a loss is NaN or infinite.
    """
    checked = {"split": split, "block_size": block_size, "batch_size": batch_size, "guard": guard}
    require_comparable(models, data, **checked, tolerance=tolerance)
    from mypt.checkpoints.probes import require_causal, require_document_mask
    from mypt.evaluation.evaluator import Evaluator

    loaded = {path: load_model(path).float() for path in dict.fromkeys(models)}
    for path, model in loaded.items():
        require_causal(model, path)
        if document_mask:
            require_document_mask(model, path)
    contexts = {path: getattr(model.config, "max_position_embeddings", None) for path, model in loaded.items()}
    block_size = common_block_size(contexts, block_size)
    vocabularies = {path: model.config.vocab_size for path, model in loaded.items()}
    sets = open_sets(data, vocabularies, split=split, block_size=block_size, document_mask=document_mask)
    reports = {path: read_interpolation(Path(path)) for path in loaded}
    scores, first = [], None
    evaluator = Evaluator(sets, batch_size)
    total = len(loaded) * sum(len(windows) for windows in sets.values())
    with progress_bar(total=total, unit="window") as bar:
        for path, model in loaded.items():
            readings = evaluator.measure(model, bar.update)
            limit = tolerance or run_tolerance(Path(path)) or TOLERANCE
            for name, reading in readings.items():
                losses = reading.losses
                if not math.isfinite(losses.loss):
                    raise MyPTError(f"the loss of {path} on {name} is {losses.loss}: its weights are broken")
                delta, error = losses.delta(first[name].losses) if first else (None, None)
                judged = first is not None and name in (guard or [])
                scores.append(
                    Score(
                        model=path,
                        data=name,
                        loss=losses.loss,
                        standard_error=losses.standard_error,
                        perplexity=losses.perplexity,
                        bits_per_byte=reading.bits_per_byte,
                        tokens=int(losses.tokens.sum()),
                        delta=delta,
                        delta_error=error,
                        state=judge(delta, error, limit) if judged else None,
                        tolerance=limit if judged else None,
                        alpha=reports[path]["alpha"] if reports[path] else None,
                    )
                )
            first = first or readings
    return scores


def require_comparable(
    models: list[str],
    data: dict[str, str],
    *,
    split: str = "val",
    block_size: int | None = None,
    batch_size: int = 8,
    guard: list[str] | None = None,
    tolerance: float | None = None,
) -> None:
    """Check what can be checked before torch is imported. Arguments and errors as of `compare`."""
    for name in guard or []:
        if name not in data:
            raise MyPTError(f"--guard names {name!r}, --data has: {', '.join(data)}")
    if batch_size < 1:
        raise MyPTError(f"--batch-size is {batch_size}, expected 1 window or more")
    if tolerance is not None:
        require_tolerance(tolerance)
    adapters = {model: require_model(model) for model in models}
    for directory in data.values():
        check_files(Path(directory), open_dataset(directory), split)
    if block_size is not None and not any(adapters.values()) and all(Path(model).is_dir() for model in models):
        contexts = {model: read_config(model)[1].get("max_position_embeddings") for model in models}
        if all(contexts.values()):  # else only their classes know its name
            common_block_size(contexts, block_size)


def open_sets(
    data: dict[str, str], vocabularies: dict[str, int], split: str = "val", **options
) -> dict[str, EvalWindows]:
    """The windows of each set in `data`; options: as of `EvalWindows`.

    Raises TokenizerError if the tokenizer of a model, of {model: ids that it knows}, is not the data's.
    """
    from mypt.streams.eval_windows import EvalWindows

    sets = {name: EvalWindows(directory, split, **options) for name, directory in data.items()}
    for model, vocabulary in vocabularies.items():
        for name, windows in sets.items():
            manifest = windows.reader.manifest
            data_is = (f"the data of {name}", manifest.tokenizer_hash, manifest.vocab_size)
            require_model_tokenizer(model, vocabulary, *data_is)
    return sets


def common_block_size(contexts: dict[str, int | None], asked: int | None) -> int:
    """contexts: {model: its longest context in tokens, None if unknown}."""
    shortest = min((path for path in contexts if contexts[path]), key=contexts.get, default=None)
    block_size = asked if asked is not None else contexts.get(shortest)
    if block_size is None:
        raise MyPTError(f"model {next(iter(contexts))} names no longest context; give --block-size in tokens")
    if block_size < 1 or (shortest and block_size > contexts[shortest]):
        limit = f"1 to {contexts[shortest]} tokens, the context of {shortest}" if shortest else "1 token or more"
        raise MyPTError(f"--block-size is {block_size}, expected {limit}")
    return block_size


def parse_data(arguments: list[str], option: str = "--data") -> dict[str, str]:
    """`NAME=DIR` arguments of an option -> {name: directory}. Raises MyPTError for anything else."""
    pairs = [argument.partition("=") for argument in arguments]
    for argument, (name, equals, directory) in zip(arguments, pairs, strict=True):
        if not (name and equals and directory):
            raise MyPTError(f"{option} {argument} is not understood, expected NAME=DIR such as general=data/general")
    data = {name: directory for name, _, directory in pairs}
    if len(data) < len(pairs):
        raise MyPTError(f"{option} gives a name twice: {', '.join(arguments)}; each set needs a name of its own")
    return data
