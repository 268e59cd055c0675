"""Read the saved state of a run: trainer_state.json with our callbacks' states, coverage.json, forgetting.json."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from mypt.checkpoints.lineage import Lineage
from mypt.errors import CheckpointError, MyPTError
from mypt.json_files import LARGER, Count, Positive, Rule, Wrong, as_kind, check, find_json, found, read_json

STATE_NAME = "trainer_state.json"
# In a run folder.
LEDGER_NAME, FORGETTING_NAME = "coverage.json", "forgetting.json"
METRICS_NAME, SPIKES_NAME = "metrics.jsonl", "spikes.jsonl"
# Trainer logs what a step gave: a loss may be NaN there.
Number = Annotated[Any, Rule(lambda value: type(value) in (int, float), "a number")]
Error = Annotated[float, Rule(lambda value: value >= 0, "a finite number of 0 or more")]
# 0: of a source that only the guard's `raise_replay` draws from.
Weight = Annotated[float, Rule(lambda value: value == 0 or 1e-100 < value < 1e100, "a number of 0 or more")]
# xxh3-128 of a split's shards; empty where the source is a text.
Fingerprint = Annotated[str, Rule(re.compile(r"([0-9a-f]{32})?").fullmatch, "32 hex digits")]


class SavedSource(TypedDict):
    name: str
    tokens: Count  # 0: not known, of a text that is streamed
    weight: Weight
    shards: NotRequired[Positive]
    fingerprint: NotRequired[Fingerprint]


class Grown(TypedDict):
    source: Count
    tokens: Positive
    shards: Positive
    fingerprint: Fingerprint


class Event(TypedDict, total=False):
    """A change from a sample on: one of weights, appended and changes."""

    sample: Count
    step: Count
    weights: list[Weight]
    appended: Grown
    changes: dict[str, Any]
    guard: dict[str, Any]


class SavedSeen(TypedDict):
    name: str
    samples: Count
    tokens: Count
    epochs: Error | None
    coverage: Error | None
    estimated: NotRequired[bool]


class Settings(TypedDict, total=False):
    """The settings that a resume compares with its own."""

    max_steps: Count
    learning_rate: float
    world_size: Annotated[int, Rule(lambda value: 1 <= value <= 10**6, "a number of processes")]
    per_device_train_batch_size: Positive
    gradient_accumulation_steps: Positive


def _lengths(stages: list) -> bool:
    """Whether the stages of a curriculum ascend by first sample, from sample 0."""
    firsts = [first for first, _ in stages]
    return firsts[0] == 0 and firsts == sorted(firsts) if firsts else False


class StreamState(TypedDict):
    """Saved by `CoverageCallback`: the position of the training stream, from which the ledger is computed."""

    next_sample: Count
    block_size: Positive
    sources: list[SavedSource]
    events: list[Event]
    settings: NotRequired[Settings]
    start: NotRequired[Lineage]  # of the model that the run began from
    # Fields of a ShardStream.
    seed: NotRequired[int]
    order: NotRequired[Literal["full", "blocks"]]
    weights: NotRequired[list[Weight]]
    curriculum: NotRequired[Annotated[list[tuple[Count, Positive]], Rule(_lengths, "stages from sample 0 on")] | None]
    # Fields of a JitStream, which counts itself what it has seen.
    seen: NotRequired[list[SavedSeen]]
    expected: NotRequired[tuple[Error, Error, bool]]
    world_size: NotRequired[Positive]
    workers: NotRequired[Positive]
    next_worker: NotRequired[Count]
    lanes: NotRequired[dict[str, Annotated[list[Count], Rule(lambda place: len(place) == 10, "a list of 10")]]]


SHARDS = ("seed", "order", "weights", "curriculum")  # what the state of a ShardStream has besides
LANES = ("seed", "expected", "seen", "world_size", "workers", "next_worker", "lanes")  # of a JitStream


def check_stream(state: StreamState) -> bool:
    """Raise Wrong where the parts of a stream's state do not fit together."""
    sources, last = state["sources"], 0
    if not sources:
        raise Wrong("found no source, expected one or more", "sources")
    for name in LANES if "lanes" in state else SHARDS if "weights" in state else ():
        if name not in state:
            raise Wrong(f"the key {found(name)} is missing")
    for name in ("weights", "seen"):
        if len(state.get(name, sources)) != len(sources):
            raise Wrong(f"found {len(state[name])} for {len(sources)} sources", name)
    tokens = [source["tokens"] for source in sources]
    for index, event in enumerate(state["events"]):
        place = ("events", index)
        if "sample" not in event or not {"weights", "appended", "changes"} & event.keys():
            raise Wrong("expected an event: sample, and weights, appended or changes", *place)
        if not last <= event["sample"] <= state["next_sample"]:
            raise Wrong(f"found {event['sample']}, expected {last} to {state['next_sample']}", *place, "sample")
        last = event["sample"]
        if len(event.get("weights", sources)) != len(sources):
            raise Wrong(f"found {len(event['weights'])} for {len(sources)} sources", *place, "weights")
        if grown := event.get("appended"):
            index, place = grown["source"], (*place, "appended")
            if index >= len(sources):
                raise Wrong(f"found {index}, and there are {len(sources)} sources", *place, "source")
            if grown["tokens"] <= tokens[index]:
                raise Wrong(f"found {grown['tokens']}, not more than before ({tokens[index]})", *place, "tokens")
            tokens[index] = grown["tokens"]
    if "lanes" in state:
        readers = state["world_size"] * state["workers"]
        if readers > 10**6 or state["lanes"].keys() != {str(number) for number in range(readers)}:
            raise Wrong(f"found {len(state['lanes'])} readers, expected numbers 0 to {readers - 1}", "lanes")
        if state["next_worker"] >= state["workers"]:
            raise Wrong(f"found {state['next_worker']}, expected less than {state['workers']}", "next_worker")
    return True


