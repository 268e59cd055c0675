"""Read how a model was trained from the files of its folder, at the step of its weights."""

import re
from pathlib import Path

from mypt.checkpoints.adapter import is_adapter, read_adapter_config
from mypt.checkpoints.complete import last_complete_checkpoint
from mypt.checkpoints.environment import read_environment
from mypt.checkpoints.evaluations import evaluations_of
from mypt.checkpoints.interpolated import chosen_point, read_interpolation
from mypt.checkpoints.lineage import find_lineage
from mypt.checkpoints.model_config import CONFIG_NAME, cached_file, read_config_file
from mypt.checkpoints.state import read_forgetting, read_ledger, read_state
from mypt.errors import CheckpointError
from mypt.recipe import RESOLVED_NAME
from mypt.storage.upload_files import content_to_send, without_places
from mypt.yaml12 import load_yaml


class RunInfo:
    """The content of the folder's files; a part that is not there is None or empty.

    A checkpoint and OUT/best lie in their run's folder, whose files count as far as they are of their step. `first` and
    `last` are measurements at step 0 and of the weights here, or at alpha 0 and at the alpha of interpolated weights.
    newest: `last` is the newest measurement of the run, maybe of a later step than the weights.
    """

    def __init__(self, folder: Path, newest: bool = False):
        run = folder if (folder / RESOLVED_NAME).is_file() else folder.parent
        if not (run / RESOLVED_NAME).is_file():
            run = folder
        self.folder = folder
        self.config = read_config_file(folder) if (folder / CONFIG_NAME).is_file() else None
        self.adapter = read_adapter_config(folder) if is_adapter(folder) else None
        self.recipe_text = _sent_recipe(run / RESOLVED_NAME)
        self.recipe = load_yaml(self.recipe_text) or {}
        if not isinstance(self.recipe, dict):
            kind = type(self.recipe).__name__
            raise CheckpointError(f"{run / RESOLVED_NAME} is damaged ({kind} in place of names and values); restore it")
        self.coverage = without_places(read_ledger(run) or {})
        self.lineage = without_places(find_lineage(folder))
        self.forgetting = read_forgetting(run) or {}
        self.evaluations = without_places(evaluations_of(folder))
        self.environment = without_places(read_environment(run) or {})
        self.interpolation = without_places(read_interpolation(folder))
        self.step = self._step(run)
        if self.coverage.get("step") != self.step:
            self.coverage = {key: self.coverage[key] for key in ("sources", "data") if key in self.coverage}
        measured = self.forgetting.get("history", [])
        history = [entry for entry in measured if newest or entry["step"] <= (self.step or 0)]
        self.first, self.last = (history[0], history[-1]) if len(history) > 1 else (None, None)
        if self.interpolation:  # the measurements of these weights, if any
            point = chosen_point(self.interpolation)
            self.first, self.last = (self.interpolation["curve"][0], point) if point else (None, None)
        base = (self.adapter or {}).get("base_model_name_or_path") or self.recipe.get("model", {}).get("init_from")
        self.base = without_places(base) if base else None
        # runs/base may as well be a folder that was moved: the cache shows what came from the hub.
        self.hub_base = base if base and not Path(base).exists() and cached_file(base, CONFIG_NAME) else None

    def _step(self, run: Path) -> int | None:
        """Return the optimizer step of these weights."""
        if self.interpolation and "step" in self.interpolation:
            return self.interpolation["step"]
        if match := re.fullmatch(r"checkpoint-(\d+)", self.folder.name):
            return int(match[1])
        if self.folder == run:
            return self.coverage.get("step")
        last, _ = last_complete_checkpoint(run)
        return read_state(last).trainer.get("best_global_step") if last else None


def _sent_recipe(path: Path) -> str:
    """The run's recipe in the form in which it is sent; empty if there is none."""
    if not path.is_file():
        return ""
    changed = content_to_send(path)
    return changed.decode() if changed is not None else path.read_text(encoding="utf-8")
