"""Report before training how often the data will be seen, ask if it is too little, and record what was seen."""

import json
import math
import os
import select
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from accelerate.data_loader import IterableDatasetShard
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mypt.checkpoints.lineage import (
    Lineage,
    SeenSource,
    describe_start,
    recognized,
    seen_sources,
    start_lineage,
    tokens_seen,
    with_run,
    write_lineage,
)
from mypt.checkpoints.state import LEDGER_NAME, loaded_state
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.files import replace_text
from mypt.hardware.processes import agreed
from mypt.planning.coverage_report import coverage_lines
from mypt.planning.verdict import DataSource, assess
from mypt.streams.dataset_ledger import DatasetLedger, is_map_style, ledger_of
from mypt.streams.jit_stream import JitLoader, JitStream
from mypt.streams.ledger import Ledger, Seen, saved_ledger
from mypt.streams.timeline import describe
from mypt.terminal import say
from mypt.training.optim.schedules import rewarm_of

RECORDED = ("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "bf16", "fp16")  # of TrainingArguments


class CoverageCallback(TrainerCallback, ExportableState):
    """Coverage of each training source, for any HF Trainer. Writes coverage.json, and lineage.json in checkpoints.

    The stream's state, with the number of the next sample, is saved in trainer_state.json; what was seen follows from
    it. So is what the model that the run began from had seen before.

    Args:
        stream: The `ShardStream` or `JitStream` that is trained on, or a `Ledger` of other data; None: the Trainer's
            train_dataset, whatever it is (`ledger_of`).
        tokens: In one epoch of that dataset, where it streams or its samples have no `input_ids`.
        parameters: {"total", "non_embedding"} of the model, for the verdict.
        confirm: Ask below one pass.
        strict: Stop below one pass.
        assume_yes: Do not ask.
        init_from: Folder or hub id of the model that the run starts from, whose lineage.json is read when it starts;
            None: random weights.

    Raises:
        CheckFailed: The answer was no, or `strict` and less than one pass.
        CheckpointError: A resume with a stream that lacks the run's changes of weights or data.
        MyPTError: A JitStream in a Trainer that is not ours.
    """

    def __init__(
        self,
        stream: Ledger | None = None,
        *,
        tokens: int | None = None,
        parameters: dict[str, int] | None = None,
        confirm: bool = True,
        strict: bool = False,
        assume_yes: bool = False,
        init_from: str | Path | None = None,
    ):
        if stream is not None and tokens is not None:
            raise MyPTError("CoverageCallback got a stream and tokens; a stream knows its size, so leave tokens out")
        self.stream = stream
        self._find = stream is None
        self._tokens = tokens
        self.parameters = parameters
        self.confirm = confirm
        self.strict = strict
        self.assume_yes = assume_yes
        self.init_from = init_from
        self.start: Lineage | None = None  # known once training begins
        self.next_sample = 0
        self.changes: list[dict] = []  # events about settings; those about the data are the stream's
        self.settings: dict = {}

    @property
    def events(self) -> list[dict]:
        """All changes during the run, in the order of the samples."""
        return sorted([*self.changes, *self.stream.events], key=lambda event: event["sample"])

    def state(self) -> dict:
        if self.stream is None:  # before the training: Trainer asks when it is made
            return {"args": {}, "attributes": {}}
        stream = self.stream.state(self.next_sample)
        own = {"settings": self.settings, "events": self.events} | ({"start": self.start} if self.start else {})
        return {"args": {}, "attributes": {**stream, **own}}

    def on_train_begin(self, args, state, control, **kwargs):
        self._batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        loader = kwargs.get("train_dataloader")
        if self._find:
            self.stream = ledger_of(_dataset(loader), self._tokens)
        if isinstance(self.stream, JitStream) and loader is not None and not isinstance(loader, JitLoader):
            raise MyPTError(
                "this Trainer reads ahead, and a JitStream would lose its place at the first save; use `mypt train`, "
                "or prepare the text (`mypt prepare`) and give a ShardStream"
            )
        self._epoch = _samples_per_epoch(self.stream, loader, args)
        start = state.global_step * self._batch  # without a ledger, as in a new run
        if self._epoch:
            passes, steps = divmod(state.global_step, math.ceil(self._epoch / self._batch))
            start = passes * self._epoch + steps * self._batch
        saved = loaded_state(state).coverage or {"next_sample": start, "events": [], "settings": {}}
        self.next_sample = saved["next_sample"]
        self.start = saved.get("start") or self._start()
        self.changes = [event for event in saved["events"] if "changes" in event]
        self._note_events(state, [event for event in saved["events"] if "changes" not in event])
        self._note_changes(args, state, saved.get("settings", {}), kwargs.get("lr_scheduler"))
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        planned = self.next_sample + (state.max_steps - state.global_step) * self._batch
        refusal = None
        if state.is_world_process_zero:
            say(*self._report(args, state))
            main, before = self._main(planned), self._seen_before()[self.stream.main]
            is_seen = main.tokens + before >= self.stream.sources[self.stream.main].tokens
            refusal = None if is_seen else self._refusal()
        if args.world_size > 1:
            refusal = agreed(refusal)
        if refusal:
            raise CheckFailed(refusal, "declined")

    def on_step_end(self, args, state, control, **kwargs):
        left = self._epoch - self.next_sample % self._epoch if self._epoch else self._batch
        self.next_sample += min(self._batch, left)
        if not isinstance(self.stream, DatasetLedger):  # of which Trainer knows the epoch itself
            state.epoch = self._main(self.next_sample).epochs

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_ledger(Path(args.output_dir), state.global_step, self.state()["attributes"])
            checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            if checkpoint.is_dir():
                self.save_lineage(checkpoint, args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.on_save(args, state, control)

    def ledger(self) -> list[dict]:
        """Samples, tokens, epochs and coverage of each source so far."""
        return [asdict(seen) for seen in self.stream.seen(self.next_sample)]

    def save_lineage(self, folder: str | Path, args, state) -> None:
        """Write lineage.json beside the weights of this step: what they have seen in this run and in those before."""
        run = {"name": str(args.output_dir), "step": state.global_step}
        write_lineage(folder, with_run(self.start or self._start(), run, self._own_sources()))

    def _own_sources(self) -> list[SeenSource]:
        return seen_sources(self.stream.state(self.next_sample), self.ledger())

    def _start(self) -> Lineage:
        readers = getattr(self.stream, "readers", ())  # of a ShardStream, whose data may have grown since it was seen
        datasets = {each.fingerprint: partial(each.manifest.shards_of, each.split) for each in readers}
        return recognized(start_lineage(self.init_from), datasets)

    def _seen_before(self) -> list[int]:
        """Tokens of each source that the model had seen before this run."""
        return [tokens_seen(self.start, own["name"], own["fingerprints"]) for own in self._own_sources()]

    def change_weights(self, args, state, weights: list[float]) -> None:
        """Draw from the sources with other weights from the next step on. All processes call it between two steps.

        Args:
            args, state: As HF's events get them.
            weights: One for each source.

        Raises:
            MyPTError: DataLoader workers have read ahead.
            DataError: A stock Trainer has read ahead, or the number of weights is another.
        """
        if args.dataloader_num_workers:
            raise MyPTError(
                f"weights cannot change while {args.dataloader_num_workers} DataLoader workers read ahead; set "
                "dataloader_num_workers: 0"
            )
        before = self.stream.sources
        event = self.stream.change_weights(weights, self.next_sample)
        self._announce(state, event, before)

    def _main(self, next_sample: int) -> Seen:
        """The ledger's entry of the heaviest source."""
        return self.stream.seen(next_sample)[self.stream.main]

    def _note_events(self, state, saved: list[dict]) -> None:
        """Report the stream's changes since the last session, and at which step."""
        known = self.stream.events[: len(saved)]
        if known != saved:
            raise CheckpointError(
                f"the checkpoint records {len(saved)} changes of weights or data, this stream {len(known)} of them; "
                "build it with ShardStream(..., state=...) from the checkpoint (docs/stream.md)"
            )
        for index, event in enumerate(self.stream.events[len(saved) :], start=len(saved)):
            self._announce(state, event, self.stream.sources_before(index))

    def _announce(self, state, event: dict, before: list) -> None:
        event["step"] = state.global_step
        if state.is_world_process_zero:
            say(f"changed from step {state.global_step} on: {describe(event, before)}")

    def _note_changes(self, args, state, before: dict, scheduler) -> None:
        """Record what this session changes against the last one (a first session changes nothing)."""
        self.settings = {
            "max_steps": state.max_steps,
            "learning_rate": args.learning_rate,
            "schedule": f"{args.lr_scheduler_type.value} {json.dumps(args.lr_scheduler_kwargs or {}, sort_keys=True)}",
            "warmup_steps": args.get_warmup_steps(state.max_steps),
            **{name: getattr(args, name) for name in RECORDED},
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "world_size": args.world_size,
        }
        if isinstance(self.stream, DatasetLedger):  # which may be another one after a resume
            self.settings["dataset_tokens"] = self.stream.sources[0].tokens
        changes = {
            key: [before[key], value] for key, value in self.settings.items() if key in before and before[key] != value
        }
        lines = [f"{key} {old} -> {new}" for key, (old, new) in changes.items()]
        climb = rewarm_of(scheduler)
        if climb:
            left = climb["share"] * scheduler.base_lrs[0]
            lines.append(f"the rate re-warms over {climb['steps']} steps from {left:.3g}, where its decay had left it")
        if lines:
            event = {"sample": self.next_sample, "step": state.global_step, "changes": changes}
            self.changes.append(event | ({"rewarm": climb} if climb else {}))
            if state.is_world_process_zero:
                for line in lines:
                    say(f"changed from step {state.global_step} on: {line}")

    def _report(self, args, state) -> list[str]:
        sources, seen = self.stream.sources, self.stream.seen(self.next_sample)
        sources = [
            DataSource(source.name, source.tokens, source.weight, own.tokens, own.estimated, seen_before=before)
            for source, own, before in zip(sources, seen, self._seen_before(), strict=True)
            if source.weight or own.tokens  # else it waits for the guard's `raise_replay`
        ]
        start = [line] if (line := describe_start(self.start)) else []
        foreign = isinstance(self.stream, DatasetLedger)
        if not all(source.tokens for source in sources):
            reason = f": {self.stream.missing}" if foreign else ", since the size of what is streamed is not"
            return [*start, f"Dataset coverage: not known{reason}; {LEDGER_NAME} counts it"]
        length = round(self.stream.block_size, 1)
        layout = {
            "batch": args.train_batch_size,
            "mean length" if foreign else "block": int(length) if length == int(length) else length,
            "accumulation": args.gradient_accumulation_steps,
            "processes": args.world_size,
        }
        tokens_per_step = max(1, round(self._batch * self.stream.block_size))
        seen = assess(sources, tokens_per_step, state.max_steps, state.global_step, self.parameters)
        return [*start, *coverage_lines(seen, layout)]

    def _refusal(self) -> str | None:
        """The reason not to start below one pass, or None. Asks on a terminal; never waits without one."""
        if self.strict:
            return "the data would be seen less than once and coverage.strict is true; raise training.max_steps"
        if self.assume_yes or not self.confirm:
            return None
        answer = _answer("The model will not see all of the data once. Continue anyway? (y/n) ")
        if answer is None:
            say("no terminal to ask on: continuing (coverage.strict: true would stop here)")
        elif answer.strip().lower() not in ("y", "yes"):
            return f"stopped: the answer was {answer.strip() or 'empty'!r}; nothing was trained"
        return None


def _dataset(dataloader) -> object:
    """The dataset that a Trainer's DataLoader reads, without accelerate's wrapper."""
    dataset = dataloader.dataset
    while isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    return dataset


def _samples_per_epoch(stream, dataloader, args) -> int | None:
    """Samples after which a Trainer begins a map-style dataset again; None where it has no end.

    The last batch of an epoch may be smaller, or left out (`dataloader_drop_last`).
    """
    if not isinstance(stream, DatasetLedger) or not is_map_style(_dataset(dataloader)):
        return None
    size = args.train_batch_size * args.world_size
    samples = len(dataloader) * size
    return int(stream.samples) if samples - size < stream.samples <= samples else samples


def write_ledger(directory: Path, step: int, saved: dict) -> None:
    """Write coverage.json from a saved state of this callback, with what each source has given by then."""
    content = {"step": step, **saved, "seen": saved_ledger(saved)}
    # Sorted as in trainer_state.json, where `saved` may come from, so that the same ledger is the same file.
    replace_text(directory / LEDGER_NAME, json.dumps(content, indent=1, sort_keys=True))


def _answer(question: str) -> str | None:
    """The user's line on a terminal, or a line already in the pipe; None without either. Never waits for a pipe."""
    try:
        descriptor = sys.stdin.fileno()
        if not os.isatty(descriptor):
            waiting = select.select([descriptor], [], [], 0)[0]
            text = os.read(descriptor, 1_024).decode(errors="replace") if waiting else ""
            return text.partition("\n")[0] if text else None
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            return None  # in the background: reading the terminal would stop the process
    except (AttributeError, OSError, ValueError):  # no standard input, closed, or not for reading (nohup)
        return None
    try:
        return input(question)
    except EOFError:
        return ""
