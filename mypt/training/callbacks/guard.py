"""Carry out what the guard decides: stop, lower the learning rate, replay more of a forgotten source, roll back."""

import math
from pathlib import Path

from torch.optim.lr_scheduler import LambdaLR

from mypt.checkpoints.state import RunState
from mypt.checkpoints.verify import fault_of
from mypt.errors import RecipeError
from mypt.evaluation.forgetting import Decision, Policy, raised_shares
from mypt.hardware.processes import agreed
from mypt.streams.mixture import Mixture
from mypt.terminal import say
from mypt.training.callbacks.coverage import CoverageCallback
from mypt.training.optim.schedules import scale_rates
from mypt.training.stability.safety import CUT, restore_weights

LOWERS_THE_RATE = ("reduce_lr", "rollback")


class Guard:
    """The guard's actions in a run; all processes act alike, since they measure alike.

    No action moves the number of the next sample: what was trained on is never given again.

    Args:
        policy: With the action.
        coverage: The callback that owns the stream and its ledger, where every change is recorded; None: no record.
        replay: {guarded set: index of its training source in the stream}, for `raise_replay`.
    """

    def __init__(self, policy: Policy, coverage: CoverageCallback | None, replay: dict[str, int]):
        self.policy, self.coverage, self.replay = policy, coverage, replay
        self.actions: list[dict] = []  # {"step", "action", "sets", and what was changed}
        self.rate_factor = 1.0  # of all cuts on the recipe's learning rate

    @property
    def acted(self) -> list[int]:
        """Steps at which the policy's action was carried out."""
        return [entry["step"] for entry in self.actions if entry["action"] == self.policy.action]

    def restore(self, saved: RunState, learning_rate: float) -> None:
        """Take the actions of a checkpoint; a learning rate that the recipe changes is used without their cuts."""
        state = saved.forgetting or {}
        self.actions, self.rate_factor = state.get("actions", []), state.get("rate_factor", 1.0)
        if saved.learning_rate not in (None, learning_rate):
            self.rate_factor = 1.0

    def act(self, decision: Decision, args, state, control, scheduler, trainer) -> None:
        """Carry out a decision after the measurement of this step, record it and report it.

        Args:
            args, state, control: As HF's events get them.
            scheduler: The run's LambdaLR.
            trainer: The MyPTTrainer; None in another one, where no weights can be restored.
        """
        action = decision.action
        sets = {name: {"delta": delta, "delta_error": error} for name, (delta, error) in decision.sets.items()}
        entry = {"step": state.global_step, "action": action, "sets": sets}
        done = ""
        if action == "stop":
            control.should_training_stop = control.should_save = True
            done = "stopping"
        elif action == "raise_replay":
            done = self._raise_replay(entry, args, state)
        elif action == "reduce_lr":
            done = self._reduce_rate(entry, scheduler)
        elif action == "rollback":
            done = self._roll_back(entry, state, trainer)
        self.actions.append(entry)
        if state.is_world_process_zero:
            lost = (f"{name} lost {delta:.3f} +/- {error:.3f}" for name, (delta, error) in decision.sets.items())
            say(f"guard: {', '.join(lost)} nats, more than {self.policy.limit:g}{f': {done}' if done else ''}")
        rate = entry.get("learning_rate")
        if self.coverage and (rate or "shares" in entry):
            event = {"sample": self.coverage.next_sample, "step": state.global_step}
            event |= {"changes": {"learning_rate": rate} if rate else {}, "guard": {"action": action, "sets": sets}}
            self.coverage.changes.append(event)

    def _reduce_rate(self, entry: dict, scheduler) -> str:
        scale_rates(scheduler, CUT)
        return self._note_cut(entry, scheduler)

    def _note_cut(self, entry: dict, scheduler) -> str:
        self.rate_factor *= CUT
        after = scheduler.base_lrs[0]
        entry["learning_rate"] = [after / CUT, after]
        return f"learning rate {after / CUT:g} -> {after:g}"

    def _raise_replay(self, entry: dict, args, state) -> str:
        sources, lost = self.coverage.stream.sources, {}
        for name, reading in entry["sets"].items():
            index = self.replay[name]
            lost[index] = max(lost.get(index, -math.inf), reading["delta"] / self.policy.tolerance)
        before = Mixture([source.weight for source in sources]).shares
        after = raised_shares(before, lost)
        if after is None:
            return f"replay has {sum(before[index] for index in lost):.1%} of the samples already, which is the most"
        self.coverage.change_weights(args, state, after)
        entry["shares"] = {source.name: [old, new] for source, old, new in zip(sources, before, after, strict=True)}
        raised = (f"{sources[index].name} {before[index]:.1%} -> {after[index]:.1%}" for index in lost)
        return f"{', '.join(raised)} of the samples"

    def _roll_back(self, entry: dict, state, trainer) -> str:
        """To the best saved step, if it is better than now; with a lower rate, since else the same would follow."""
        now, best, found = trainer.forgetting.history[-1]["constrained_loss"], state.best_metric, None
        if state.best_model_checkpoint and best is not None and best < now and state.is_world_process_zero:
            checkpoint = Path(state.best_model_checkpoint)
            found = checkpoint if checkpoint.is_dir() and not fault_of(checkpoint) else None
        checkpoint = agreed(found)
        entry["to"] = checkpoint.name if checkpoint else None
        if checkpoint is None:
            return f"no better step is saved; {self._reduce_rate(entry, trainer.lr_scheduler)}"
        restore_weights(trainer, checkpoint)
        trainer.model.zero_grad()
        trainer.monitor.forget()
        return f"back to the weights of {checkpoint}; {self._note_cut(entry, trainer.lr_scheduler)}"


def require_lambda_schedule(scheduler, action: str) -> None:
    """Raise RecipeError for an action that lowers the learning rate under a schedule that sets it by metrics."""
    if action in LOWERS_THE_RATE and not isinstance(scheduler, LambdaLR):
        raise RecipeError(
            f"forgetting.action {action} lowers the learning rate, which {type(scheduler).__name__} sets by itself; "
            "use warn or stop, or another schedule"
        )
