"""Say before training how often the data will be seen, ask when it is too little, keep the ledger of what was seen."""

import json
import os
import select
import sys
from dataclasses import asdict
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mypt.errors import CheckFailed
from mypt.files import replace_text
from mypt.planning.report import coverage_report
from mypt.streams.ledger import Seen, Source, main_source, seen_so_far

LEDGER_NAME = "coverage.json"


class CoverageCallback(TrainerCallback, ExportableState):
    """Coverage of each training source, for any HF Trainer.

    sources: name, tokens and weight of each. block_size: targets per sample. parameters: {"total", "non_embedding"}
    of the model, for the verdict. confirm: ask below one pass. strict: stop below one pass. assume_yes: do not ask.
    The number of the next sample lives in trainer_state.json; everything seen follows from it. Writes coverage.json.
    Raises CheckFailed on the answer no, or below one pass with `strict`.
    """

    def __init__(
        self,
        sources: list[Source],
        block_size: int,
        *,
        parameters: dict[str, int] | None = None,
        confirm: bool = True,
        strict: bool = False,
        assume_yes: bool = False,
    ):
        self.sources = sources
        self.block_size = block_size
        self.parameters = parameters
        self.confirm = confirm
        self.strict = strict
        self.assume_yes = assume_yes
        self.next_sample = 0
        self.events: list[dict] = []
        self.settings: dict = {}

    def state(self) -> dict:
        attributes = {
            "next_sample": self.next_sample,
            "block_size": self.block_size,
            "sources": [asdict(source) for source in self.sources],
            "settings": self.settings,
            "events": self.events,
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args, state, control, **kwargs):
        name = type(self).__name__
        self._batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        saved = {"next_sample": state.global_step * self._batch, "events": [], "settings": {}}
        if state.global_step and name in state.stateful_callbacks:  # else a new run, or one that did without a ledger
            saved = state.stateful_callbacks[name]["attributes"]
        self.next_sample, self.events = saved["next_sample"], list(saved["events"])
        self._note_changes(args, state, saved["settings"])
        state.stateful_callbacks.setdefault(name, self.state())
        planned = self.next_sample + (state.max_steps - state.global_step) * self._batch
        refusal = [None]
        if state.is_world_process_zero:
            print("\n".join(self._report(args, state)), flush=True)
            refusal = [self._refusal() if self._main(planned).coverage < 1 else None]
        if args.world_size > 1:
            broadcast_object_list(refusal)
        if refusal[0]:
            raise CheckFailed(refusal[0])

    def on_step_end(self, args, state, control, **kwargs):
        self.next_sample += self._batch
        state.epoch = self._main(self.next_sample).epochs

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._write(Path(args.output_dir) / LEDGER_NAME, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.on_save(args, state, control)

    def ledger(self) -> list[dict]:
        """What each source has given so far: samples, tokens, epochs, coverage."""
        return [asdict(seen) for seen in seen_so_far(self.sources, self.block_size, self.next_sample)]

    def _main(self, next_sample: int) -> Seen:
        """The ledger's entry of the heaviest source."""
        return seen_so_far(self.sources, self.block_size, next_sample)[main_source(self.sources)]

    def _note_changes(self, args, state, before: dict) -> None:
        """Record what this session changes against the last one (a first session changes nothing)."""
        self.settings = {
            "max_steps": state.max_steps,
            "learning_rate": args.learning_rate,
            "schedule": f"{args.lr_scheduler_type.value} {json.dumps(args.lr_scheduler_kwargs or {}, sort_keys=True)}",
            "warmup_steps": args.warmup_steps,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "world_size": args.world_size,
        }
        changes = {
            key: [before[key], value] for key, value in self.settings.items() if key in before and before[key] != value
        }
        if changes:
            self.events.append({"sample": self.next_sample, "step": state.global_step, "changes": changes})
            if state.is_world_process_zero:
                for key, (old, new) in changes.items():
                    print(f"changed from step {state.global_step} on: {key} {old} -> {new}")

    def _report(self, args, state) -> list[str]:
        seen = seen_so_far(self.sources, self.block_size, self.next_sample)
        return coverage_report(
            sources=[
                {"name": s.name, "tokens": s.tokens, "weight": s.weight, "tokens_seen": e.tokens}
                for s, e in zip(self.sources, seen, strict=True)
            ],
            batch_size=args.per_device_train_batch_size,
            block_size=self.block_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            steps=state.max_steps,
            start_step=state.global_step,
            parameters=self.parameters,
        )

    def _refusal(self) -> str | None:
        """Why training must not start below one pass, or None. Asks on a terminal; never waits without one."""
        if self.strict:
            return "the data would be seen less than once and coverage.strict is true; raise training.max_steps"
        if self.assume_yes or not self.confirm:
            return None
        answer = _answer("The model will not see all of the data once. Continue anyway? (y/n) ")
        if answer is None:
            print("no terminal to ask on: going on (coverage.strict: true would stop here)")
        elif answer.strip().lower() not in ("y", "yes"):
            return f"stopped: the answer was {answer.strip() or 'empty'!r}; nothing was trained"
        return None

    def _write(self, path: Path, state) -> None:
        content = {"step": state.global_step, **self.state()["attributes"], "seen": self.ledger()}
        replace_text(path, json.dumps(content, indent=1))


def _answer(question: str) -> str | None:
    """The user's line on a terminal, or one already piped in; None when there is neither. Never waits for a pipe."""
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
