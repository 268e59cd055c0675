"""Several models on the same evaluation sets: exact losses, and what changed from the first model to the others."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from mypt.errors import CheckpointError, MyPTError, TokenizerError
from mypt.evaluation.loss import WindowLosses, window_losses
from mypt.evaluation.verdict import judge
from mypt.streams.eval_windows import EvalWindows
from mypt.tokenization.load import load_tokenizer, tokenizer_hash


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


def compare(
    models: list[str],
    data: dict[str, str],
    *,
    split: str = "val",
    block_size: int | None = None,
    batch_size: int = 8,
    guard: list[str] | None = None,
) -> list[Score]:
    """Exact loss of every model on every `{name: dataset directory}`, over the whole split.

    block_size: context in tokens; default the shortest among the models' contexts, so that all see the same windows.
    guard: sets whose change is judged as forgetting.
    Raises CheckpointError for a model that cannot be loaded, TokenizerError if its tokenizer is not the data's.
    """
    for name in guard or []:
        if name not in data:
            raise MyPTError(f"--guard names {name!r}, --data has: {', '.join(data)}")
    loaded = {path: load_for_evaluation(path) for path in dict.fromkeys(models)}
    if block_size is None:
        block_size = min(model.config.max_position_embeddings for model in loaded.values())
    sets = {name: EvalWindows(directory, split, block_size=block_size) for name, directory in data.items()}
    scores, baselines = [], {}
    total = len(loaded) * sum(len(windows) for windows in sets.values())
    with tqdm(total=total, unit="window", disable=None, leave=False) as bar:
        for path, model in loaded.items():
            for name, windows in sets.items():
                _require_tokenizer(path, model, name, windows)
                losses = window_losses(model, windows, batch_size, progress=bar.update)
                scores.append(_score(path, name, losses, windows, baselines.get(name), name in (guard or [])))
                baselines.setdefault(name, losses)
    return scores


def load_for_evaluation(path: str) -> torch.nn.Module:
    """A causal LM in float32 on the best device at hand, in eval mode. Raises CheckpointError."""
    if Path(path).is_dir() and not Path(path, "config.json").is_file():
        raise CheckpointError(f"{path} holds no config.json: name a run folder or a checkpoint folder")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {path} cannot be loaded: {str(error).splitlines()[0]}") from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _require_tokenizer(path: str, model: torch.nn.Module, name: str, windows: EvalWindows) -> None:
    manifest = windows.reader.manifest
    own = Path(path, "tokenizer.json")
    if own.is_file() and tokenizer_hash(load_tokenizer(path)) != manifest.tokenizer_hash:
        raise TokenizerError(
            f"model {path} has another tokenizer than the data of {name}; prepare the text with --tokenizer {path}"
        )
    if manifest.vocab_size > model.config.vocab_size:
        raise TokenizerError(
            f"the data of {name} uses {manifest.vocab_size} tokens, model {path} knows {model.config.vocab_size}; "
            f"prepare the text with --tokenizer {path}"
        )


def _score(
    path: str, name: str, losses: WindowLosses, windows: EvalWindows, baseline: WindowLosses | None, guarded: bool
) -> Score:
    delta, error = losses.delta(baseline) if baseline else (None, None)
    return Score(
        model=path,
        data=name,
        loss=losses.loss,
        standard_error=losses.standard_error,
        perplexity=losses.perplexity,
        bits_per_byte=losses.bits_per_byte(windows.bytes_per_token),
        tokens=int(losses.tokens.sum()),
        delta=delta,
        delta_error=error,
        state=judge(delta, error) if guarded and baseline else None,
    )


def parse_data(arguments: list[str]) -> dict[str, str]:
    """`NAME=DIR` arguments -> {name: directory}. Raises MyPTError for anything else."""
    pairs = [argument.partition("=") for argument in arguments]
    for argument, (name, equals, directory) in zip(arguments, pairs, strict=True):
        if not (name and equals and directory):
            raise MyPTError(f"--data {argument} is not understood, expected NAME=DIR such as general=data/general")
    return {name: directory for name, _, directory in pairs}
