"""Compare several models on the same evaluation sets: exact losses, and changes from the first model to the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.checkpoints.evaluations import DEFINITIONS
from mypt.checkpoints.interpolated import read_interpolation
from mypt.checkpoints.load import load_model, require_model
from mypt.checkpoints.meta import read_config
from mypt.checkpoints.state import run_tolerance
from mypt.errors import MyPTError
from mypt.evaluation.forgetting import TOLERANCE, judge, require_tolerance
from mypt.evaluation.sets import EvaluationSet, Source, open_set, require_parts, require_same_text, require_source
from mypt.terminal import progress_bar
from mypt.tokenization.load import require_model_tokenizer

if TYPE_CHECKING:
    import numpy as np

    from mypt.streams.eval_windows import EvalWindows

    Measured = tuple[np.ndarray, EvaluationSet]  # the losses of all targets, float32 (targets,), and their set


@dataclass(frozen=True)
class Score:
    """One model on one evaluation set; losses in nats per token, changes against the first model (None for itself)."""

    model: str
    data: str
    definition: str  # one of DEFINITIONS
    loss: float
    standard_error: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int  # UTF-8, of the text
    delta: float | None  # None, too, for a model of another tokenizer than the first
    delta_error: float | None
    interval: list[float] | None  # 95% interval of delta; None with fewer than 10 pieces
    bits_delta: float | None  # the change in bits per byte
    bits_interval: list[float] | None
    unit: str | None  # of the intervals: document, window or stretch
    units: int | None
    state: str | None  # of a guarded set: healthy, watch, warning or critical
    tolerance: float | None  # nats per token, by which the state was judged
    alpha: float | None  # of a model that was interpolated between two others
    block_size: int
    split: str
    document_mask: bool
    data_hash: str  # of the tokens
    parts: dict[str, list[dict]] = field(default_factory=dict)  # {position or source: fields of `breakdown.Part`}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How losses are measured and compared.

    Attributes:
        split: Of each dataset directory.
        block_size: Context in tokens; default the shortest among the models' contexts, so that all see the same
            windows.
        batch_size: Windows computed at once.
        guard: Sets whose change is judged as forgetting.
        tolerance: Nats per token that they may lose; default that of the run which trained the model, else 0.05.
        document_mask: Tokens see their own document only.
        definition: `windows`: every token but the first of the text is a target, EOS included. `rolling`: lm-eval's
            rolling log-likelihood of each document.
        by: `position`, `source` or both: divide each loss.
    """

    split: str = "val"
    block_size: int | None = None
    batch_size: int = 8
    guard: Sequence[str] = ()
    tolerance: float | None = None
    document_mask: bool = False
    definition: str = "windows"
    by: Sequence[str] = ()

    def check(self, models: list[str], data: dict[str, Source]) -> None:
        """Raise as `compare` for what can be checked before torch is imported."""
        for name in self.guard:
            if name not in data:
                raise MyPTError(f"--guard names {name!r}, --data has: {', '.join(data)}")
        if self.batch_size < 1:
            raise MyPTError(f"--batch-size is {self.batch_size}, expected 1 window or more")
        if self.tolerance is not None:
            require_tolerance(self.tolerance)
        if self.definition not in DEFINITIONS:
            raise MyPTError(f"the definition is {self.definition!r}, expected one of: {', '.join(DEFINITIONS)}")
        if self.definition == "rolling" and self.document_mask:
            raise MyPTError("--rolling evaluates each document alone already; leave out --document-mask")
        adapters = {model: require_model(model) for model in models}
        for name, source in data.items():
            require_source(name, source, self.split, models)
        require_parts(self.by, data, self.split)
        if self.block_size is not None and not any(adapters.values()) and all(Path(model).is_dir() for model in models):
            contexts = {model: read_config(model)[1].get("max_position_embeddings") for model in models}
            if all(contexts.values()):  # else only their classes know its name
                common_block_size(contexts, self.block_size)