class SavedReading(TypedDict):
    loss: float
    standard_error: NotRequired[Error]
    bits_per_byte: NotRequired[float]
    delta: float
    delta_error: NotRequired[Error]
    state: Literal["target", "other", "healthy", "watch", "warning", "critical"]


class Measured(TypedDict):
    step: Count
    sets: dict[str, SavedReading]
    constrained_loss: NotRequired[float]


def _ascends(history: list[Measured]) -> bool:
    for index, (before, entry) in enumerate(pairwise(history), start=1):
        if entry["step"] <= before["step"]:
            raise Wrong(f"found {entry['step']} after {before['step']}", index, "step")
    return True


History = Annotated[list[Measured], Rule(_ascends, "measurements")]


def _can_continue(history: list[Measured]) -> bool:
    """Whether further measurements of the same sets can follow, and be drawn with these."""
    for index, entry in enumerate(history):
        if entry["sets"].keys() != history[0]["sets"].keys():
            raise Wrong("found other sets than before", index, "sets")
        for name, reading in entry["sets"].items():
            if "delta_error" not in reading:
                raise Wrong('the key "delta_error" is missing', index, "sets", name)
    return True


class Change(TypedDict):
    """Change of a guarded set that caused an action, in nats per token."""

    delta: float
    delta_error: Error


class Action(TypedDict):
    """An action of the guard after a measurement, and the values that it changed: [before, after]."""

    step: Count
    action: str
    sets: dict[str, Change]
    learning_rate: NotRequired[list[float]]
    shares: NotRequired[dict[str, list[float]]]
    to: NotRequired[str | None]


class ForgettingState(TypedDict):
    history: Annotated[History, Rule(_can_continue, "measurements")]
    stopped_at: Count | None
    tolerance: Error
    act_at: NotRequired[Error]
    actions: NotRequired[list[Action]]
    rate_factor: NotRequired[Annotated[float, Rule(lambda value: 0 < value <= 1, "a number above 0, up to 1")]]


class Spike(TypedDict):
    step: Count


class SpikeState(TypedDict, total=False):
    losses: list[float]
    spikes: list[Spike]


class SafetyState(TypedDict, total=False):
    skipped: Count
    rollbacks: Count


def _saved(kind: Any) -> Any:
    """The type of a callback's entry in trainer_state.json."""
    return TypedDict("_Saved", {"attributes": kind})


class Callbacks(TypedDict, total=False):
    CoverageCallback: _saved(Annotated[StreamState, Rule(check_stream, "a stream's state")])
    ForgettingCallback: _saved(ForgettingState)
    SpikeCallback: _saved(SpikeState)
    SafetyCallback: _saved(SafetyState)


# Fields of RunState by the callbacks that save them.
_CALLBACKS = {
    "coverage": "CoverageCallback", "forgetting": "ForgettingCallback", "spikes": "SpikeCallback",
    "safety": "SafetyCallback",
}  # fmt: skip


def _is_entry(entry: dict) -> bool:
    if "step" not in entry:
        raise Wrong('the key "step" is missing')
    as_kind(entry["step"], Count)
    for name, value in entry.items():
        drawn = name in ("loss", "learning_rate") or (name.startswith("eval_") and name.endswith("loss"))
        if drawn and type(value) not in (int, float):
            raise Wrong(f"found {found(value)}, expected a number", name)
    return True


class TrainerState(TypedDict):
    """Fields that Trainer saves; others are left to Trainer."""

    global_step: Count
    max_steps: NotRequired[int]
    epoch: NotRequired[Number | None]
    log_history: NotRequired[list[Annotated[dict[str, Any], Rule(_is_entry, "an entry of the log")]]]
    best_metric: NotRequired[Number | None]
    best_global_step: NotRequired[Count | None]
    best_model_checkpoint: NotRequired[str | None]
    stateful_callbacks: NotRequired[Callbacks]
    logging_steps: NotRequired[float | None]
    eval_steps: NotRequired[float | None]
    save_steps: NotRequired[float | None]
    train_batch_size: NotRequired[Count | None]
    num_train_epochs: NotRequired[int]
    num_input_tokens_seen: NotRequired[Count]
    total_flos: NotRequired[Error]
    is_local_process_zero: NotRequired[bool]
    is_world_process_zero: NotRequired[bool]
    is_hyper_param_search: NotRequired[bool]
    trial_name: NotRequired[str | None]
    trial_params: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True)
