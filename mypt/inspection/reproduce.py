"""List the commands that repeat a run, and the differences here: versions, machine, code, data."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from mypt.checkpoints.adapter import weights_fingerprint
from mypt.checkpoints.environment import (
    ENVIRONMENT_NAME,
    Environment,
    RecordedDataset,
    Session,
    masked,
    read_environment,
    this_session,
)
from mypt.checkpoints.state import read_ledger
from mypt.errors import CheckpointError, MyPTError
from mypt.inspection.dataset_commands import find_manifest, recorded_datasets
from mypt.inspection.training_history import read_training_history
from mypt.recipe import RESOLVED_NAME
from mypt.remote.place import is_remote
from mypt.text.sources import find_units, is_same_text
from mypt.tokenization.load import load_tokenizer, tokenizer_hash

_LAUNCHERS = {"cpu": "recipes/accelerate/cpu_2.yaml", "gpu": "recipes/accelerate/ddp.yaml"}


class Difference(TypedDict):
    what: str
    recorded: Any
    here: Any


class Reproduction(TypedDict):
    """commands: lines for a shell, in order. done: those of them whose outcome is here already. differs: what is not as
    recorded. problems: why the commands would give other losses, or fail. notes: facts that no command expresses."""

    commands: list[str]
    done: list[str]
    differs: list[Difference]
    problems: list[str]
    notes: list[str]


def reproduce(run: Path, compare: bool = True) -> Reproduction:
    """List the commands that repeat the run in a folder and, if `compare`, what differs here.

    Metadata is read, the weights of the model that the run started from, and the texts of datasets that are missing or
    hold other data: their checksums are compared. Raises CheckpointError for a folder that records no run.
    """
    findings = _Findings()
    _Repeat(run, compare, findings).describe(None)
    return findings.report


class _Findings:
    """A reproduction while it is put together; no line comes twice."""

    def __init__(self) -> None:
        self.report: Reproduction = {part: [] for part in Reproduction.__annotations__}

    def command(self, words: list[str], done: bool) -> None:
        line = shlex.join(masked(words))
        self._add("commands", line)
        if done:
            self._add("done", line)
        elif line in self.report["done"]:  # of a base that is here, and needed again
            self.report["done"].remove(line)

    def differs(self, what: str, recorded: object, here: object) -> None:
        self._add("differs", Difference(what=what, recorded=recorded, here=here))

    def problem(self, line: str) -> None:
        self._add("problems", line)

    def note(self, line: str) -> None:
        self._add("notes", line)

    def _add(self, part: str, found: object) -> None:
        if found not in self.report[part]:
            self.report[part].append(found)


class _Repeat:
    """One run. `describe` adds to the findings how it is repeated, after the run that it started from.

    compare: look for what differs here. runs: the folders of the runs that start from this one's model.
    """

    def __init__(self, run: Path, compare: bool, findings: _Findings, runs: tuple[Path, ...] = ()):
        found = read_environment(run)
        self.recipe = read_training_history(run)["recipe"]
        if found is None or self.recipe is None:
            raise CheckpointError(
                f"{run} records no run (it has no environment.json and {RESOLVED_NAME}); name the folder that mypt "
                "train wrote, which is training.output_dir"
            )
        self.run, self.environment, self.compare, self.findings = run, found, compare, findings
        self.runs = (*runs, run.resolve())
        self.ledger = read_ledger(run) or {}
        self.datasets = self._datasets()

    def describe(self, base: Path | None) -> None:
        """base: the folder in which the run is repeated, as the start of another one; None: it is that other one."""
        if base is None and self.compare:
            self._compare_sessions()
        self._start()
        for dataset in self.datasets:
            self._dataset(dataset)
        self._train(base)
        self._changes()
        if any("***" in command for command in self.findings.report["commands"]):
            self.findings.note("*** stands for what is secret and is not recorded; fill it in")

    def _datasets(self) -> list[RecordedDataset]:
        """The recorded datasets; for a run of an early version the directories that are here now."""
        if "datasets" in self.environment:
            return self.environment["datasets"]
        self.findings.note(
            "the run is of a version that did not record how its data was made: the commands are by what is here now"
        )
        sections, uses = self.recipe.get("data", {}), {}
        for name in sections.get("train") or {}:
            uses.setdefault(name, []).append("train")
        for name, source in (sections.get("eval") or {}).items():
            uses.setdefault(source, []).append(f"eval {name}")
        manifests = {name: found for name in uses if (found := find_manifest(name))}
        for name in uses.keys() - manifests.keys():
            if not Path(name).exists():
                self.findings.problem(f"{name} is missing here, and how it was made was not recorded")
        return recorded_datasets({name: uses[name] for name in manifests}, manifests)

    # ---- the machine ----

    def _compare_sessions(self) -> None:
        here, recorded = this_session(), _sessions(self.environment)[-1]
        if len(_sessions(self.environment)) > 1:
            self.findings.note(
                "the run was resumed on another machine or version; it is compared with its last session"
            )
        if recorded.get("python") != here["python"]:
            self.findings.differs("python", recorded.get("python"), here["python"])
        packages = recorded.get("packages", {})
        for name in dict.fromkeys([*packages, *here["packages"]]):
            if name in packages and packages[name] != (found := here["packages"].get(name)):
                self.findings.differs(name, packages[name], found or "not installed")
        machine = recorded.get("machine", {})
        for name in ("platform", "processor", "device", "model", "cpus", "threads"):
            if name in machine and machine[name] != here["machine"][name]:
                self.findings.differs(name, machine[name], here["machine"][name])
        for name, commit in recorded.get("git", {}).items():
            words = [_commit_words(one) for one in (commit, here["git"].get(name))]
            if commit and words[0] != words[1]:
                self.findings.differs(f"git of {'mypt' if name == 'mypt' else 'the working folder'}", *words)
            if commit and commit["dirty"]:
                where = "MyPT's source" if name == "mypt" else "the working folder"
                self.findings.note(f"{where} had changes that were not committed: its commit is not all")

    # ---- the model that it started from ----

    def _start(self) -> None:
        name = self.recipe.get("model", {}).get("init_from")
        if not name:
            return
        identity, base = self.environment["identity"], self._base_run(Path(name))
        recorded = identity.get("init_from")
        weights = recorded.get("weights") if isinstance(recorded, dict) else None
        weights = weights or (identity.get("lora") or {}).get("base_weights")
        here = weights_fingerprint(name) if self.compare else None
        if base:
            folder = Path(name).parent if base[1] else Path(name)
            _Repeat(base[0], self.compare, self.findings, self.runs).describe(folder)
            if here and here == weights:
                report = self.findings.report
                report["done"] = report["commands"][:]  # which are all those of the base so far
        if not self.compare or here == weights:
            return
        if here:
            self.findings.differs(f"weights of {name}", weights, here)
            if weights:
                self.findings.problem(f"{name} holds other weights than those that the run started from")
        elif base:
            self.findings.note(f"{name} is not here yet; its weights were {weights}")
        else:
            self.findings.problem(f"model.init_from {name} is missing here; its weights were {weights}")

    def _base_run(self, start: Path) -> tuple[Path, bool] | None:
        """The run folder that a start model is of, if it is here, and whether the model lies in a folder of it.

        A relative name is also looked for where it lay from the folder in which this run was trained.
        """
        roots, own = [Path()], Path(self.recipe.get("training", {}).get("output_dir") or "")
        place = self.run.resolve()
        if own.parts and not own.is_absolute() and place.parts[-len(own.parts) :] == own.parts:
            roots.append(place.parents[len(own.parts) - 1])
        for folder in (root / start for root in roots):
            for run, inside in ((folder, False), (folder.parent, True)):
                if run.resolve() in self.runs or not (run / RESOLVED_NAME).is_file():
                    continue
                try:
                    recorded = read_environment(run) and read_training_history(run)["recipe"]
                except CheckpointError as error:
                    self.findings.note(f"how {start} was trained cannot be read: {error}")
                    continue
                if recorded:
                    return run, inside
                self.findings.note(f"{run} does not record how it was trained (it has no {ENVIRONMENT_NAME})")
        return None

    # ---- the data ----

    def _dataset(self, dataset: RecordedDataset) -> None:
        name, commands, own = dataset["name"], dataset["commands"], self.recipe.get("training", {}).get("output_dir")
        if own and Path(name).is_relative_to(own):  # `mypt train` prepares it again
            for text in dataset["texts"] if self.compare else ():
                self._text(text["name"], text["xxh3_128"], dataset["reading"])
            return
        if is_remote(name):
            data = ", ".join(f"{split} {part['fingerprint']}" for split, part in dataset["splits"].items())
            self.findings.note(f"{name} is read from its store and was not compared; it was {data}")
            return
        here = find_manifest(name) if self.compare else None
        words = {split: f"{p['fingerprint']} ({p['tokens']:,} tokens)" for split, p in dataset["splits"].items()}
        found = {
            split: f"{here.fingerprint(split)} ({here.splits[split].tokens:,} tokens)"
            for split in words
            if here and split in here.splits
        }
        for command in commands:
            self.findings.command(command, done=found == words)
        if not self.compare or found == words:
            return
        if here:
            for split, recorded in words.items():
                if found.get(split) != recorded:
                    self.findings.differs(f"{name}/{split}", recorded, found.get(split, "no such split"))
            self.findings.problem(f"{name} holds other data than the run was trained with; restore it, or move it away")
            return
        self.findings.differs(name, words["train"], "not made yet" if commands else "missing")
        if not commands:
            self.findings.problem(f"{name} is missing here, and its metadata did not say how it was made")
        recorded_names = {other["name"] for other in self.datasets}
        for command in commands:
            other = command[2] if command[1] != "append" else command[-2] if "--from" in command else name
            if command[1] != "prepare" and other not in recorded_names and not Path(other).exists():
                self.findings.problem(f"{other} is missing here, and how it was made was not recorded")
            tokenizer = dict(pairwise(command)).get("--tokenizer", "")
            if tokenizer and tokenizer not in recorded_names and ("/" in tokenizer or Path(tokenizer).exists()):
                self._tokenizer(tokenizer, dataset["tokenizer"])
        for text in dataset["texts"]:
            self._text(text["name"], text["xxh3_128"], dataset["reading"])

    def _tokenizer(self, name: str, recorded: str) -> None:
        """Compare a tokenizer here with the one of a dataset that is to be made; one of the hub only if it is here."""
        if not Path(name).exists() and not Path(name).is_absolute() and name.count("/") == 1:
            self.findings.note(f"the tokenizer {name} is not here, or an id of the hub; its hash was {recorded}")
            return
        try:
            here = tokenizer_hash(load_tokenizer(name))
        except MyPTError as error:
            self.findings.problem(f"the tokenizer {name} cannot be read here, copy it to this place: {error}")
            return
        if here != recorded:
            self.findings.differs(f"tokenizer {name}", recorded, here)
            self.findings.problem(f"the tokenizer {name} is not the one that the data was made with; restore it")

    def _text(self, name: str, recorded: str | None, reading: dict) -> None:
        """Compare a text here with the recorded one."""
        if "://" in name or recorded is None:
            self.findings.note(f"{name} is not compared: it is not a local text with a recorded checksum")
            return
        try:
            units = find_units(
                [name],
                document=reading.get("document"),
                keep_whole=reading.get("val_split") == "tail",
                text_column=reading.get("text_column", "text"),
            )
            same = is_same_text(units, recorded, partly=reading.get("max_documents") is not None)
        except MyPTError as error:
            self.findings.differs(name, f"text {recorded}", "missing" if not Path(name).exists() else "not readable")
            self.findings.problem(f"the text {name} cannot be read here, copy it to this place: {error}")
            return
        if not same:
            self.findings.differs(name, f"text {recorded}", "another text")
            self.findings.problem(f"the text {name} is not the one that the run was trained with; restore it")

    # ---- the training ----

    def _train(self, base: Path | None) -> None:
        out = Path(self.recipe.get("training", {}).get("output_dir") or self.run)
        words = [str(self.run / RESOLVED_NAME), f"--training.output_dir={base or _unused(out)}", "--yes"]
        words += ["--resume"] if base else []  # it may be here
        if self.recipe.get("upload"):
            words.append("--upload=null")
            self.findings.note(f"the run uploads to {masked(self.recipe['upload'].get('uri'))}; the "
                                        "command leaves that out (--upload=null)")  # fmt: skip
        processes = self.ledger.get("settings", {}).get("world_size", 1)
        if processes == 1:
            self.findings.command(["mypt", "train", *words], done=False)
            return
        device = _sessions(self.environment)[-1].get("machine", {}).get("device", "cpu")
        launcher = ["accelerate", "launch", "--config_file", _LAUNCHERS[device], "--num_processes", str(processes)]
        self.findings.command([*launcher, "scripts/train.py", *words], done=False)

    def _changes(self) -> None:
        """Note the events of the run that its final recipe does not record."""
        for event in self.ledger.get("events", []):
            if "guard" in event or "rollback" in event or "skipped" in event:
                continue  # by rule: a repeated run does the same
            if "appended" in event:
                words = "data was added"
            elif "changes" in event:
                changes = (f"{key} {old} -> {new}" for key, (old, new) in event["changes"].items())
                words = f"it was resumed with {', '.join(changes)}" if event["changes"] else ""
            else:
                words = "the weights of the sources changed"
            if words:
                self.findings.note(
                    f"{self.run}: at step {event.get('step', 0):,} {words}; the command has the last settings from the "
                    "start, and other losses until then"
                )


def _sessions(environment: Environment) -> list[Session]:
    return [environment, *environment.get("resumed", [])]


def _commit_words(commit: dict | None) -> str:
    return f"{commit['commit'][:12]}{', changed' if commit['dirty'] else ''}" if commit else "no repository"


def _unused(out: Path) -> Path:
    """A folder beside `out` that is not there yet."""
    found, number = out.with_name(f"{out.name}-again"), 2
    while found.exists():
        found, number = out.with_name(f"{out.name}-again-{number}"), number + 1
    return found


def describe_reproduction(report: Reproduction) -> Iterator[str]:
    """Lines that a shell can run: everything but the commands is a comment."""
    yield "# to repeat the run, in this folder or in an empty one:"
    for line in report["commands"]:
        yield f"# done here: {line}" if line in report["done"] else line
    yield from _comments("not as recorded:", _pairs(report["differs"]))
    if not report["differs"]:
        yield "# nothing is different here: versions, machine, code and data are those of the run"
    yield from _comments("notes:", report["notes"])
    yield from (f"# PROBLEM: {problem}" for problem in report["problems"])


def _pairs(differs: Iterable[Difference]) -> list[str]:
    return [f"{one['what']}: recorded {one['recorded']}; here {one['here']}" for one in differs]


def _comments(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"# {title}"
        yield from (f"#   {line}" for line in lines)
