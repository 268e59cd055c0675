"""Damage what MyPT reads and stop it while it writes: does each command report it, and is nothing lost?

    python scripts/faults.py [--seed N] [--minutes M] [--tries N] [--kinds KIND ...] [--only KIND:N] [--json]

Makes one tiny world in a temporary folder by real commands (text, dataset, tokenizer, run with checkpoints, adapter,
export), then draws damages of each kind and runs the commands that read them. Each try is one of

  clear       exit 1 or 2 with one line that names what is wrong
  right       exit 0 with the result of the undamaged input; where the damage only makes another input (a recipe, an
              option, a tokenizer), exit 0, finite numbers, and an override that is in the resolved recipe
  recovered   damaged, killed or out of space, and a resume or the same command again gave the bytes of a whole run

or a fault:

  unclear     exit 1 or 2 with another number of lines, control characters, or without a name of what is wrong
  traceback   a traceback, an unknown exit code, or the end by a signal
  silent      exit 0 with another result, or with files left over
  lost        a file outside of what the command may write was changed or removed, or a result can't be had again
  ran         code from the input was executed
  hung        no end within a minute

A try depends on the seed, its kind and its number: `--only KIND:N` repeats it and shows what was printed. Damage inside
weights is tried for resumes, which check it; in other places only in the header, since safetensors has no checksum.
Exits with 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path

from fault_world import (
    CASES,
    LIMIT,
    MODEL,
    Case,
    Ended,
    Result,
    World,
    case,
    import_all,
    serve_hub,
    snapshot,
    start,
    wait,
)

GOOD = ("clear", "right", "recovered")
FAULTS = ("unclear", "traceback", "silent", "lost", "ran", "hung")
CANARY = "ran"  # the file that code in a damaged input would make
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NOT_FINITE = re.compile(r"(?<![\w.])(nan|inf|NaN|Infinity)(?![\w.])")
# ---- damage ----

# Values of options and overrides, of JSON and YAML, and names of files on a hub.
WORDS = [
    "", " ", "x", "-1", "0", "1", "2", "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 30, "4294967296", "0x10",
    "1_000", "true", "null", "[]", "{}", "[[1]]", "x" * 300, "x" * 5_000, "é", "\x1b[2Jx", "\u202ex", "\x07",
    "\u009b31m", "a=b", "=", "--", "../given/new", "/dev/null", "/proc/self/mem", ".", "..", "nothing/here",
    "text.txt", "\udcff",
]  # fmt: skip
VALUES = [
    None, True, False, "512", "", "x", "x\0y", "\x1b]0;x\x07", "\u202ex", -1, 0, 1, 1.5, 10**12, 10**400, -(10**30),
    1e308, float("nan"), float("inf"), [], {}, [[]], [None], {"x": 1}, "../beyond/kept.txt", "/etc/passwd", "x" * 5_000,
]  # fmt: skip
NAMES = [
    "../../beyond/x", "../x", "{beyond}/x", "a/../../../beyond/x", "..\\..\\x", "a\0b", "\x1b[31m.json", "x" * 300, "",
    ".", "..", "CONFIG.JSON", "~/x", "a//b", ".git/config", "-rf", "model.safetensors/x", "config.json/",
]  # fmt: skip
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghijk")
)
TEXTS: dict[str, Callable[[str], str | bytes]] = {
    "another spacing": lambda text: text + "\n\n",
    "100,000 brackets": lambda text: "[" * 100_000,
    "nested 100,000 times": lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "5,000 digits": lambda text: re.sub(r"\d+", "9" * 5_000, text, count=1),
    "a list": lambda text: f"[{text}]",
    "null": lambda text: "null",
    "a BOM": lambda text: "\ufeff" + text,
    "UTF-16": lambda text: text.encode("utf-16"),
    "bytes that are no UTF-8": lambda text: text.encode().replace(b"e", b"\xff", 1),
    "NULs": lambda text: "\0" * len(text),
    "a tag": lambda text: "!!python/object/apply:builtins.open [../beyond/ran, w]",
    "a bomb": lambda text: BOMB,
}
Harm = tuple[str, Sequence[str]]  # what was damaged, and names of which a clear error has one


def bent(rng: random.Random, content: object) -> Harm:
    """Damage one place of a JSON value."""
    parent, node, place = None, content, []
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.85):
        place.append(rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node)))
        parent, node = node, node[place[-1]]
    key, where = place[-1], ".".join(map(str, place))
    names = [name for name in place if isinstance(name, str)][-1:]
    way = rng.choice(("value", "value", "value", "value", "near", "gone", "twice"))
    if way == "gone":
        del parent[key]
        return f"{where} removed", names
    if way == "twice":
        parent.append(node) if isinstance(parent, list) else parent.update({"unheard-of": node})
        return f"{where} twice", [*names, "unheard-of"]
    is_number = isinstance(node, (int, float)) and not isinstance(node, bool)
    parent[key] = node + rng.choice((-1, 1, 1_000)) if way == "near" and is_number else rng.choice(VALUES)
    return f"{where}: {str(node)[:40]!r} -> {str(parent[key])[:40]!r}", [*names, *spelled(str(parent[key]))]


def damage_json(rng: random.Random, path: Path) -> Harm:
    """Damage a JSON or YAML file; JSON is YAML, too."""
    from mypt.yaml12 import load_yaml

    text = path.read_text()
    if rng.random() < 0.8:
        content = json.loads(text) if path.suffix == ".json" else load_yaml(text)
        what, names = bent(rng, content)
        path.write_text(json.dumps(content, indent=1))
    else:
        what, names = rng.choice(list(TEXTS)), ["9" * 20]
        made = TEXTS[what](text)
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
    return f"{path.name}: {what}", (path.name, *names)


def damage_bytes(rng: random.Random, path: Path, within: int | None = None) -> Harm:
    """Damage any file. within: bytes are changed among its first ones only."""
    data = bytearray(path.read_bytes())
    ways = "cut cut bit bit bit zeros noise longer empty gone folder pipe loop link"
    way = rng.choice(ways.split())
    at = rng.randrange(min(len(data), within or len(data)) or 1)
    if way in ("gone", "folder", "pipe", "loop", "link"):
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "pipe":
            os.mkfifo(path)
        elif way != "gone":
            path.symlink_to(path.name if way == "loop" else "/dev/zero")
        return f"{path.name}: {way}", (path.name,)
    if way == "bit" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif way == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif way in ("cut", "empty"):
        del data[at if way == "cut" else 0 :]
    else:
        data[at if way == "noise" else len(data) :] = rng.randbytes(64)
    path.write_bytes(data)
    return f"{path.name}: {way} at {at}", (path.name,)


# ---- the verdict ----


@dataclass
class Outcome:
    """What one try gave: command and damage in words, its verdict, and what was wrong."""

    tried: str
    verdict: str
    why: str = ""


@dataclass
class Try:
    """One try: its random numbers, what lay in the trial folder before it, whether success means recovered."""

    world: World
    rng: random.Random
    before: dict[str, str] = field(default_factory=dict)
    recovers: bool = False

    def ready(self) -> None:
        """Note what lies there: to be called when all is prepared."""
        self.before = snapshot(self.world.trial)

    def lost(self, writes: Sequence[str]) -> str:
        """What was changed though it had been there and is not to be written, or made outside of `here` and `given`."""
        after = snapshot(self.world.trial)
        for name in self.before | after:
            top, _, below = name.partition("/")
            may = top == "given" or (top == "here" and (below.partition("/")[0] in writes or name not in self.before))
            if self.before.get(name) != after.get(name) and not may:
                return name
        return ""

    def judge(self, tried: Case, what: str, ended: Ended, names: Sequence[str], wrong: Callable[[], str]) -> Outcome:
        """Decide what an ended command is. wrong: what is wrong with its result, empty for nothing."""
        lines = [line for line in ended.err.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"mypt( \w+)?: ", line)]
        last = lines[-1] if lines else ""
        told = ended.out + last if ended.code == 1 else last  # a failed check may be told in the report

        def outcome(verdict: str, why: str = "") -> Outcome:
            return Outcome(f"{tried}  [{what}]", verdict, why)

        if any(self.world.trial.rglob(CANARY)):
            return outcome("ran", "code of the input made a file")
        if lost := self.lost(tried.writes):
            return outcome("lost", lost)
        if ended.code is None and re.search(r"^step \d+/\d+", ended.out, re.MULTILINE):
            return outcome("right")  # it trains: what was changed made a longer run of it
        if ended.code is None:
            return outcome("hung", f"no end in {LIMIT} s: {last[:300]}")
        if ended.code not in (0, 1, 2) or "Traceback (most recent call last)" in ended.err:
            return outcome("traceback", f"exit code {ended.code}: {last[:300]}")
        if CONTROL.search(ended.err):
            return outcome("unclear", f"control characters: {last[:300]!r}")
        if ended.code == 0:
            said = wrong()
            return outcome("silent", said) if said else outcome("recovered" if self.recovers else "right")
        if ended.code == 2 and (errors != [last] or len(last) > 10_000):
            return outcome("unclear", f"{len(errors)} error lines: {ended.err[-300:]!r}")
        if names and not any(name[:40].casefold() in told.casefold() for name in names if name):  # long ones are cut
            return outcome("unclear", f"names none of {', '.join(names)}: {last[:300]}")
        return outcome("clear")

    def damaged(self, tried: Case, harm: Callable[[], Harm], wrong: Callable[[Ended], str] | None = None) -> Outcome:
        """Run a command on an input that `harm` damages; by default it must give what the whole input gives."""
        want = None if wrong else self.world.want(tried)
        self.world.clear(tried.reads)
        what, names = harm()
        self.ready()
        ended = self.world.run(tried.words)
        wrong = wrong or (lambda ended: want.differs(self.world.result(tried, ended, self.before)))
        return self.judge(tried, what, ended, names, lambda: wrong(ended))

    def harm(self, *patterns: str, within: int | None = None) -> Harm:
        """Damage one of the files that match; all patterns are as likely."""
        path = self.rng.choice(sorted(self.world.here.glob(self.rng.choice(patterns))))
        as_json = path.suffix in (".json", ".yaml") and self.rng.random() < 0.75
        what, names = damage_json(self.rng, path) if as_json else damage_bytes(self.rng, path, within)
        return f"{path.parent.name}/{what}", (*names, path.stem, path.parent.name)

    def again(self, tried: Case, want: Result, what: str) -> Outcome:
        """The same command after it was stopped: now it must give a whole result, and leave nothing else."""
        ended = self.world.run((*tried.words, *tried.again))
        wrong = want.differs(self.world.result(tried, ended, self.before)) or self.left_over()
        if ended.code == 2 and not wrong:  # it was done already, and is not done twice
            ended.code = 0
        outcome = self.judge(tried, what, ended, (), lambda: wrong)
        if outcome.verdict == "clear":
            return replace(outcome, verdict="lost", why=f"the same command is refused: {ended.err[-300:]}")
        return outcome

    def left_over(self) -> str:
        here = self.world.here
        return ", ".join(f"left over: {path.name}" for path in (*here.glob(".*"), *here.rglob(".mypt.lock")))

    def one_of(self, *names: str) -> Case:
        return CASES[self.rng.choice(names)]


def spelled(word: str) -> tuple[str, str]:
    """A word, or the beginning of a long one, as a message may have it."""
    return word[:20], word.encode("unicode_escape", "surrogateescape").decode()[:20]


def not_finite(ended: Ended) -> str:
    """The first line of a report that holds NaN or infinity."""
    return next((line for line in ended.out.splitlines() if NOT_FINITE.search(line)), "")


# ---- the kinds ----


def manifests(t: Try) -> Outcome:
    """What is left of the settings, which say how more text is prepared, counts as other settings."""
    tried = t.one_of("verify", "verify", "append", "subset", "evaluate", "train", "plan", "inspect data")
    want = t.world.want(tried)
    t.world.clear(tried.reads)
    what, names = t.harm(*["data/dataset_metadata.json"] * 6, "data/*/*.bin")
    t.ready()
    ended = t.world.run(tried.words)
    only_shown, got = "inspect" in tried.words or ".json: settings" in what, t.world.result(tried, ended, t.before)
    return t.judge(tried, what, ended, names, lambda: not_finite(ended) if only_shown else want.differs(got))


def recipes(t: Try) -> Outcome:
    def harm() -> Harm:
        what, names = t.harm("recipe.yaml")
        return what, (
            *names,
            "section",
            "data.train",
            "out of memory",
            "training.",
        )  # all that can be told of some recipes

    return t.damaged(t.one_of("plan", "train"), harm, not_finite)


def overrides(t: Try) -> Outcome:
    """Absurd values of every key; what is accepted is what the resolved recipe says."""
    from mypt.recipe import load_recipe
    from mypt.yaml12 import load_yaml

    key, word = t.rng.choice(override_keys()), t.rng.choice(WORDS)
    section, _, name = key.partition(".")
    base = CASES["train"]
    tried = replace(base, words=(*base.words, "--training.max_steps=1", f"--{key}={word}"))

    def wrong(ended: Ended) -> str:
        with contextlib.suppress(Exception):  # some values are themselves, some are YAML
            given = load_yaml(word)
            used = vars(getattr(load_recipe(t.world.here / "new"), section)).get(name, given)
            if given is not None and used not in (given, word) and str(used) != str(given):  # null: the default
                return f"{key}: {given!r} was given, {used!r} is used"
        return not_finite(ended)

    return t.damaged(tried, lambda: ("an override", (key, name, *spelled(word), "section")), wrong)


def override_keys() -> list[str]:
    from mypt.recipe import Recipe, class_fields

    recipe = Recipe()
    keys = [
        f"{section}.{key}" for section, values in vars(recipe).items() if is_dataclass(values) for key in vars(values)
    ]
    keys += [f"training.{key}" for key in class_fields("transformers.training_args", "TrainingArguments")]
    return keys + [f"model.{key}" for key in MODEL] + ["x", "model", "training.", ".seed", "training.max_step"]


def options(t: Try) -> Outcome:
    """Absurd values of every option of every command, by its own parser."""
    from mypt.cli.main import build_parser

    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    base = t.rng.choice([tried for name, tried in CASES.items() if "hub" not in name and name != "download"])
    action = t.rng.choice([a for a in commands[base.words[0]]._actions if a.dest not in ("help", "debug")])
    words, word = list(base.words), t.rng.choice(WORDS)
    if action.option_strings:
        words += [action.option_strings[0], *([] if action.nargs == 0 else [word])]
    else:
        words[1 : 1 if words[1].startswith("-") else 2] = [word]  # tokenizer's may be left out
    tried = replace(base, words=tuple(words), writes=(*base.writes, "new"))
    names = (*action.option_strings, action.dest, str(action.metavar), *spelled(word))
    names += ("arguments", "current folder", "was not made by", "holds neither")  # of a blank, which no message quotes
    text = action.type is None  # of a number, NaN in a report is a fault; a path may have that name
    return t.damaged(tried, lambda: ("an option", names), (lambda ended: "") if text else not_finite)


def checkpoints(t: Try) -> Outcome:
    """Weights must be those that were written; another config.json is another model."""
    config = t.one_of(
        "evaluate", "generate", "export", "adapt", "estimate", "plan run", "inspect", "merge", "use adapter"
    )
    weights, adapter = t.one_of("evaluate", "generate", "export", "adapt"), t.one_of("merge", "use adapter")
    tried, pattern, wrong = t.rng.choice(
        (
            (config, "run/*config.json", not_finite),
            (weights, "run/model.safetensors", None),
            (CASES["verify run"], "run/checkpoint-*/*.[ps][ta]*", None),
            (adapter, "lora/adapter_config.json", not_finite),
            (adapter, "lora/adapter_base.json", None),
            (adapter, "lora/adapter_model.safetensors", None),
            (CASES["inspect adapter"], "lora/adapter*", not_finite),
        )
    )
    return t.damaged(tried, lambda: t.harm(pattern, within=1_000), wrong)


def states(t: Try) -> Outcome:
    t.recovers, newest = True, "run/checkpoint-4/"
    files = [f"{newest}{name}" for name in ("*.pt", "*.pth", "*.safetensors", "*.json")]
    files += [f"{newest}trainer_state.json"] * 4 + ["run/recipe.yaml", "run/*.safetensors", "run/*.json*"]
    return t.damaged(CASES["resume"], lambda: t.harm(*files))


def tokenizers(t: Try) -> Outcome:
    """Another tokenizer is as good as any, except for a dataset that was made with its own."""
    tried = t.one_of("tokenizer", "prepare again", "append", "append", "generate", "export")
    folder = "run" if "run" in tried.reads else "data"
    files = (f"{folder}/tokenizer.json", f"{folder}/tokenizer.json", f"{folder}/tokenizer_config.json")
    return t.damaged(tried, lambda: t.harm(*files), None if "append" in tried.words else not_finite)


class Canary:
    """What unpickles by making a file: harmless, and code all the same."""

    def __reduce__(self) -> tuple:
        return open, (f"../beyond/{CANARY}", "w")


def code(t: Try) -> Outcome:
    """Pickles and Python where a command may meet them, and a shard outside of its dataset."""
    where = t.rng.choice(list(CODE))
    names, harm = CODE[where]
    t.recovers = where == "state"

    def hide() -> Harm:
        harm(t.world.here, t.rng)
        return f"code or a path that leads out: {where}", ()

    wrong = (lambda ended: "a file outside of the dataset was taken for its own") if where == "shard" else None
    wrong = not_finite if where in ("auto_map", "tokenizer") else wrong
    return t.damaged(t.one_of(*names.split(", ")), hide, wrong)


def evil_state(here: Path, rng: random.Random) -> None:
    import torch

    path = here / "run" / "checkpoint-4" / rng.choice(("optimizer.pt", "scheduler.pt", "rng_state.pth"))
    torch.save({"state": Canary()}, path) if rng.random() < 0.5 else path.write_bytes(pickle.dumps(Canary()))


def evil_weights(folder: Path, name: str) -> None:
    import torch

    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({"model.embed_tokens.weight": Canary()}, folder / name)


def evil_code(path: Path, **more: object) -> None:
    """Let a JSON file name classes of Python files beside it, and replace those that are there."""
    names = {"AutoConfig": "evil.MyPTConfig", "AutoModelForCausalLM": "evil.MyPTForCausalLM"}
    names |= {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": names} | more))
    for name in ("evil.py", "modeling_mypt.py", "configuration_mypt.py", "custom_generate/generate.py"):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_text(f"open('../beyond/{CANARY}', 'w')\nfrom mypt.models.modeling_mypt import *\n")


def shard_outside(here: Path, rng: random.Random) -> None:
    path, outside = here / "data" / "dataset_metadata.json", here.parent / "beyond" / "shard.bin"
    content = json.loads(path.read_text())
    shard = content["splits"]["train"]["shards"][0]
    shutil.copy2(path.parent / shard["file"], outside)
    shard["file"] = rng.choice(("../../beyond/shard.bin", str(outside), "train/../../../beyond/shard.bin"))
    path.write_text(json.dumps(content))


# where: (commands that meet it, what puts it into the trial folder)
CODE: dict[str, tuple[str, Callable[[Path, random.Random], object]]] = {
    "state": ("resume", evil_state),
    "weights": (
        "evaluate, generate, export, adapt, inspect",
        lambda here, _: evil_weights(here / "run", "pytorch_model.bin"),
    ),
    "adapter": (
        "merge, use adapter, inspect adapter",
        lambda here, _: evil_weights(here / "lora", "adapter_model.bin"),
    ),
    "auto_map": (
        "evaluate, generate, export, adapt, inspect, plan run",
        lambda here, rng: evil_code(here / "run/config.json", model_type=rng.choice(("mypt", "evil"))),
    ),
    "tokenizer": (
        "generate, export, tokenizer, append, prepare again",
        lambda here, _: [evil_code(path, tokenizer_class="Evil") for path in here.glob("*/tokenizer_config.json")],
    ),
    "nanoGPT": ("convert", lambda here, _: (here / "nano/meta.pkl").write_bytes(pickle.dumps({"stoi": Canary()}))),
    "shard": ("verify, train, append, subset, evaluate", shard_outside),
}


HUB_WAYS = ("half of each file", "other bytes", "500", "404", "a page", "a loop", "file://", "nothing")


def hub_lists(t: Try) -> Outcome:
    """What a hub says of its files: damaged JSON, names that lead out, other bytes than announced."""
    from huggingface_hub import constants

    tried = t.one_of("download", "download", "hub model", "hub text")
    hub, whole, cache = t.world.hub, t.world.root / "hub.whole", Path(constants.HF_HUB_CACHE)
    folder = hub / ("datasets/me/texts" if "hf://me/texts" in tried.words else "models/me/run")

    def reset() -> None:
        for path in (hub, cache):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, hub)

    def harm() -> Harm:
        reset()
        way = t.rng.choice(("json", "json", "name", "name", "name", *HUB_WAYS))
        if way == "json":
            way, _ = damage_json(t.rng, folder / t.rng.choice(("info.json", "tree.json")))
        elif way == "name":
            name, more = t.rng.choice(NAMES).format(beyond=t.world.beyond), t.rng.random() < 0.7
            way = f"a file named {name[:40]!r}"
            for listing, key in (("info.json", "rfilename"), ("tree.json", "path")):
                content = json.loads((folder / listing).read_text())
                entries = content["siblings"] if listing == "info.json" else content
                entries[-1:] = [*(entries[-1:] if more else []), entries[-1] | {key: name}]
                (folder / listing).write_text(json.dumps(content))
        else:
            (hub / "way").write_text(way)
        return f"hub: {way}", ("hub", "me/", "model.safetensors")

    reset()
    t.world.want(tried)
    return t.damaged(tried, harm)


WRITERS = ("prepare", "prepare by two", "new tokenizer", "train", "adapt", "export", "merge", "append", "subset")


def disks(t: Try) -> Outcome:
    """A disk that fills up; when there is room again, the same command."""
    tried = t.one_of(*WRITERS)
    want, here, t.recovers = t.world.want(tried), t.world.here, True
    t.world.clear()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", here], check=True)
    try:
        t.world.fill(tried.reads)
        disk = os.statvfs(here)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        room = t.rng.randrange(0, int(1.1 * t.world.grown[tried]), 4096)
        subprocess.run(["mount", "-o", f"remount,size={used + room}", here], check=True)
        t.ready()
        ended, names = t.world.run(tried.words), ("disk", "space", "room")
        outcome = t.judge(tried, f"{room:,} bytes of room", ended, names, lambda: "")
        if outcome.verdict in FAULTS:
            return outcome
        subprocess.run(["mount", "-o", "remount,size=1g", here], check=True)
        return t.again(tried, want, f"{outcome.verdict} with {room:,} bytes of room, then all")
    finally:
        subprocess.run(["umount", "-l", here], check=True)


def kills(t: Try) -> Outcome:
    """SIGKILL at any moment, to the process or to all that it started; then the same command."""
    tried = t.one_of(*WRITERS, "resume")
    want, t.recovers = t.world.want(tried), True
    t.world.clear(tried.reads)
    t.ready()
    told = []
    for _ in range(t.rng.choice((1, 1, 2))):
        moment, only_parent = t.rng.uniform(0, t.world.seconds[tried]), t.rng.random() < 0.3
        pid = start((*tried.words, *(tried.again if told else ())), t.world.here, t.world.log)
        wait(pid, t.world.log, moment, only_parent)
        told.append(f"killed after {moment:.3f} s")
    return t.again(tried, want, ", ".join(told))


def pairs(t: Try) -> Outcome:
    """Two commands into one folder at once: one of them has it, and its result is whole."""
    seed = " --training.seed={}"
    first, second = t.rng.choice(
        (
            [case(" ".join(CASES["train"].words) + seed.format(n), "recipe.yaml data", "new") for n in (1, 2)],
            [case(f"export {model} --to qwen3 --out new", "run", "new") for model in ("run", "run/checkpoint-2")],
            [CASES["resume"]] * 2,
            [CASES["prepare"], CASES["prepare again"]],
            [case(f"subset data --out new --tokens 4000 --seed {n}", "data", "new") for n in (1, 2)],
            [CASES["merge"], CASES["export"]],
        )
    )
    wants = [t.world.want(tried) for tried in (first, second)]
    t.world.clear(sorted({*first.reads, *second.reads}))
    t.ready()
    delay = t.rng.choice((0, 0, 0, 0.02, 0.1, 0.3, 0.8, 1.6))
    logs = [t.world.root / f"log{n}" for n in (1, 2)]
    pids = [start(first.words, t.world.here, logs[0])]
    time.sleep(delay)
    pids.append(start(second.words, t.world.here, logs[1]))
    ends = [wait(pid, log) for pid, log in zip(pids, logs, strict=True)]
    told = f"{first}  [{delay} s before {second}]"
    done = [want for want, ended in zip(wants, ends, strict=True) if ended.code == 0]
    got = t.world.result(first, ends[0], t.before)
    wrong = "" if any(not want.differs(got) for want in done) else "".join(want.differs(got) for want in done[:1])
    for tried, ended in zip((first, second), ends, strict=True):
        outcome = t.judge(tried, "", ended, ("another process", "new", "run"), lambda: wrong)
        if outcome.verdict in FAULTS:
            return Outcome(told, outcome.verdict, outcome.why)
    if not done:
        return Outcome(told, "lost", "neither of the two ended with 0")
    return Outcome(told, "silent", left) if (left := t.left_over()) else Outcome(told, "right")


KINDS: dict[str, Callable[[Try], Outcome]] = {
    "manifests": manifests, "recipes": recipes, "overrides": overrides, "options": options, "checkpoints": checkpoints,
    "states": states, "tokenizers": tokenizers, "code": code, "hub": hub_lists, "disks": disks, "kills": kills,
    "pairs": pairs,
}  # fmt: skip


# ---- the campaign ----


def may_mount(root: Path) -> bool:
    """Whether small file systems can be made here."""
    (root / "mount").mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root / "mount"], capture_output=True).returncode == 0
    return made and subprocess.run(["umount", root / "mount"]).returncode == 0


def campaign(
    world: World, kinds: Sequence[str], seed: int, minutes: float, tries: int
) -> Iterator[tuple[str, int, Outcome]]:
    """Each kind has its share of the time, and what those before it left of theirs."""
    end = time.monotonic() + 60 * minutes
    for place, kind in enumerate(kinds):
        until = time.monotonic() + (end - time.monotonic()) / (len(kinds) - place)
        for number in range(tries):
            if time.monotonic() > until and number:
                break
            yield kind, number, one(world, kind, number, seed)


def one(world: World, kind: str, number: int, seed: int) -> Outcome:
    return KINDS[kind](Try(world, random.Random(f"{seed} {kind} {number}")))


def report(found: dict[str, list[Outcome]]) -> None:
    verdicts = GOOD + FAULTS
    print("| kind | tried |" + "".join(f" {verdict} |" for verdict in verdicts))
    print("|---|" + "---:|" * (1 + len(verdicts)))
    rows = {**found, "all": list(itertools.chain(*found.values()))}
    for kind, outcomes in rows.items():
        count = Counter(outcome.verdict for outcome in outcomes)
        print(f"| {kind} | {len(outcomes):,} |" + "".join(f" {count[verdict]:,} |" for verdict in verdicts))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30, help="for all kinds together (%(default)s)")
    parser.add_argument("--tries", type=int, default=10_000, help="of each kind at most")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--only", metavar="KIND:N", help="repeat this try, and show what the commands print")
    parser.add_argument("--json", action="store_true", help="print every outcome as a line of JSON")
    options = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    hub, variables = serve_hub(root / "hub")
    os.environ.update(variables, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DOWNLOAD_TIMEOUT="5")
    try:
        import_all()
        world = World(root)
        if options.only:
            world.shown = True
            kind, number = options.only.split(":")
            outcome = one(world, kind, int(number), options.seed)
            print(f"{outcome.verdict}: {outcome.tried}\n{outcome.why}")
            return outcome.verdict in FAULTS
        skipped = {} if may_mount(root) else {"disks": "mounting a small file system needs root"}
        kinds = [kind for kind in options.kinds if kind not in skipped]
        found: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
        for kind, number, outcome in campaign(world, kinds, options.seed, options.minutes, options.tries):
            found[kind].append(outcome)
            if options.json:
                print(json.dumps({"kind": kind, "number": number} | vars(outcome)), flush=True)
            elif outcome.verdict in FAULTS:
                print(f"{outcome.verdict}: {outcome.tried}\n  {outcome.why}", flush=True)
                print(f"  python scripts/faults.py --seed {options.seed} --only {kind}:{number}", flush=True)
        if not options.json:
            report(found)
        for kind, reason in skipped.items():
            print(f"{kind}: skipped, {reason}", file=sys.stderr)
        return any(outcome.verdict in FAULTS for outcomes in found.values() for outcome in outcomes)
    finally:
        os.kill(hub, signal.SIGTERM)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
