"""From a saved state to the stream that goes on: what changed in weights or data since then becomes events."""

import json
from dataclasses import replace

from mypt.errors import DataError
from mypt.shards.reader import ShardReader
from mypt.streams.mixture import Mixture
from mypt.streams.timeline import Source, Timeline


def source_of(given: tuple[object, float], reader: ShardReader) -> Source:
    """A (directory, weight) pair and its reader as the source that a state records."""
    name, weight = given
    return Source(str(name), len(reader), float(weight), len(reader.shards), reader.fingerprint)


def events_since(state: dict, now: list[Source], readers: list[ShardReader]) -> tuple[list[Source], int, list[dict]]:
    """Sources at sample 0, block size and all events of a saved state, with those that its next sample brings.

    now: the sources as they are given and found now, in the saved order; their names may differ. Raises DataError for
    data that is neither the recorded data nor an extension of it.
    """
    if len(now) != len(state["sources"]):
        raise DataError(f"the state was saved with {len(state['sources'])} sources, now there are {len(now)}")
    sources = [replace(Source(**saved), name=source.name) for saved, source in zip(state["sources"], now, strict=True)]
    events = [event for event in state["events"] if "changes" not in event]  # those are about other settings
    before = Timeline(sources, state["block_size"], events).now
    sample = state["next_sample"]
    for index, (old, source, reader) in enumerate(zip(before, now, readers, strict=True)):
        if old.fingerprint != source.fingerprint:
            _require_extension(old, source, reader)
            grown = {"tokens": source.tokens, "shards": source.shards, "fingerprint": source.fingerprint}
            events.append({"sample": sample, "appended": {"source": index, **grown}})
    weights = [source.weight for source in now]
    # Only if somebody asks for others than before: what changed them on the way must survive a restart.
    if not _same(weights, state["weights"]) and not _same(weights, [source.weight for source in before]):
        events.append({"sample": sample, "weights": weights})
    return sources, state["block_size"], events


def _same(weights: list[float], others: list[float]) -> bool:
    return Mixture(weights).counts == Mixture(others).counts


def _require_extension(old: Source, now: Source, reader: ShardReader) -> None:
    if reader.manifest.shards_of(reader.split, old.fingerprint) != old.shards:
        raise DataError(
            f"{now.name} is not the data that the state was saved with, nor an extension of it: {old.tokens:,} tokens "
            f"in {old.shards} shards ({old.fingerprint}) then, {now.tokens:,} in {now.shards} ({now.fingerprint}) now; "
            "restore its first shards (data is added with `mypt append`)"
        )


def describe(event: dict, before: list[Source]) -> str:
    """What an event changes, for people; before: the sources until then."""
    if "weights" in event:
        old, new = ({s.name: weight for s, weight in zip(before, weights, strict=True)}
                    for weights in ([s.weight for s in before], event["weights"]))  # fmt: skip
        return f"weights {json.dumps(old)} -> {json.dumps(new)}"
    grown = event["appended"]
    source = before[grown["source"]]
    return (
        f"{source.name} {source.tokens:,} -> {grown['tokens']:,} tokens ({source.shards} -> {grown['shards']} shards), "
        "the new ones from its next epoch on"
    )
