"""Read the tokenizers that the original MyPT and nanoGPT wrote, as plain values."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from mypt.errors import TokenizerError
from mypt.json_files import LARGER, Rule, Text, check, read_json

TOKENIZER_STATE_NAME = "tokenizer_state.json"
_GPT2_SIZE = 50_257
_SPECIAL_KEYS = ("special_token_encoder", "special_tokens", "added_special_tokens", "added_tokens")
_Id = Annotated[int, Rule(lambda id: 0 <= id < 2**32, "an id")]
_Special = list[Text] | dict[Text, _Id] | dict[str, Text] | None


class _State(TypedDict, total=False):
    """The file of the original's, as far as it is used."""

    chars: list[Text] | None
    base_vocab_size: _Id | None
    special_token_encoder: _Special
    special_tokens: _Special
    added_special_tokens: _Special
    added_tokens: _Special


@dataclass(frozen=True)
class TokenizerState:
    """The values that decide the ids: `chars` have 0, 1, 2, ... (None: ids are GPT-2's), special tokens those named."""

    chars: tuple[str, ...] | None
    special_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "gpt2" if self.chars is None else "char"

    @property
    def size(self) -> int:
        """Ids that the data can have: all are below it."""
        size = _GPT2_SIZE if self.chars is None else len(self.chars)
        return max([size, *(id + 1 for id in self.special_tokens.values())])


def find_state(directory: Path) -> TokenizerState | None:
    """The state in a directory of the original's (a dataset or a bundle) or of nanoGPT's; None if it holds none.

    The original's is `tokenizer_state.json`, of a bundle `tokenizer.json`; where a dataset's metadata merely names the
    kind, that must be gpt2. nanoGPT's is `meta.pkl`, without which its data are GPT-2 ids.
    Raises TokenizerError for one that is damaged.
    """
    if (directory / "tokenizer_config.json").is_file():  # a tokenizer of today's
        return None
    for name, keys in (
        (TOKENIZER_STATE_NAME, ("token_kind", "kind")),
        ("tokenizer.json", ("token_kind",)),
        ("dataset_metadata.json", ("tokenization", "token_kind", "tokenizer_kind")),
    ):
        path = directory / name
        if path.is_file() and (content := _read_json(path)).keys() & set(keys):
            return parse_state(content, str(path), next(content[key] for key in keys if key in content))
    if (directory / "meta.pkl").is_file():
        return _nanogpt_state(directory / "meta.pkl")
    return TokenizerState(None) if (directory / "train.bin").is_file() else None


def parse_state(content: dict[str, Any], where: str, kind: str) -> TokenizerState:
    """The original's tokenizer state, {"token_kind": "char", "chars": [...]} or of kind gpt2, special tokens included.

    They may be a list, or an object of texts to ids or of names to texts; without ids they follow the vocabulary.
    """
    state = check(content, _State, where, TokenizerError)
    chars = state.get("chars")
    if kind not in ("char", "gpt2") or (kind == "char" and not chars):
        raise TokenizerError(f"{where} is of kind {kind!r} with {len(chars or ())} characters; expected gpt2, or char "
                             f"with its list of characters")  # fmt: skip
    size = state.get("base_vocab_size") or (len(chars) if kind == "char" else _GPT2_SIZE)
    found = next((state[key] for key in _SPECIAL_KEYS if state.get(key)), {})
    texts = found if isinstance(found, list) else [text for text in found.values() if isinstance(text, str)]
    special = {text: size + place for place, text in enumerate(texts)} if texts else dict(found)
    if kind == "char":
        ids = {text: id for id, text in enumerate(chars)} | special
        if len(set(ids.values())) < len(ids) or len(set(chars)) < len(chars):
            raise TokenizerError(f"{where} names a character or an id twice, so that an id is lost; restore the file")
    return TokenizerState(tuple(chars) if kind == "char" else None, special)


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _nanogpt_state(path: Path) -> TokenizerState:
    try:
        with open(path, "rb") as file:
            letters = _PlainUnpickler(file).load()["itos"]
        return TokenizerState(tuple(letters[id] for id in range(len(letters))))
    except Exception as error:
        raise TokenizerError(f"{path} is no character table of nanoGPT's ({error}); name the tokenizer") from None


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, object], TokenizerError, largest=LARGER)
