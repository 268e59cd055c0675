"""Stop when the target has not improved for so many evaluations."""

from transformers import TrainerCallback

from mypt.checkpoints.state import RunState
from mypt.errors import RecipeError
from mypt.terminal import say
from mypt.training.callbacks.forgetting import ForgettingCallback


class EarlyStoppingCallback(TrainerCallback):
    """Save and stop after `patience` evaluations in a row without a new lowest loss of the target.

    HF's callback of this name looks at `metric_for_best_model` at saved steps only, and a resume resets its count. This
    one counts in the history of `forgetting`, which every checkpoint holds. Raises RecipeError without one.
    """

    def __init__(self, forgetting: ForgettingCallback | None, patience: int):
        if forgetting is None:
            raise RecipeError("safety.early_stopping_patience needs an evaluation set: name one in data.eval")
        self.forgetting = forgetting
        self.patience = patience

    def on_evaluate(self, args, state, control, **kwargs):
        waited = without_improvement(self.forgetting.history, self.forgetting.policy.target)
        if waited < self.patience or control.should_training_stop:
            return
        control.should_training_stop = control.should_save = True
        if state.is_world_process_zero:
            target = self.forgetting.policy.target
            best = self.forgetting.history[-1 - waited]["sets"][target]["loss"]
            say(f"stopping: {target} has not been below {best:.4f} for {waited} evaluations (early_stopping_patience)")

    def stopped_before(self, state: RunState) -> bool:
        """Whether a saved state ends in a stop that this patience would repeat."""
        history = state.forgetting["history"] if state.forgetting else []
        return (
            bool(history)
            and history[-1]["step"] == state.step
            and without_improvement(history, self.forgetting.policy.target) >= self.patience
        )


def without_improvement(history: list[dict], target: str) -> int:
    """Evaluations since the target's lowest loss (the first of equals); NaN is not an improvement."""
    losses = [entry["sets"][target]["loss"] for entry in history]
    lowest = 0
    for index, loss in enumerate(losses):
        if loss < losses[lowest]:
            lowest = index
    return len(losses) - 1 - lowest
