"""transformers' tokenizer of a folder or a hub repository, with the ids of its `tokenizer.json`.

For some values of `tokenizer_class` and of a model's `model_type` transformers takes only the vocabulary from that file
and builds the normalizer and the pre-tokenizer anew. The file is what counts: both are tried on text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mypt.errors import TokenizerError
from mypt.tokenization.long_text import plain_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Where two tokenizers with the same vocabulary differ if they do: blanks at the ends and in rows, line ends, letters
# with accents in both normal forms, digits, contractions, signs, scripts without blanks, characters of no script.
PROBES = (
    "", " ", "a", " a", "  a", "a  b   c ", "\n", "a\nb", "a \n b\r\n\r\nc\n\n\n", "\ta\t\tb", "a\u00a0b\u2003c\u3000d",
    "Hello World! it's IT'S we'll 'tis don't", "1 12 123 1234567890 1,234.56 3.14e-10 \u00bd\u00b2 \u0663\u0664",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \ufb01n\ufb02 \u0130I\u0131i \u00dfSS \uff21\uff22\uff11",
    "\u6f22\u5b57\u3068\u304b\u306a\u3002 \u7b80\u4f53 \ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
    "\u0434\u043e\u0431\u0440\u044b\u0439 \u0434\u0435\u043d\u044c,",
    "\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0633\u0644\u0627\u0645 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2581x\u2581 \u200b\ufeffz\u00ad", "a\x00b\x07c\x7f\ufffd",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # no\n\tif x != 0: pass\n",
    "https://a.b/c?d=e&f=%20g#h user@ex.org",
    "<s> </s> <unk> <pad> [CLS] [SEP] <0x0A> <|endoftext|> x", "AbCdEF ABCdef snake_case camelCase __init__ ....---***",
)  # fmt: skip
_DRAWN = 40  # probes made of the file's own tokens


def read_tokenizer(name: str, say: Callable[[str], object], **options) -> PreTrainedTokenizerFast:
    """`AutoTokenizer.from_pretrained(name, **options)`, or PreTrainedTokenizerFast where only that has the file's ids.

    Both read the special tokens and the chat template; AutoTokenizer reads correctly what the second one saves. `say`
    gets a line then. Raises TokenizerError if neither has the file's ids, and as AutoTokenizer does without a file.
    """
    from transformers import PreTrainedTokenizerFast

    found, file, failure = _of_named_class(name, options), _file(name), None
    if found is None or file is None or _difference(found.backend_tokenizer, file) is not None:
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
        except Exception as error:
            found, failure = None, error
        file = _file(name)
    if file is None or (found is not None and not hasattr(found, "backend_tokenizer")):
        if failure:
            raise failure
        return found
    if found is not None and (difference := _difference(found.backend_tokenizer, file)) is None:
        if _state(found.backend_tokenizer, "decoder") != _state(file, "decoder"):
            found.backend_tokenizer.decoder = file.decoder
        return found
    plain = PreTrainedTokenizerFast.from_pretrained(name, **options)
    if (left := _difference(plain.backend_tokenizer, file)) is not None:
        raise TokenizerError(
            f"the tokenizer in {name} has other ids than its tokenizer.json (for {left!r}): tokenizer_config.json "
            "changes it; make both files agree"
        )
    if failure:
        why = f"transformers cannot build the class that {name} names ({type(failure).__name__})"
    else:
        _complete(plain, found)
        why = f"transformers builds a {type(found).__name__} for {name} with other ids (for {difference!r})"
    say(f"{why}: the tokenizer is read from its tokenizer.json alone")
    return plain


def _of_named_class(name: str, options: dict[str, Any]) -> PreTrainedTokenizerFast | None:
    """The tokenizer by the class in its tokenizer_config.json; None: AutoTokenizer (which imports torch) decides."""
    import transformers
    from transformers.utils import cached_file

    def content(file: str) -> dict[str, Any]:
        path = cached_file(name, file, **options, _raise_exceptions_for_missing_entries=False)
        return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))

    try:
        config = content("tokenizer_config.json")
        named = config.get("tokenizer_class") or (None if content("config.json") else "PreTrainedTokenizerFast")
        kind = getattr(transformers, named)
        if "auto_map" in config or not issubclass(kind, transformers.PreTrainedTokenizerFast):
            return None
        return kind.from_pretrained(name, **options)
    except Exception:  # AutoTokenizer reports what is wrong, or can read it
        return None


def _file(name: str) -> Tokenizer | None:
    """The tokenizer.json of a directory or, once loaded, of a repository; None if there is none, or it is damaged."""
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    try:
        return Tokenizer.from_file(cached_file(name, "tokenizer.json", local_files_only=True))
    except Exception:
        return None


def _difference(backend: Tokenizer, file: Tokenizer) -> str | None:
    """A text whose ids differ; None if the tokenizers are equal, or no difference was found.

    A token that tokenizer_config.json gives a role (EOS) is special in `file`, too, from now on.
    """
    added = backend.get_added_tokens_decoder().values()
    read = {token.content for token in file.get_added_tokens_decoder().values() if not token.special}
    file.add_special_tokens([token for token in added if token.special and token.content in read])
    found, read = (
        {token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special}
        for tokenizer in (backend, file)
    )
    parts = ("normalizer", "pre_tokenizer", "model")
    if found == read and all(_state(backend, part) == _state(file, part) for part in parts):
        return None
    texts = [*PROBES, *(f"a {text}b" for text in sorted(found ^ read)), *_drawn(file)]
    with plain_text(backend), plain_text(file):
        for text in texts:
            if _ids(backend, text) != _ids(file, text):
                return text
    return None


def _ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except Exception:  # an unknown token was needed, and the vocabulary has none
        return None


def _state(tokenizer: Tokenizer, part: str) -> bytes | None:
    value = getattr(tokenizer, part)
    return None if value is None else value.__getstate__()


def _drawn(file: Tokenizer) -> list[str]:
    """Texts of the file's own tokens, drawn with a fixed seed."""
    draw, size = random.Random(0), file.get_vocab_size()
    return [file.decode([draw.randrange(size) for _ in range(30)], skip_special_tokens=True) for _ in range(_DRAWN)]


def _complete(plain: PreTrainedTokenizerFast, found: PreTrainedTokenizerFast) -> None:
    """Give `plain` the special tokens that the class of `found` knows by itself, where the file has them."""
    for role, token in found.special_tokens_map.items():
        known = isinstance(token, str) and plain.backend_tokenizer.token_to_id(token) is not None
        if known and getattr(plain, role, None) is None:
            plain.add_special_tokens({role: token})
