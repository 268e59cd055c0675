"""Errors for the user: each message states what was given, what was expected and what to do next."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The recipe key that does what an option of `mypt prepare` does.
RECIPE_KEYS = {
    "--source": "data.train",
    "--text-column": "data.text_column",
    "--val-fraction": "data.val_fraction",
    "--val-split": "data.val_split",
    "--max-documents": "data.max_train_examples",
    "--dtype": "data.dtype",
    "--tokenizer": "tokenizer.name",
    "--vocab-size": "tokenizer.vocab_size",
    "--min-vocab-size": "tokenizer.min_vocab_size",
    "--max-vocab-size": "tokenizer.max_vocab_size",
    "--tokenizer-train-examples": "tokenizer.train_examples",
    "--retrain": "tokenizer.retrain",
    "--cache-dir": "data.cache_dir",
    "--cache-limit": "data.cache_limit",
    "--out": "training.output_dir",
}
# Options without a recipe key: the text must be prepared by the command.
PREPARE_ONLY = (
    "--document", "--normalize", "--no-normalize", "--filter", "--no-filter", "--dedup", "--no-dedup", "--near-dedup",
    "--lowercase", "--on-error", "--tokens-per-shard", "--seed", "--workers", "--show-dropped",
)  # fmt: skip
# A command line with its own options stays as it is, to the end of the clause or of the quotation.
_COMMAND_OR_OPTION = re.compile(r"`[^`]*`|\bmypt [a-z]+ [^;:,)`]*|(?<![\w-])--[a-z][a-z-]*(?![\w.-])(?!\.\w)")
_IN_A_RECIPE: ContextVar[bool] = ContextVar("in_a_recipe", default=False)


@contextmanager
def recipe_wording() -> Iterator[None]:
    """Inside the block, messages name the keys of a recipe instead of the options of `mypt prepare`."""
    token = _IN_A_RECIPE.set(True)
    try:
        yield
    finally:
        _IN_A_RECIPE.reset(token)


def worded(message: str) -> str:
    """A message for the user, in the terms of a recipe within `recipe_wording`."""
    return _COMMAND_OR_OPTION.sub(_in_recipe_terms, message) if _IN_A_RECIPE.get() else message


def _in_recipe_terms(match: re.Match) -> str:
    option = match[0]
    if option in PREPARE_ONLY:
        return f"`mypt prepare {option}`"
    return RECIPE_KEYS.get(option, option)


def shown(value: object, limit: int = 80) -> str:
    """`value` as a message quotes it: its repr, or the beginning of one of more than `limit` characters."""
    try:
        text = repr(value if not isinstance(value, str) else value[: 2 * limit])
    except ValueError:  # an int of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# The secret parts of a text: user and password, or the query, of a URL (a signature, a token); tokens by their form. A
# name before @ is none in hf:// (a revision follows) and abfs:// (it is the container); a number before / is a port.
_SECRETS = (
    (re.compile(r"(?<!hf)(?<!abfs)(://)([^?#\s@:]*:(?!\d{1,5}/)[^?#\s]*|[^/?#\s@]+)@"), r"\1***@"),
    (re.compile(r"(?<=://)([^?\s]*)\?[^\s#'\"]+"), r"\1?***"),
    (re.compile(r"\b((AccountKey|SharedAccessSignature|sig|access_token)=)[^;&\s'\"]+"), r"\1***"),
    (re.compile(r"\b(hf_|gh[pousr]_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{16,}"), "***"),
    (re.compile(r"\b(sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}\b)"), "***"),
)


def chain(error: BaseException) -> list[BaseException]:
    """An error and the errors that caused it."""
    found = [error]
    while (following := found[-1].__cause__ or found[-1].__context__) and following not in found:
        found.append(following)
    return found


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def mask_secrets(text: str) -> str:
    """A text in which what looks secret is `***`: login and query of an address, tokens and keys by their form."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def without_secrets(text: str) -> str:
    """As `mask_secrets`, for messages: logins and queries are left out."""
    return re.sub(r"\?\S+", "", mask_secrets(text).replace("://***@", "://"))


class MyPTError(Exception):
    """Bad input or a refused request; the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, message: object):
        super().__init__(worded(str(message)))


class RecipeError(MyPTError):
    """A recipe that cannot be read: unknown key, wrong type, missing value."""


class DataError(MyPTError):
    """Text, a dataset directory or a token stream that cannot be used as asked."""


class TokenizerError(MyPTError):
    """A tokenizer that is missing, damaged or does not belong to the data or the model."""


class CheckpointError(MyPTError):
    """A run folder or a checkpoint that is missing, incomplete or belongs to another run."""


class UnreadableCheckpoint(CheckpointError):
    """A checkpoint that is complete and could not be loaded, for `reason`."""

    def __init__(self, checkpoint: str, reason: str):
        super().__init__(f"{checkpoint} cannot be loaded: {reason}")
        self.checkpoint, self.reason = checkpoint, reason


class FolderInUse(MyPTError):
    """A folder that another process is writing; the message names the host and the process."""


class Diverged(MyPTError):
    """A loss, a gradient or weights that are NaN or infinite."""


class CheckFailed(MyPTError):
    """A check that did not pass on valid input, or a declined question.

    Attributes:
        reason: One word for programs, as `result.json` has it.
    """

    exit_code = 1

    def __init__(self, message: object, reason: str = "check"):
        super().__init__(message)
        self.reason = reason


class Interrupted(MyPTError):
    """Training that a signal ended after saving a checkpoint; exits with 128 + the signal's number, as shells do."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
