"""Add a domain's words to a tokenizer: text without them keeps its ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mypt.errors import TokenizerError
from mypt.files import require_file
from mypt.folders import contents, new_folder
from mypt.tokenization.encode import encode_documents
from mypt.tokenization.load import essence, largest_id, load_tokenizer, save_tokenizer, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def add_tokens(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[str]:
    """Give each text that is not one token already an id, from the largest on, in place; returns these texts.

    Each is found literally and before anything else, inside words too; the longest wins. Raises TokenizerError for an
    empty or blank text.
    """
    from tokenizers import AddedToken

    texts = list(dict.fromkeys(texts))
    if blank := [text for text in texts if not text.strip()]:
        raise TokenizerError(f"{blank[0]!r} cannot be a token: a text that is not blank was expected")
    pieces = encode_documents(tokenizer, texts)
    new = [text for text, ids in zip(texts, pieces, strict=True) if len(ids) > 1]
    # Plain, not special: special tokens are never found in the text of a dataset.
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in new])
    return new


def extend_tokenizer(base: str | Path, texts: Iterable[str], out: str | Path) -> list[str]:
    """Write the tokenizer of `base` with `texts` added to the directory `out`; returns those that got an id.

    Raises TokenizerError if nothing is to be added, or `out` holds anything but this very tokenizer.
    """
    tokenizer = load_tokenizer(base)
    texts = list(texts)
    new = add_tokens(tokenizer, texts)
    if not new:
        raise TokenizerError(
            f"{base} has one token for each of the {len(texts)} texts already; name others, or use it as it is"
        )
    out = Path(out)
    if out.exists() and (not out.is_dir() or contents(out)):
        if not (out / "tokenizer.json").is_file() or tokenizer_hash(load_tokenizer(out)) != tokenizer_hash(tokenizer):
            raise TokenizerError(f"{out} holds something else; choose another --out")
        return new
    with new_folder(out) as folder:
        save_tokenizer(tokenizer, folder)
    return new


def added_pieces(
    base: PreTrainedTokenizerFast, extended: PreTrainedTokenizerFast
) -> tuple[list[str], list[list[int]]] | None:
    """The tokens that `extended` has beyond `base`, by id, and the ids of `base` that each was spelled in.

    None unless it is `base` with tokens added after its largest id: only then do equal ids mean equal text.
    """
    first, second = (essence(t.backend_tokenizer.to_str()) for t in (base, extended))
    old, new = first.pop("added_tokens"), second.pop("added_tokens")
    if first != second or new[: len(old)] != old:
        return None
    added = new[len(old) :]
    start = largest_id(base) + 1
    if [token["id"] for token in added] != list(range(start, start + len(added))):
        return None
    texts = [token["content"] for token in added]
    return texts, [ids.tolist() for ids in encode_documents(base, texts)]


def read_tokens(names: Iterable[str]) -> list[str]:
    """Texts as the command line gives them: each is a token, or a file with one token a line, blanks included.

    Raises TokenizerError for a file that is not UTF-8.
    """
    found = []
    for name in names:
        try:
            is_file = Path(name).exists() and not Path(name).is_dir()
        except (OSError, ValueError):  # too long for a file's name, or no name at all
            is_file = False
        if is_file:
            require_file(name)
        try:
            found += Path(name).read_text(encoding="utf-8").splitlines() if is_file else [name]
        except UnicodeDecodeError:
            raise TokenizerError(f"{name} is not UTF-8 text; a file with one token a line was expected") from None
    return [text for text in found if text]
