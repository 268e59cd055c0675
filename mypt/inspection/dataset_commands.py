"""List the commands that make a dataset directory again, and the texts they read, from its metadata."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

from mypt.checkpoints.environment import RecordedDataset, masked
from mypt.errors import MyPTError
from mypt.shards.format import METADATA_NAME, Manifest, read_manifest
from mypt.shards.settings import PrepareSettings

_FLAGS = ("lowercase",)  # options of `mypt prepare` without a value
_TURNED_OFF = ("filter", "dedup")  # None: --no-filter, --no-dedup
_READING = ("text_column", "document", "val_split", "max_documents")  # decide which units a source has


def recorded_datasets(uses: dict[str, list[str]], manifests: dict[str, Manifest]) -> list[RecordedDataset]:
    """Record a run's dataset directories, and those that they were made with, for environment.json.

    uses: {directory: what it is for}. manifests: of these directories; others are read where they are here. An entry
    comes after those that its commands need.
    """
    found: dict[str, RecordedDataset] = {}

    def add(name: str, wanted: list[str], manifest: Manifest | None) -> None:
        if name in found:
            found[name]["uses"] = list(dict.fromkeys([*found[name]["uses"], *wanted]))
        elif manifest is not None:
            commands = _commands(name, manifest)
            for other in dict.fromkeys(word for command in commands for word in command[2:] if word != name):
                if (Path(other) / METADATA_NAME).is_file():
                    add(other, ["to make others"], manifests.get(other) or find_manifest(other))
            found[name] = _recorded(name, wanted, manifest, commands)

    for name, wanted in uses.items():
        add(name, wanted, manifests[name])
    return masked([*found.values()])


def find_manifest(directory: str) -> Manifest | None:
    """The manifest of a directory; None where there is no dataset of today's format, or a damaged one."""
    try:
        return read_manifest(directory)
    except MyPTError:
        return None


def _recorded(name: str, uses: list[str], manifest: Manifest, commands: list[list[str]]) -> RecordedDataset:
    appended = [source for entry in manifest.history for source in entry.get("text", ())]
    return {
        "name": name,
        "uses": uses,
        "splits": {
            split: {"tokens": part.tokens, "fingerprint": manifest.fingerprint(split)}
            for split, part in manifest.splits.items()
        },
        "tokenizer": manifest.tokenizer_hash,
        "texts": [
            {"name": text["name"], "xxh3_128": text.get("xxh3_128")} for text in [*_prepared_of(manifest), *appended]
        ],
        "reading": {key: manifest.settings[key] for key in _READING if key in manifest.settings},
        "commands": commands,
    }


def _prepared_of(manifest: Manifest) -> list[dict]:
    """The texts that `mypt prepare` made it of: the first of its sources, as many as its report counts.

    None of a dataset that was made of another one.
    """
    if not manifest.settings or any(entry["did"] != "append" for entry in manifest.history):
        return []
    left, first = manifest.report.get("documents"), []
    for source in manifest.sources if left is not None else ():
        if left == 0 and first:
            break
        first.append(source)
        left -= source["documents"]
    return first if left == 0 else []


def _commands(directory: str, manifest: Manifest) -> list[list[str]]:
    """The words of the commands that make a dataset directory, of others too where it was made of one.

    None where its metadata does not record how it was made.
    """
    commands: list[list[str]] = []
    for entry in reversed(manifest.history):
        if entry["did"] == "append":
            commands.insert(0, _append(directory, entry))
        elif entry["did"] in ("subset", "convert") and "of" in entry:
            names = ("samples", "tokens", "fraction", "val", "seed") if entry["did"] == "subset" else ()
            options = [word for name in names for word in _option(name, entry.get(name))]
            return [["mypt", entry["did"], entry["of"], "--out", directory, *options], *commands]
        else:
            return []
    sources = [source["name"] for source in _prepared_of(manifest)]
    return [_prepare(directory, manifest, sources), *commands] if sources else []


def _prepare(directory: str, manifest: Manifest, sources: list[str]) -> list[str]:
    """`mypt prepare` with the options that are not the defaults."""
    given, words = manifest.settings, ["mypt", "prepare", "--source", *sources, "--out", directory]
    tokenizer = manifest.report.get("tokenizer") or given.get("tokenizer")
    words += _option("tokenizer", None if tokenizer == "bpe" else tokenizer)
    defaults = {field.name: field.default for field in fields(PrepareSettings) if field.default is not MISSING}
    defaults["normalize"] = given.get("val_split") != "tail"
    for name, default in defaults.items():
        value = given.get(name, default)
        if value == default:
            continue
        flag = name.replace("_", "-")
        if name in _TURNED_OFF and value is None:
            words.append(f"--no-{flag}")
        elif name in _FLAGS or name == "normalize":
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += _option(name, value)
    return words + (["--on-error", "skip"] if manifest.report.get("skipped") else [])


def _append(directory: str, entry: dict) -> list[str]:
    if "of" in entry:
        return ["mypt", "append", directory, "--from", entry["of"], "--no-overlap"]
    read = entry.get("read", {})
    column = read.get("text_column")
    options = _option("text_column", None if column == "text" else column)
    options += _option("max_documents", read.get("max_documents"))
    options += ["--on-error", "skip"] if entry.get("report", {}).get("skipped") else []
    return ["mypt", "append", directory, "--source", *(text["name"] for text in entry.get("text", ())), *options]


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
