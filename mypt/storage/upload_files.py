"""Choose the files of a folder to upload: a model and its records, without secrets and this machine's paths."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from mypt.checkpoints.adapter import BASE_NAME, is_adapter
from mypt.checkpoints.checksums import CHECKSUMS_NAME, changed_file
from mypt.checkpoints.complete import last_complete_checkpoint
from mypt.checkpoints.evaluations import EVALUATION_NAME, PLOT_NAMES
from mypt.checkpoints.interpolated import PLOT_NAME, REPORT_NAME
from mypt.checkpoints.lineage import LINEAGE_NAME
from mypt.checkpoints.model_config import CONFIG_NAME, CONFIGS, is_model, read_config_file
from mypt.checkpoints.state import FORGETTING_NAME, LEDGER_NAME, METRICS_NAME
from mypt.checkpoints.tensors import ADAPTER_WEIGHTS, LOADABLE, read_header, weight_files
from mypt.errors import CheckpointError
from mypt.json_files import parse_json
from mypt.recipe import RESOLVED_NAME
from mypt.remote.clients import secrets
from mypt.terminal import say
from mypt.yaml12 import dump_yaml, load_yaml

WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
CARD_NAME = "README.md"
EXPORT_NAME = "export.json"  # the report of `mypt export`, which names the files
RUN_FILES = (
    LEDGER_NAME, "diagnosis.json", FORGETTING_NAME, "forgetting.png", "loss.png", METRICS_NAME, RESOLVED_NAME,
    REPORT_NAME, PLOT_NAME, EVALUATION_NAME, *PLOT_NAMES,
)  # fmt: skip
LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
# An allow-list: what is not named here (optimizer and random states, pickles, logs, a user's own files) stays.
NAMES = {
    *CONFIGS, BASE_NAME, LINEAGE_NAME, *RUN_FILES, CARD_NAME, *LICENSES, "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja",
}  # fmt: skip
_WITH_PATHS = (
    *CONFIGS, BASE_NAME, LINEAGE_NAME, "tokenizer_config.json", LEDGER_NAME, FORGETTING_NAME, RESOLVED_NAME,
    REPORT_NAME, EVALUATION_NAME, EXPORT_NAME,
)  # fmt: skip
TEXT = (".json", ".jsonl", ".yaml", ".md", ".txt", ".py", ".jinja")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
_LOGIN = re.compile(rb"://[^/\s:@]*:[^/\s@]+@")


def is_model_file(name: str) -> bool:
    """Whether a file of this name is part of a model as this package sends it, its code apart."""
    return name in NAMES or bool(WEIGHTS.fullmatch(name))


def is_replaced(name: str) -> bool:
    """Whether an upload takes a file of this name away where the new model has none; what else is there stays."""
    return name == CHECKSUMS_NAME or (is_model_file(name) and not name.startswith(("LICENSE", "NOTICE")))


def model_files(folder: Path) -> list[Path]:
    """The files to send, by name: those of `is_model_file`, the code that config.json names, the run's recipe.

    folder: a run folder, its `best`, a checkpoint or an adapter. Raises CheckpointError if it holds no model, weights
    or code are missing or cut short, or a file is a link that leads out of the folder. Weights that are not what was
    saved are named on standard error.
    """
    if not is_model(folder):
        raise CheckpointError(f"{folder} holds no model ({' or '.join(CONFIGS)}){_hint(folder)}")
    files = {path.name: path for path in sorted(folder.iterdir()) if is_model_file(path.name) and path.is_file()}
    files |= {path.name: path for path in _code(folder)}
    require_inside(folder, files.values())
    if fault := changed_file(folder, [*check_weights(folder), *LOADABLE], every=False):
        say(f"{folder}: {fault}; it is sent as it is", error=True)
    if RESOLVED_NAME not in files and (folder.parent / RESOLVED_NAME).is_file():
        files[RESOLVED_NAME] = folder.parent / RESOLVED_NAME
    return [files[name] for name in sorted(files)]


def check_weights(folder: Path) -> list[str]:
    """Names of a model's weight files. Raises CheckpointError for one that is missing or cut short."""
    names = [ADAPTER_WEIGHTS] if is_adapter(folder) else weight_files(folder)
    for name in names:
        if not WEIGHTS.fullmatch(name):
            raise CheckpointError(f"{folder}: the index of the weights names the file {name!r}; copy it again")
        if not (folder / name).is_file() or not read_header(folder / name)[1]:
            raise CheckpointError(
                f"{folder / name} is missing or shorter than its header says; weights are sent and loaded as "
                "safetensors: save or copy them again"
            )
    return names


