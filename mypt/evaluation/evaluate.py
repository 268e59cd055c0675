"""All that `mypt evaluate` measures of some models: losses on data, BLEU and chrF on references, tasks."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mypt.checkpoints.adapter import weights_fingerprint
from mypt.checkpoints.evaluations import EVALUATION_NAME, Entry, add_evaluations, read_evaluations
from mypt.checkpoints.load import load_model
from mypt.errors import MyPTError, TokenizerError
from mypt.evaluation.compare import Score, Settings, compare
from mypt.evaluation.metrics import MAX_NEW_TOKENS, Metric, read_references, score_references, with_changes
from mypt.evaluation.sets import Source
from mypt.evaluation.tasks import require_tasks, run_tasks
from mypt.files import replace_text
from mypt.terminal import progress_bar
from mypt.versions import version_of


@dataclass(frozen=True)
class Request:
    """Models, and the figures to measure of them.

    Attributes:
        models: Folders or hub ids; changes are relative to the first.
        data: Evaluation sets, as of `compare`; settings: how they are measured.
        references: {name: .jsonl file with prompts and references}.
        tasks: Names of lm-eval's tasks, or YAML files.
        max_new_tokens: Of a text that is compared with references.
        texts: File for these texts, a JSON line each.
        out: File for the figures of all models; without it those of each model go to its own folder.
    """

    models: list[str]
    data: dict[str, Source] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    references: dict[str, str] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    max_new_tokens: int = MAX_NEW_TOKENS
    texts: str | None = None
    out: str | None = None

    def check(self) -> None:
        """Raise MyPTError for what can be refused before torch is imported."""
        if not (self.data or self.references or self.tasks):
            raise MyPTError("nothing to measure; give --data NAME=DIR, --references NAME=FILE or --tasks NAME")
        if self.max_new_tokens < 1:
            raise MyPTError(f"--max-new-tokens is {self.max_new_tokens}, expected 1 token or more")
        if self.texts and not self.references:
            raise MyPTError("--texts is for the texts that --references compares; add that, or leave out --texts")
        if self.tasks:
            require_tasks(self.tasks)
        for file in self.references.values():
            read_references(file)
        self.settings.check(self.models, self.data)
        for file in filter(None, (self.texts, self.out)):
            folder = Path(file).parent
            if Path(file).is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
                raise MyPTError(f"{file} cannot be written; name a file in a folder that exists")
        for path in self.files.values():
            read_evaluations(path)  # raises for one that is damaged, to which nothing could be added

    @property
    def files(self) -> dict[str, Path]:
        """Where the figures of each model go: --out, or the model's folder; none for a hub id."""
        if self.out:
            return dict.fromkeys(self.models, Path(self.out))
        return {model: Path(model, EVALUATION_NAME) for model in self.models if Path(model).is_dir()}


def evaluate(request: Request) -> list[Score | Metric]:
    """Measure everything: the losses of all models, then their other figures.

    Raises MyPTError as `Request.check`, `compare`, `score_references` and `run_tasks` do.
    """
    request.check()
    metrics: list[Metric] = []
    if request.references or request.tasks:  # first, since tasks that cannot get their data end here
        metrics, texts = _metrics(request)
        if request.texts:
            replace_text(request.texts, "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts))
    scores = compare(request.models, request.data, **vars(request.settings)) if request.data else []
    return [*scores, *with_changes(metrics, request.models[0])]


def _metrics(request: Request) -> tuple[list[Metric], list[dict]]:
    from mypt.checkpoints.probes import require_causal
    from mypt.tokenization.load import model_tokenizer

    metrics, texts = [], []
    references = {name: read_references(file) for name, file in request.references.items()}
    models = list(dict.fromkeys(request.models))
    batch_size = request.settings.batch_size
    total = len(models) * sum(len(pairs.prompts) for pairs in references.values())
    with progress_bar(total=total, unit="text", shown=total > 0) as bar:
        for path in models:
            model = load_model(path).float()
            require_causal(model, path)
            tokenizer = model_tokenizer(path)
            if tokenizer is None:
                raise TokenizerError(f"model {path} holds no tokenizer, which texts and tasks need; save one with it")
            for name, pairs in references.items():
                options = {"max_new_tokens": request.max_new_tokens, "batch_size": batch_size}
                scores, new = score_references(
                    model, tokenizer, pairs, path=path, name=name, progress=bar.update, **options
                )
                metrics += scores
                texts += [
                    {"model": path, "data": name, "prompt": prompt, "reference": right, "text": text}
                    for prompt, right, text in zip(pairs.prompts, pairs.references, new, strict=True)
                ]
            if request.tasks:
                block_size = request.settings.block_size
                metrics += run_tasks(
                    model, tokenizer, request.tasks, path=path, batch_size=batch_size, block_size=block_size
                )
    return metrics, texts


def save(request: Request, found: list[Score | Metric]) -> list[Path]:
    """Add the figures to `evaluation.json` of each model's folder, or to the file of --out, and draw them beside it.

    Returns the files that were written; a folder that cannot be written is left out.
    """
    from mypt.evaluation.pictures import draw

    written, versions = [], {name: version_of(name) for name in ("mypt", "torch", "transformers")}
    for path in dict.fromkeys(request.files.values()):
        weights = {model: weights_fingerprint(model) for model, file in request.files.items() if file == path}
        entries: list[Entry] = [
            {**asdict(figure), "weights": weights[figure.model], "versions": versions}
            for figure in found
            if figure.model in weights
        ]
        try:
            held = add_evaluations(path, entries)
            shown = [entry for entry in held if entry.get("weights") in weights.values()]
            written += [path, *draw(shown, path)]
        except OSError as error:  # a folder that only others may write in: the figures are printed all the same
            if request.out or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    return written