def compare(models: list[str], data: dict[str, Source], **options) -> list[Score]:
    """Exact loss of every model on every set of `data`, over the whole split.

    The models compute in float32.

    Args:
        data: {name: source}: a dataset directory; several, joined by commas, of one text prepared with different
            tokenizers, of which each model takes its own; a text file, or a list of texts, which each model's
            tokenizer encodes.
        options: Fields of `Settings`: split, block_size, batch_size, guard, tolerance, document_mask, definition, by;
            None: the default.

    Raises:
        CheckpointError: A model cannot be loaded or is not causal.
        TokenizerError: A model's tokenizer is not the data's.
        DataError: A dataset directory is damaged, or directories of one name are not of the same text.
        MyPTError: The context is too long, a model cannot keep documents apart, or a loss is NaN or infinite.
    """
    settings = Settings(**{name: value for name, value in options.items() if value is not None})
    settings.check(models, data)
    from mypt.checkpoints.probes import require_causal, require_document_mask
    from mypt.evaluation.loss import token_losses

    loaded = {path: load_model(path).float() for path in dict.fromkeys(models)}
    for path, model in loaded.items():
        require_causal(model, path)
        if settings.document_mask:
            require_document_mask(model, path)
    contexts = {path: getattr(model.config, "max_position_embeddings", None) for path, model in loaded.items()}
    shared = {"split": settings.split, "block_size": common_block_size(contexts, settings.block_size)}
    shared |= {"document_mask": settings.document_mask, "definition": settings.definition}
    sets = {
        path: {name: open_set(name, source, path, model.config.vocab_size, **shared) for name, source in data.items()}
        for path, model in loaded.items()
    }
    for path, own in sets.items():
        _require_same_sets(models[0], sets[models[0]], path, own, settings.guard)
    scores, first = [], {}
    total = sum(len(its.windows) for own in sets.values() for its in own.values())
    with progress_bar(total=total, unit="window") as bar:
        for path, model in loaded.items():
            report = read_interpolation(Path(path))
            about = {"model": path, "alpha": report["alpha"] if report else None, **shared}
            limit = settings.tolerance or run_tolerance(Path(path)) or TOLERANCE
            for name, its in sets[path].items():
                measured = token_losses(model, its.windows, settings.batch_size, bar.update), its
                judged_by = limit if name in settings.guard else None
                scores.append(_score(name, measured, first.get(name), judged_by, settings.by, about))
                first.setdefault(name, measured)
    return scores


def _require_same_sets(
    first: str, first_sets: dict[str, EvaluationSet], path: str, sets: dict[str, EvaluationSet], guard: list[str]
) -> None:
    """Raise MyPTError unless two models have the same text in each set, in a guarded one the same tokens."""
    from mypt.evaluation.difference import is_same_windows

    for name, its in sets.items():
        if is_same_windows(first_sets[name], its):
            continue
        require_same_text(name, first_sets[name], its)
        if name in guard:
            raise MyPTError(
                f"--guard {name}: {path} has another tokenizer than {first}, and a tolerance is in nats per token; "
                "leave out --guard and compare the bits/byte"
            )


def _score(
    name: str, measured: Measured, first: Measured | None, tolerance: float | None, by: list[str], about: dict
) -> Score:
    """The figures of a model on the set `name`.

    Args:
        measured: The losses of its targets. first: Those of the model that it is compared with; None for that one.
        tolerance: Of a guarded set.
        by: How to divide the loss.
        about: The fields of `Score` that are of the model and the request.
    """
    from mypt.evaluation.breakdown import break_down
    from mypt.evaluation.difference import paired_difference, window_sums
    from mypt.evaluation.loss import WindowLosses

    its = measured[1]
    losses = WindowLosses(window_sums(*measured), its.windows.lengths)
    if not math.isfinite(losses.loss):
        raise MyPTError(f"the loss of {about['model']} on {name} is {losses.loss}: its weights are broken")
    change = paired_difference(first, measured) if first else None
    delta = error = None
    if change and change.nats is not None:
        delta, error = losses.delta(WindowLosses(window_sums(*first), losses.tokens))
    is_judged = tolerance is not None and delta is not None
    return Score(
        data=name,
        loss=losses.loss,
        standard_error=losses.standard_error,
        perplexity=losses.perplexity,
        bits_per_byte=losses.bits_per_byte(its.windows.bytes_per_token),
        tokens=int(losses.tokens.sum()),
        bytes=its.windows.reader.text_bytes,
        delta=delta,
        delta_error=error,
        interval=change.interval_in_nats if change else None,
        bits_delta=change.bits if change else None,
        bits_interval=change.interval if change else None,
        unit=change.unit if change else None,
        units=change.units if change else None,
        state=judge(delta, error, tolerance) if is_judged else None,
        tolerance=tolerance if is_judged else None,
        data_hash=its.fingerprint,
        parts={kind: [asdict(part) for part in break_down(kind, *measured, first)] for kind in by},
        **about,
    )


def open_sets(data: dict[str, str], vocabularies: dict[str, int], **options) -> dict[str, EvalWindows]:
    """The windows of the val split of each set in `data`; options: as of `EvalWindows`.

    Raises TokenizerError if the tokenizer of a model, of {model: ids that it knows}, is not the data's.
    """
    from mypt.streams.eval_windows import EvalWindows

    sets = {name: EvalWindows(directory, **options) for name, directory in data.items()}
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