def content_to_send(path: Path, token: str | None = None) -> bytes | None:
    """Return what is sent in place of a file that names places on this machine; None: the file as it is.

    Raises CheckpointError for a text that holds `token`, or anything of a Hugging Face token's form.
    """
    if path.suffix not in TEXT and not path.name.startswith(("LICENSE", "NOTICE")):
        return None
    content = path.read_bytes()
    require_no_token(path, content, token)
    if path.name not in _WITH_PATHS:
        return None
    is_yaml = path.name == RESOLVED_NAME
    try:
        given = load_yaml(content.decode()) if is_yaml else parse_json(content, Any, path, CheckpointError)
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it") from None
    changed = without_places(given)
    if changed == given:
        return None
    return (dump_yaml(changed) if is_yaml else json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def require_no_token(path: Path, content: bytes, token: str | None = None) -> None:
    """Raises CheckpointError for a text that holds `token`, anything of a Hugging Face token's form, or a secret of the
    environment; for a recipe also with a login in an address.
    """
    known = [secret.encode() for secret in (token, *secrets()) if secret]
    if _TOKEN.search(content) or any(secret in content for secret in known):
        raise CheckpointError(f"{path} holds an access token; take it out (and make a new one: it may be known)")
    if path.name == RESOLVED_NAME and _LOGIN.search(content):
        raise CheckpointError(f"{path} holds an address with a password; give that by the environment, and take it out")


def require_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Raises CheckpointError for a link that leads out of the folder."""
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path} is a link that leads out of {folder}; put the file itself there")


def without_places(value: object) -> object:
    """A copy in which an absolute path is the one from the current folder, or the name of what it leads to."""
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if isinstance(value, dict):
        result = {}
        for key, item in value.items():
            name, number = without_places(key), 2
            while name in result:  # two folders of one name
                name, number = f"{without_places(key)} ({number})", number + 1
            result[name] = without_places(item)
        return result
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    if ", " in text:  # sources that are streamed as one
        return ", ".join(map(_short, text.split(", ")))
    path = PureWindowsPath(text) if PureWindowsPath(text).is_absolute() else PurePosixPath(text)
    # "/s" is a word, such as a special token.
    if "\n" in text or not (text.startswith("~/") or (path.is_absolute() and len(path.parts) > 2)):
        return text
    return os.path.relpath(text) if path.is_relative_to(Path.cwd()) else path.name


def _code(folder: Path) -> list[Path]:
    """The modules that config.json's auto_map names, and their siblings that they import."""
    config = folder / CONFIG_NAME
    auto_map = read_config_file(folder).get("auto_map") or {} if config.is_file() else {}
    # "owner/name--module.Class" is code that stays in its own repository.
    named = [name for value in auto_map.values() for name in (value if isinstance(value, list) else [value])]
    wanted = [name.partition(".")[0] for name in named if name and "--" not in name]
    found: dict[str, Path] = {}
    while wanted:
        name = wanted.pop()
        path = folder / f"{name}.py"
        if name in found:
            continue
        if not name.isidentifier() or not path.is_file():
            raise CheckpointError(f"{config} names the code {path.name}, which is not there; save the model again")
        found[name] = path
        wanted += re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [*found.values()]


def _hint(folder: Path) -> str:
    if not folder.is_dir():
        return ": there is no such folder"
    newest = last_complete_checkpoint(folder)[0]
    return f": its run has not finished, but there is {newest}" if newest else "; name a run or a checkpoint folder"
