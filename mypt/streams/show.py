"""What a stream gives, for people to read: windows as text, and the ledger that a checkpoint implies."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mypt.errors import DataError
from mypt.streams.ledger import Ledger
from mypt.streams.timeline import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ShownWindow:
    """One training sample: its number, the place of its first token in the split, its input ids and their text."""

    sample: int
    first_token: int
    input_ids: list[int]
    text: str


def decoded_windows(
    directory: str | Path, tokenizer: "PreTrainedTokenizerFast", count: int, *, block_size: int, seed: int = 0
) -> list[ShownWindow]:
    """Samples 0 .. count - 1 of the train split, as a model with this block size and seed gets them; EOS is shown.

    Raises DataError if `count` is below 1 or the split is shorter than one window.
    """
    from mypt.streams.shard_stream import ShardStream

    if count < 1 or block_size < 1:
        raise DataError(f"{count} windows of {block_size} tokens were asked for; give 1 or more of each")
    stream = ShardStream(directory, block_size=block_size, seed=seed, micro_batch_size=None)
    _, starts = stream.places(np.arange(count))
    shown = []
    for sample, (start, window) in enumerate(zip(starts.tolist(), stream, strict=False)):
        ids = window["input_ids"].tolist()
        text = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        shown.append(ShownWindow(sample, start, ids, text))
    return shown


def saved_ledger(state: dict) -> list[dict]:
    """What each source had given when a stream's state was saved; that of a `JitStream` records it."""
    if "seen" in state:
        return state["seen"]
    ledger = Ledger([Source(**source) for source in state["sources"]], state["block_size"], state["events"])
    return [asdict(seen) for seen in ledger.seen(state["next_sample"])]
