"""The files of a model that `mypt export` wrote without safetensors: GGUF and ONNX, which their own programs load."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from mypt.errors import CheckpointError
from mypt.files import xxh3_128
from mypt.json_files import Count, InnerPath, Recorded, Rule, read_json
from mypt.storage.card import export_card, written_card
from mypt.storage.store import Outgoing
from mypt.storage.upload_files import (
    CARD_NAME,
    EXPORT_NAME,
    LICENSES,
    TEXT,
    WEIGHTS,
    content_to_send,
    is_model_file,
    require_inside,
    require_no_token,
)

_OWN = re.compile(
    r"model\.gguf|Modelfile|genai_config\.json|export\.json|onnx/model\.onnx(_data)?|"
    r"additional_chat_templates/[\w-]+\.jinja"
)
EXPORTED_WEIGHTS = re.compile(r"model\.gguf|onnx/model\.onnx(_data)?")


class _Result(TypedDict):
    bits_per_byte: NotRequired[float | None]
    runtime: NotRequired[str | None]


class ExportReport(TypedDict):
    """What the rest of this package reads of export.json."""

    format: str
    dtype: str
    to: str
    parameters: Count
    differences: Annotated[dict[str, float], Rule(bool, "an object of one or more")]
    greedy_equal: bool
    result: _Result
    files: NotRequired[dict[InnerPath, Recorded]]


def are_an_export(names: Collection[str]) -> bool:
    """Whether files of these names are an export that only its own program loads; one of safetensors is a model."""
    return EXPORT_NAME in names and not any(WEIGHTS.fullmatch(name) for name in names)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, as `are_an_export` says."""
    return (folder / EXPORT_NAME).is_file() and are_an_export([path.name for path in folder.iterdir()])


def is_export_file(name: str) -> bool:
    """Whether an export has a file of this name."""
    return bool(_OWN.fullmatch(name)) or (is_model_file(name) and not WEIGHTS.fullmatch(name))


def is_replaced_export(name: str) -> bool:
    """Whether an upload takes a file of this name away where the new export has none; what else is there stays."""
    return is_export_file(name) and name not in LICENSES


def read_export(folder: Path) -> ExportReport:
    """The export.json of a folder. Raises CheckpointError if it is damaged, or of a version that named no files."""
    report = read_json(folder / EXPORT_NAME, ExportReport, CheckpointError)
    if "files" not in report:
        raise CheckpointError(f"{folder / EXPORT_NAME} does not name the files of the export; export the model again")
    return report


def require_whole_export(folder: Path) -> ExportReport:
    """The export.json of a folder, whose weights are those that `mypt export` compared with the model.

    Raises CheckpointError for a file that is missing, changed, or none of an export.
    """
    report = read_export(folder)
    for name, entry in report["files"].items():
        path = folder / name
        if not is_export_file(name):
            raise CheckpointError(f"{folder / EXPORT_NAME} names {name!r}, which is no file of an export")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; export the model again")
        if path.suffix in TEXT:  # in which an upload shortens paths
            continue
        if path.stat().st_size != entry["bytes"] or xxh3_128(path) != entry["xxh3_128"]:
            raise CheckpointError(f"{path} is not the file that mypt export wrote and checked; export the model again")
    if not any(EXPORTED_WEIGHTS.fullmatch(name) for name in report["files"]):
        raise CheckpointError(f"{folder / EXPORT_NAME} names no weights; export the model again")
    return report


def export_files(folder: Path, name: str, license: str | None) -> list[Outgoing]:
    """The files that export.json names, itself, the user's own license, and a card: the user's own, or one made now.

    Raises CheckpointError as `require_whole_export`, for a link that leads out, and for a text with an access token.
    """
    from huggingface_hub import get_token

    report = require_whole_export(folder)
    names = {EXPORT_NAME, *report["files"]}
    names |= {one for one in LICENSES if (folder / one).is_file()}
    paths = {one: folder / one for one in sorted(names - {CARD_NAME})}
    require_inside(folder, [*paths.values(), folder / CARD_NAME])
    files = []
    for inside, path in paths.items():
        changed = content_to_send(path, get_token())
        files.append(Outgoing(inside, changed or path, path.stat().st_size if changed is None else len(changed)))
    own = written_card(folder)
    card = (export_card(report, name, license) if own is None else own).encode(errors="backslashreplace")
    require_no_token(folder / CARD_NAME, card, get_token())
    return sorted([*files, Outgoing(CARD_NAME, card, len(card))])


def describe_export(folder: Path) -> dict[str, str]:
    """Describe an export: {"architecture": ..., "format": ..., ...}."""
    report = read_export(folder)
    result = report["result"]
    bits = result.get("bits_per_byte")
    return {
        "architecture": report["to"],
        "parameters": f"{report['parameters']:,}",
        "format": f"{report['format']} {report['dtype']}",
        "parity": f"{max(report['differences'].values()):.1e} in a logit at most, by {result.get('runtime')}",
        **({} if bits is None else {"bits/byte": f"{bits:.4f}"}),
    }
