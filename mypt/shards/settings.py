"""The settings of a preparation: checked, comparable, and kept in the metadata of the dataset."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from mypt.errors import DataError
from mypt.json_files import Positive, Rule, Wrong
from mypt.text.bad_records import ON_ERROR, OnFault, ignore, stop
from mypt.text.clean import Cleaner
from mypt.tokenization.train import SMALLEST_VOCABULARY, TRAINED

DOCUMENTS = ("file", "block", "line")
_TRAINING = {name for kind in TRAINED.values() for name in kind.settings}
_SPLITTING = ("tokens_per_shard", "val_fraction", "val_split")
_READING = ("text_column", "document", "normalize", "filter", "dedup", "near_dedup", "lowercase")


@dataclass(frozen=True)
class PrepareSettings:
    """All that decides the bytes of a dataset, except the contents of its sources."""

    tokenizer: str  # bpe, char, gpt2, or the hash of any other
    vocab_size: int | str = "auto"  # ids of a bpe
    min_vocab_size: int = 5_000  # bounds of an automatic one
    max_vocab_size: int = 50_000
    tokenizer_train_examples: int = 10_000  # of at most 10,000 characters
    seed: int = 42  # picks them
    text_column: str = "text"
    document: str | None = (
        None  # file, block, line; None: files, and blocks for text files above 1 MB unless split by tail
    )
    normalize: bool = True  # Unicode NFC, line ends, no blanks at line ends
    filter: str | None = "document"  # what is dropped if it is empty or no text: a document, a line, or nothing
    dedup: str | None = "document"  # what may occur once only: a document, a line, or (None) neither
    near_dedup: float | None = None  # estimated Jaccard similarity from which a document counts as a copy
    lowercase: bool = False
    max_documents: int | None = None  # to read
    tokens_per_shard: Positive = 10_000_000
    val_fraction: Annotated[float, Rule(lambda share: 0 <= share < 1, "0 or more, and below 1")] = 0.1
    val_split: str = "hash"  # a document by the hash of its text; tail: the last part of the text
    on_error: str = "stop"  # at a record that cannot be read; skip: leave it out and report it

    @classmethod
    def of(cls, tokenizer: str, **given: Any) -> "PrepareSettings":
        """Checked settings. `normalize` is off by default with val_split tail, which keeps the text as it is; `filter`
        and `dedup` may be True or False. Raises DataError for a value out of range.
        """
        for name in ("filter", "dedup"):
            if isinstance(given.get(name), bool):
                given[name] = "document" if given[name] else None
        if given.get("normalize") is None:
            given["normalize"] = given.get("val_split") != "tail"
        settings = cls(tokenizer, **given)
        settings.check()
        return settings

    def check_fields(self) -> None:
        """As `check`, for settings that are read from a file. Raises Wrong."""
        try:
            self.check()
        except DataError as error:
            raise Wrong(str(error)) from None

    def check(self) -> None:
        """Raise DataError for the first value that is out of range, naming the range."""
        numbers = ("tokenizer_train_examples", "tokens_per_shard", "max_documents")
        wrong = {name: "1 or more" for name in numbers if getattr(self, name) is not None and getattr(self, name) < 1}
        if not 0 <= self.val_fraction < 1:
            wrong["val_fraction"] = "0 (no val split) or more, and below 1"
        if self.near_dedup is not None and not 0 < self.near_dedup <= 1:
            wrong["near_dedup"] = "a similarity above 0, at most 1"
        choices = {
            "val_split": ("hash", "tail"),
            "document": (None, *DOCUMENTS),
            "filter": (None, "document", "line"),
            "dedup": (None, "document", "line"),
            "on_error": ON_ERROR,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                wrong[name] = " or ".join(str(choice) for choice in allowed)
        if self.vocab_size != "auto" and not (
            isinstance(self.vocab_size, int) and self.vocab_size >= SMALLEST_VOCABULARY
        ):
            wrong["vocab_size"] = f"auto or {SMALLEST_VOCABULARY} or more (256 bytes and EOS)"
        elif self.vocab_size != "auto" and "vocab_size" not in self._of_tokenizer():
            wrong["vocab_size"] = "left out: only --tokenizer bpe is trained to a size"
        if not SMALLEST_VOCABULARY <= self.min_vocab_size <= self.max_vocab_size:
            wrong["min_vocab_size"] = f"from {SMALLEST_VOCABULARY} to max_vocab_size ({self.max_vocab_size})"
        for name, expected in wrong.items():
            raise DataError(f"{name} is {getattr(self, name)!r}; it must be {expected}")

    def cleaner(self) -> Cleaner:
        return Cleaner(normalize=self.normalize, lowercase=self.lowercase, filter=self.filter)

    @property
    def on_fault(self) -> OnFault:
        """The action for a record that cannot be read, where nothing is reported."""
        return ignore if self.on_error == "skip" else stop

    def deciding(self) -> dict[str, Any]:
        """Names and values, without those of a tokenizer that is not trained, and without `on_error`: where nothing
        was skipped it decides nothing.
        """
        left_out = {"on_error", *_TRAINING} - self._of_tokenizer()
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def _of_tokenizer(self) -> set[str]:
        """Names of the settings that decide this kind of tokenizer; none of one that is not trained."""
        return set(TRAINED[self.tokenizer].settings) if self.tokenizer in TRAINED else set()

    def training(self) -> dict[str, Any]:
        """The settings that decide a trained tokenizer."""
        return {name: value for name, value in self.deciding().items() if name not in _SPLITTING}

    def reading(self) -> dict[str, Any]:
        """The settings that decide the documents of a unit."""
        return {name: getattr(self, name) for name in _READING}
