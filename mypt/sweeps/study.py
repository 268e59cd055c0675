"""The study that the workers of a sweep share: an Optuna storage, which any number of processes and machines join.

Optuna keeps the trials, samples their values and decides which to prune. This module adds what a sweep of processes
needs: a fixed number of trials, each run to an end exactly once, whoever is killed.

A sweep has trials 0 to n - 1. Each is an entry of the storage that waits until a worker takes it; Optuna gives an entry
to one of them only. An entry whose worker died is set to FAIL, which succeeds for one process only, and the trial gets
another entry with the same values. Where two processes add an entry for one trial, the one of the lower number counts.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from mypt.errors import MyPTError
from mypt.folders import is_alive, this_process
from mypt.sweeps.space import Space

BEAT = 15.0  # seconds between two signs of life of a process, in the entries of its trials
SILENCE = 90.0  # seconds without one, after which a process that cannot be asked counts as dead
FIRST = 30  # percent of a trial at the first rung: at 10 the order of trials is that of their warm-ups (docs/sweep.md)
MARGIN = 0.01  # of the lowest loss at the same percentage: a trial that is so close to it is not pruned
RUNGS = 3  # of the trials that reach a rung, the best third continues (Li et al. 2018, 1810.05934)
STARTUP = 5  # trials at least whose values are random, before TPE chooses
_LOST, _DOUBLED = "lost", "doubled"  # what became of an entry that does not count
_PATIENCE = 10.0  # seconds in which a process adds the entries that it is to add, if it lives
_TRIES, _PAUSE = 20, 0.3  # to create a storage that other processes create at the same moment


@dataclass(frozen=True)
class Search:
    """The settings that decide the values of every trial. configurations: {name: overrides} of predefined ones."""

    type: str
    space: Space
    configurations: Mapping[str, Mapping[str, object]]
    pruner: str
    seed: int
    trials: int

    def sampler(self, number: int) -> BaseSampler:
        """Its random numbers follow from the seed and the trial, so that no restart and no second process repeats any.

        Tree-structured Parzen estimator (Bergstra et al. 2011) for an optimized search.
        """
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.type != "optimized":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=max(STARTUP, self.trials // 4))

    def make_pruner(self) -> BasePruner:
        """A pruner by percents of a run: rungs at 30 and 90% (ASHA), or the brackets of Hyperband (Li et al. 2017)."""
        if self.pruner == "asha":
            return SuccessiveHalvingPruner(min_resource=FIRST, reduction_factor=RUNGS)
        if self.pruner == "hyperband":
            return HyperbandPruner(min_resource=FIRST, max_resource=100, reduction_factor=RUNGS)
        return NopPruner()


@dataclass
class Claimed:
    """A trial that this process runs.

    Attributes:
        number: Of the trial. params: The values that were chosen for it: {section.key: value}.
        configuration: The name of a predefined one; empty.
        stop: Set when another process has taken the trial over.
        beats: Signs of life so far.
    """

    number: int
    params: dict[str, object]
    configuration: str
    entry: Trial
    stop: threading.Event = field(default_factory=threading.Event)
    beats: int = 0


class Study:
    """A study by its name in a storage; made by the first process that joins. Used by several threads at once."""

    def __init__(self, url: str, name: str, search: Search):
        """Raises MyPTError for a storage that cannot be reached, or without its driver."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.name, self.search = name, search
        self._storage, self._id, made = _joined(url, name)
        self._study = optuna.load_study(study_name=name, storage=self._storage, sampler=RandomSampler())
        self._turn = threading.Lock()
        # Of entries: the last sign of life, when it was seen first, and whether it ever changed.
        self._watched: dict[int, tuple[Any, float, bool]] = {}
        self._owner = this_process()
        if made:
            self._fill()
            self._storage.set_study_user_attr(self._id, "filled", True)
        else:  # one process adds the trials; if it is killed meanwhile, `_fill` of the others does
            end = time.monotonic() + _PATIENCE
            while "filled" not in self._storage.get_study_user_attrs(self._id) and time.monotonic() < end:
                time.sleep(0.05)

    def agree(self, facts: Mapping[str, object]) -> None:
        """Record what every process of the study must share, or compare it.

        Raises:
            MyPTError: The study was made with something else; names what.
        """
        facts = json.loads(json.dumps(dict(facts)))  # as a storage gives them back
        recorded = self._storage.get_study_user_attrs(self._id).get("facts")
        if recorded is None:
            self._storage.set_study_user_attr(self._id, "facts", facts)
            recorded = self._storage.get_study_user_attrs(self._id)["facts"]
        differing = [name for name in facts if recorded.get(name) != facts[name]]
        if differing:
            raise MyPTError(
                f"the study {self.name} was made with another {' and another '.join(differing)}: restore it, or choose "
                "another --out, or another --study in the same storage"
            )

    def claim(self) -> Claimed | None:
        """A trial that waits, with values chosen; None if none waits now."""
        with self._turn:
            self._fill()
            for entry in self._entries(TrialState.WAITING):
                number = entry.user_attrs["trial"]
                if number < self.search.trials and self._taken(entry) and not self._doubled(entry):
                    return self._begun(entry, number)
        return None

    def has_unknown(self) -> bool:
        """Whether a trial may still have to be run here: it has no entry, or its process is not known to live."""
        with self._turn:
            return bool(self._missing()) or any(
                self._is_dead(entry) is not False for entry in self._entries(TrialState.RUNNING)
            )

    def running(self) -> list[str]:
        """Trials that other living processes run, each with where."""
        owners = [(entry, entry.user_attrs.get("owner", {})) for entry in self._entries(TrialState.RUNNING)]
        return [
            f"trial {entry.user_attrs['trial']} (pid {owner.get('pid', '?')} on {owner.get('host', '?')})"
            for entry, owner in owners
            if not self._is_mine(owner)
        ]

    def describe(self, claimed: Claimed, **attributes: object) -> None:
        """Record facts about a trial that runs."""
        for name, value in attributes.items():
            claimed.entry.set_user_attr(name, value)

    def report(self, claimed: Claimed, percent: int, value: float) -> bool:
        """Record an evaluation at this percentage of a trial; whether to prune it.

        A trial whose loss is within `MARGIN` of the lowest so far is kept, whatever its rank: with few trials their
        order early in training is mostly noise.
        """
        if percent in self._frozen(claimed).intermediate_values:  # of a trial that was resumed
            return False
        value = value if math.isfinite(value) else math.inf
        claimed.entry.report(value, percent)
        if not claimed.entry.should_prune():
            return False
        lowest = min(entry.intermediate_values.get(percent, math.inf) for entry in self._entries())
        return not value <= lowest * (1 + MARGIN) or value == math.inf

    def finish(self, claimed: Claimed, state: str, value: float | None, **ended: object) -> None:
        """Record how a trial ended: `completed` with its objective, `pruned`, `failed`, or `interrupted`: run again."""
        with self._turn, suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken over by another process
            self.describe(claimed, ended=ended | {"state": state})
            if state == "interrupted":
                claimed.entry.set_user_attr("gone", _LOST)
            states = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
            told = [value] if state == "completed" else None
            if state == "pruned" and (values := self._frozen(claimed).intermediate_values):
                told = [values[max(values)]]  # as Optuna's own `tell`
            self._storage.set_trial_state_values(
                self._entry_id(claimed.entry.number), states.get(state, TrialState.FAIL), told
            )
            if state == "interrupted":
                self._add(claimed.number, self._frozen(claimed).params)

    def beat(self, claimed: Claimed) -> None:
        """Give a sign of life; sets `claimed.stop` if the trial is not this process's any more."""
        if self._frozen(claimed).state != TrialState.RUNNING:
            claimed.stop.set()
            return
        claimed.beats += 1
        claimed.entry.set_user_attr("beat", claimed.beats)

    def entries(self) -> list[FrozenTrial]:
        """The entry that counts of each trial, by the number of the trial; before it, the one that was lost last."""
        found: dict[int, FrozenTrial] = {}
        for entry in self._entries():
            number, gone = entry.user_attrs["trial"], entry.user_attrs.get("gone")
            if gone == _DOUBLED:
                continue
            before = found.get(number)
            if before is None or before.user_attrs.get("gone"):
                found[number] = entry
        return [found[number] for number in sorted(found)]

    # ---- entries ----

    def _entries(self, *states: TrialState) -> list[FrozenTrial]:
        found = self._storage.get_all_trials(self._id, deepcopy=False, states=states or None)
        return [entry for entry in found if "trial" in entry.user_attrs]

    def _fill(self) -> None:
        """Give up the entries of dead processes, and add one for each trial that has none.

        Who gave an entry up adds the next one; another process does so if that has not happened for `_PATIENCE`.
        """
        given_up = {
            entry.user_attrs["trial"]
            for entry in self._entries(TrialState.RUNNING)
            if self._is_dead(entry) and self._give_up(entry, _LOST)
        }
        for number, lost in self._missing():
            ended = max((entry.datetime_complete for entry in lost), default=datetime.min)
            # abs: a database has the local time of another machine.
            if number in given_up or abs((datetime.now() - ended).total_seconds()) > _PATIENCE:
                self._add(number, lost[-1].params if lost else {})

    def _add(self, number: int, params: dict[str, Any]) -> None:
        """An entry that waits, with the values of the one before; {}: they are chosen when it is taken."""
        self._study.enqueue_trial(params, user_attrs={"trial": number})

    def _missing(self) -> list[tuple[int, list[FrozenTrial]]]:
        """The trials without an entry that counts, each with those that were lost."""
        known: dict[int, list[FrozenTrial]] = {number: [] for number in range(self.search.trials)}
        for entry in self._entries():
            known.setdefault(entry.user_attrs["trial"], []).append(entry)
        return [
            (number, [entry for entry in entries if entry.user_attrs["gone"] == _LOST and entry.state.is_finished()])
            for number, entries in known.items()
            if number < self.search.trials and all(entry.user_attrs.get("gone") for entry in entries)
        ]

    def _taken(self, entry: FrozenTrial) -> bool:
        """Take an entry that waits; False if another worker took it."""
        try:
            return self._storage.set_trial_state_values(self._entry_id(entry.number), TrialState.RUNNING)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _doubled(self, entry: FrozenTrial) -> bool:
        """Whether an entry of a lower number stands for the same trial; then this one is given up."""
        number = entry.user_attrs["trial"]
        others = [other for other in self._entries() if other.user_attrs["trial"] == number]
        doubled = any(other.number < entry.number and not other.user_attrs.get("gone") for other in others)
        if doubled:
            self._give_up(entry, _DOUBLED)
        return doubled

    def _begun(self, entry: FrozenTrial, number: int) -> Claimed:
        self._storage.set_trial_user_attr(self._entry_id(entry.number), "owner", self._owner)
        names = [*self.search.configurations]
        study = optuna.load_study(
            study_name=self.name,
            storage=self._storage,
            sampler=self.search.sampler(number),
            pruner=self.search.make_pruner(),
        )
        trial = Trial(study, self._entry_id(entry.number))
        params = self.search.space.suggest(trial)
        return Claimed(number, params, names[number] if names else "", trial)

    def _give_up(self, entry: FrozenTrial, why: str) -> bool:
        """Set an entry to FAIL, which succeeds in one process only: the others find it finished, and get False."""
        entry_id = self._entry_id(entry.number)
        try:
            self._storage.set_trial_user_attr(entry_id, "gone", why)
            return self._storage.set_trial_state_values(entry_id, TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _is_dead(self, entry: FrozenTrial) -> bool | None:
        """Whether the process of an entry is gone; None while that is not known.

        A process of this machine is asked. Another one must change its entry within `SILENCE` of this one's clock.
        """
        owner = entry.user_attrs.get("owner", {})
        if self._is_mine(owner):
            return False
        if owner and all(owner.get(name) == self._owner[name] for name in ("host", "boot", "pid_namespace")):
            return not is_alive(owner["pid"], owner["process_started"])
        now, sign = time.monotonic(), (owner.get("pid"), entry.user_attrs.get("beat"), len(entry.intermediate_values))
        last, since, lives = self._watched.get(entry.number, (sign, now, False))
        if sign != last:
            since, lives = now, True
        self._watched[entry.number] = sign, since, lives
        if now - since > SILENCE:
            return True
        return False if lives else None

    def _is_mine(self, owner: Mapping[str, object]) -> bool:
        names = ("host", "boot", "pid_namespace", "pid", "process_started")
        return all(owner.get(name) == self._owner[name] for name in names)

    def _frozen(self, claimed: Claimed) -> FrozenTrial:
        return self._storage.get_trial(self._entry_id(claimed.entry.number))

    def _entry_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def is_database(storage: str) -> bool:
    return "://" in storage


def without_password(url: str) -> str:
    """A storage as it may be shown: postgresql://me@host/db of postgresql://me:secret@host/db."""
    scheme, mark, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{mark}{user.partition(':')[0]}{at}{place}" if mark else url


def _joined(url: str, name: str) -> tuple[BaseStorage, int, bool]:
    """The storage, the number of the study in it, and whether it was made now: by whoever comes first.

    Optuna's own creation of tables and of the journal's file fails for processes that begin together, so it is tried
    again.
    """
    for attempt in range(_TRIES):
        try:
            storage = optuna.storages.get_storage(_opened(url))  # with Optuna's cache: one for all of its objects
            try:
                optuna.create_study(storage=storage, study_name=name, direction="minimize", sampler=RandomSampler())
                return storage, storage.get_study_id_from_name(name), True
            except optuna.exceptions.DuplicatedStudyError:
                return storage, storage.get_study_id_from_name(name), False
        except MyPTError:
            raise
        except Exception as error:  # of SQLAlchemy, of the driver, or of a file that is half written
            if attempt == _TRIES - 1 or _is_refused(error):
                words = str(error).strip().partition("\n")[0]
                raise MyPTError(f"the storage {without_password(url)} cannot be used: {words}") from error
            time.sleep(_PAUSE)
    raise AssertionError


def _is_refused(error: Exception) -> bool:
    """Whether trying again cannot help: a server that is not there, a password, a folder, an unknown kind of URL."""
    words = str(error).lower()
    told = (
        "can't load plugin",
        "refused",
        "password",
        "does not exist",
        "unable to open",
        "could not translate",
        "resolve",
        "parse",
    )
    return isinstance(error, PermissionError | FileNotFoundError | ImportError) or any(word in words for word in told)


def _opened(url: str) -> BaseStorage:
    if not is_database(url):
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        _mend(Path(url))
        return JournalStorage(JournalFileBackend(url))
    plain = {"postgresql://": "postgresql+psycopg://", "postgres://": "postgresql+psycopg://"}
    for scheme, driver in plain.items():
        if url.startswith(scheme):
            url = driver + url.removeprefix(scheme)
    is_sqlite, options = url.startswith("sqlite"), {}
    if is_sqlite:
        options = {"timeout": 60}  # seconds that a write waits for another process
    elif url.startswith("postgresql+psycopg:"):
        options = {"client_encoding": "utf8"}  # a database of the encoding SQL_ASCII would give bytes
    try:
        storage = RDBStorage(url, engine_kwargs={"connect_args": options})
    except ImportError as error:
        package = "psycopg[binary]" if "psycopg" in url else error.name
        raise MyPTError(
            f"the storage {without_password(url)} needs the package {package}: pip install '{package}'"
        ) from None
    if is_sqlite:
        _lock_whole_transactions(storage.engine)
    return storage


def _lock_whole_transactions(engine) -> None:
    """Let every transaction of SQLite begin with the lock of a writer.

    Python's driver begins one at the first write only, so that two processes could read that an entry waits, and both
    take it. This is SQLAlchemy's documented way to change that.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _(connection, _) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # the connections that were opened before


def _mend(journal: Path) -> None:
    """Drop the last line of a journal if a full disk or a power cut left it half written: Optuna could not read on."""
    if not journal.exists():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        with open(journal, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - (1 << 20)))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
    finally:
        lock.release()
