"""Report at the end of a run what its curves show, and write it to diagnosis.json."""

import json
from pathlib import Path

from transformers import TrainerCallback

from mypt.evaluation.diagnosis import diagnose
from mypt.files import replace_text
from mypt.planning.verdict import advised_passes
from mypt.terminal import say
from mypt.training.callbacks.coverage import CoverageCallback

DIAGNOSIS_NAME = "diagnosis.json"


class DiagnosisCallback(TrainerCallback):
    """Print two lines when training ends, for any HF Trainer: what the loss does, by which rule, and what to try next.

    Args:
        coverage: How often the data was seen, for the advice; without it the advice ignores passes.
        target: The evaluation set that shows overfitting; None: what a stock Trainer logs as `eval_loss`.
    """

    def __init__(self, coverage: CoverageCallback | None = None, target: str | None = None):
        self.coverage = coverage
        self.target = target

    def on_train_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        found = diagnose(state.log_history, f"eval_{self.target}_loss" if self.target else "eval_loss", self._data())
        for line in found["lines"]:
            say(line)
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        replace_text(Path(args.output_dir) / DIAGNOSIS_NAME, json.dumps(found, indent=1))

    def _data(self) -> dict | None:
        """Passes over the main source so far, passes that are advised, and tokens seen for each parameter."""
        if self.coverage is None or self.coverage.parameters is None:
            return None
        stream, seen = self.coverage.stream, self.coverage.ledger()
        main, total = stream.sources[stream.main], self.coverage.parameters["total"]
        if not main.tokens:  # streamed, and of unknown size
            return None
        low, high, _ = advised_passes(main.tokens, total)
        per_parameter = sum(source["tokens"] for source in seen) / total
        return {"passes": seen[stream.main]["coverage"], "advised": [low, high], "tokens_per_parameter": per_parameter}