class RunState:
    """The state of a run in one checkpoint; a part is None where the run had no such callback.

    trainer: Trainer's own fields. coverage: how far the data was read. forgetting: measurements of every evaluation
    set. spikes: recent losses and loss spikes. safety: how many steps were skipped and rolled back.
    """

    trainer: TrainerState
    coverage: StreamState | None = None
    forgetting: ForgettingState | None = None
    spikes: SpikeState | None = None
    safety: SafetyState | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        return self.trainer["global_step"]

    @property
    def world_size(self) -> int:
        """Processes that took part; 1 where the state does not record it."""
        return (self.coverage or {}).get("settings", {}).get("world_size", 1)

    @property
    def learning_rate(self) -> float | None:
        """The recipe's learning rate by which the steps were taken; None where the state does not record it."""
        return (self.coverage or {}).get("settings", {}).get("learning_rate")


def _parts(callbacks: Callbacks) -> dict[str, Any]:
    return {part: callbacks.get(name, {}).get("attributes") for part, name in _CALLBACKS.items()}


def _run_state(content: Any) -> RunState:
    trainer = as_kind(content, TrainerState)
    state = RunState(trainer, **_parts(trainer.get("stateful_callbacks", {})))
    if (best := trainer.get("best_global_step") or 0) > state.step:
        raise Wrong(f"found {best}, after step {state.step}", "best_global_step")
    if state.coverage and state.coverage["next_sample"] < state.step:
        place = ("stateful_callbacks", _CALLBACKS["coverage"], "attributes", "next_sample")
        raise Wrong(f"found {state.coverage['next_sample']}, fewer than {state.step} steps take", *place)
    return state


class _Ledger(StreamState):
    step: Count


def _ledger(content: Any) -> _Ledger:
    ledger = as_kind(content, _Ledger)
    check_stream(ledger)
    return ledger


class ForgettingReport(TypedDict):
    history: History
    target: NotRequired[str]
    guard: NotRequired[list[str]]
    tolerance: NotRequired[Error]
    action: NotRequired[str]
    act_at: NotRequired[Error]
    actions: NotRequired[list[Action]]
    stopped_at: NotRequired[Count | None]
    verdict: NotRequired[str]


def _forgetting(content: Any) -> ForgettingReport:
    report = as_kind(content, ForgettingReport)
    named = {*report.get("guard", []), *([report["target"]] if "target" in report else [])}
    for index, entry in enumerate(report["history"][-1:], start=len(report["history"]) - 1):
        if missing := named - entry["sets"].keys():
            raise Wrong(f"the set {found(min(missing))} is missing", "history", index, "sets")
    return report


def read_ledger(run: Path) -> _Ledger | None:
    """coverage.json of a run; None if there is none. Raises CheckpointError if it is damaged."""
    return find_json(run / LEDGER_NAME, _ledger, CheckpointError, "restore it", LARGER)


def read_forgetting(run: Path) -> ForgettingReport | None:
    """forgetting.json of a run; None if there is none. Raises CheckpointError if it is damaged."""
    return find_json(run / FORGETTING_NAME, _forgetting, CheckpointError, "restore it", LARGER)


def run_tolerance(model: Path) -> float | None:
    """Nats per token that a guarded set could lose in the run of a model: a run folder, one of its checkpoints or its
    best step; None for other models.
    """
    is_part = model.name == "best" or re.fullmatch(r"checkpoint-\d+", model.name)
    report = read_forgetting(model) or (read_forgetting(model.parent) if is_part else None)
    return report.get("tolerance") if report else None


def read_state(folder: Path) -> RunState:
    """Read and check the trainer_state.json of a checkpoint.

    Raises:
        CheckpointError: the file is missing, or holds a value that neither Trainer nor our callbacks could resume from;
            the error names the file and the place in it.
    """
    return read_json(folder / STATE_NAME, _run_state, CheckpointError, "restore it", LARGER)


def is_foreign(folder: Path) -> bool:
    """Whether another Trainer saved a checkpoint; a state that is cut short or missing counts as ours.

    The values are not checked, since another Trainer may save others than `read_state` accepts.
    """
    try:
        callbacks = read_json(folder / STATE_NAME, dict, largest=LARGER).get("stateful_callbacks")
    except MyPTError:
        return False
    ours = {_CALLBACKS["coverage"], _CALLBACKS["spikes"]}  # which every run of ours has
    return not (isinstance(callbacks, dict) and ours & callbacks.keys())


def loaded_state(trainer_state) -> RunState:
    """The state that HF's TrainerState has read from a checkpoint, its callbacks checked as by `read_state`.

    Before the first step of a run no callback has one.
    """
    saved = trainer_state.stateful_callbacks if trainer_state.global_step else {}
    callbacks = check(saved, Callbacks, f"the state of the callbacks in {STATE_NAME}", CheckpointError)
    return RunState({"global_step": trainer_state.global_step}, **_parts(callbacks))
