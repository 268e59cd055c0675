"""Plan the evaluations of a run: how often and on how many windows, to keep to a share of its compute.

One forward pass over one window is the unit: exact before the run begins, and the same on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mypt.errors import MyPTError

MOST_WINDOWS = 1_000  # of a set in each evaluation
# With 64 windows of 128 tokens two standard errors of a change of 0.02 nats are 0.016 nats, of 0.15 nats 0.03
# (docs/forgetting.md): with fewer, noise would hide the loss of 0.05 nats that a guard is there to find.
FEWEST_WINDOWS = 64
TENTHS = 10  # evaluations after step 0
AS_SET, RECALLED = "as set", "as when the run began"


@dataclass(frozen=True)
class Evaluation:
    """How a run is evaluated.

    windows: of each set, or `all`. eval_steps: steps from one evaluation to the next; the last step is evaluated too.
    points: evaluations in all, the one at step 0 included. forward: windows that all of them evaluate together. share:
    of the compute of the run. capped: the
    keys of a recipe whose value would be another without the budget. within: whether the budget is kept. cause: what
    leaves no way to keep it, in words.
    """

    windows: int | str
    eval_steps: int
    points: int
    forward: int
    share: float
    capped: list[str]
    within: bool
    budget: float
    cause: str = ""

    def __str__(self) -> str:
        when = "step 0" if self.points == 1 else "step 0 and the last step"
        if self.points > 2:
            when = f"step 0 and every {self.eval_steps:,} steps, {self.points} times in all"
        many = "all windows" if self.windows == "all" else f"up to {self.windows:,} windows"
        budget, note = f"forgetting.time_budget {self.budget:g}", ""
        if self.within:
            note = f"; {budget} has no room for more" if self.capped else ""
        elif self.cause in (AS_SET, RECALLED):
            note = f"; above {budget}, {self.cause}"
        else:
            note = f"; {self.cause}, though above {budget}" if self.cause else f"; above {budget}"
        if self.capped:
            note += f" (to choose: {', '.join(self.capped)})"
        return f"evaluation: {when}, {many} of each set, {self.share:.1%} of the compute{note}"


def training_passes(
    layers: int, *, lora: bool = False, freeze_layers: int = 0, freeze_embeddings: bool = False
) -> float:
    """Cost of training on a token in forward passes: 3, of which 2 are the backward pass.

    A frozen layer gets no gradient of its weights (2), and above frozen embeddings the first frozen layers need no
    backward pass at all (1). With adapters all layers are frozen; the adapters themselves cost next to nothing.
    """
    if lora:
        return 2
    return 3 - (2 if freeze_embeddings else 1) * min(1, freeze_layers / max(1, layers))


def plan_evaluation(
    *,
    steps: int,
    sequences: int,
    block_size: int,
    sets: list[int | None],
    passes: float = 3,
    budget: float = 0.1,
    windows: int | str | None = None,
    eval_steps: float | None = None,
    during_training: bool = True,
    acting: Sequence[str] = (),
    recalled: Sequence[str] = (),
) -> Evaluation:
    """Windows and interval of evaluations that keep to `budget`, a share of the compute of a whole run.

    steps, sequences, block_size: of the run, its global batch and its windows. sets: tokens of each evaluation set,
    None where they are not known: as if it had 1,000 windows. passes: as of `training_passes`. windows, eval_steps: as
    given, which nothing changes; None: chosen, first fewer windows (down to 64) and then fewer evaluations (down to the
    one at the end). budget: 0 or 1 for no limit. during_training: False if only step 0 is evaluated. acting: what may
    end or change the run by its evaluations, and so needs all of them: only the windows are made fewer. recalled: keys
    whose values are given since the run began with them.

    Raises MyPTError for an interval that is no positive number.
    """
    if eval_steps is not None and not 0 < eval_steps < math.inf:
        raise MyPTError(f"training.eval_steps is {eval_steps!r}, expected a positive number of steps")
    sizes = [MOST_WINDOWS if tokens is None else max(1, -(-(tokens - 1) // block_size)) for tokens in sets]
    training = steps * sequences * passes
    allowed = training * budget / (1 - budget) if 0 < budget < 1 else math.inf

    def points(interval: int) -> int:
        return 1 + during_training * math.ceil(steps / interval)

    def cost(count: float, interval: int) -> int:
        return points(interval) * sum(min(count, size) for size in sizes)

    if eval_steps:  # below 1 it is a share of the steps, as in HF's TrainingArguments
        intervals = [math.ceil(eval_steps if eval_steps >= 1 else eval_steps * steps)]
    else:  # of tenths, at which checkpoints are saved: only a saved step can be the best
        most = 1 if acting or not during_training else TENTHS
        intervals = [min(steps, math.ceil(steps / TENTHS) * number) for number in range(1, most + 1)]
    if windows:
        counts = [math.inf if windows == "all" else windows]
    else:
        counts = range(MOST_WINDOWS, FEWEST_WINDOWS - 1, -1)
    fitting = ((count, interval) for interval in intervals for count in counts if cost(count, interval) <= allowed)
    count, interval = next(fitting, (counts[-1], intervals[-1]))
    spent = cost(count, interval)
    lower = {
        "forgetting.eval_windows": count < min(counts[0], max(sizes)),
        "training.eval_steps": interval > intervals[0],
    }
    return Evaluation(
        windows="all" if count == math.inf else count,
        eval_steps=interval,
        points=points(interval),
        forward=spent,
        share=spent / (spent + training),
        capped=[key for key, is_lower in lower.items() if is_lower],
        within=spent <= allowed,
        budget=budget,
        cause=_cause(lower, windows, during_training and eval_steps, acting if during_training else (), recalled),
    )


def _cause(lower: dict[str, bool], windows, eval_steps, acting: Sequence[str], recalled: Sequence[str]) -> str:
    """The reason why evaluations stay above the budget; empty where all that there is is less than a verdict needs."""
    given = {"forgetting.eval_windows": windows, "training.eval_steps": eval_steps}
    why = {key: RECALLED if key in recalled else AS_SET for key, value in given.items() if value}
    if all(lower.values()):
        return "the fewest that a verdict needs"
    if len(why) == 2 and len({*why.values()}) == 1:
        return why["training.eval_steps"]
    causes = [f"{key} {words}" for key, words in why.items()]
    if lower["forgetting.eval_windows"]:
        causes.insert(0, "the fewest windows that a verdict needs")
    if lower["training.eval_steps"]:
        causes.append("the fewest evaluations")
    elif acting and not eval_steps:
        causes.append(f"every evaluation that {' or '.join(acting)} may act on")
    return " and ".join(causes)
