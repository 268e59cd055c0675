"""Text straight to windows: each document once per epoch over all readers; after any kill, each remaining one once."""

import itertools
import json
import random
import string
import tracemalloc
from collections import Counter
from dataclasses import asdict, replace
from glob import glob
from pathlib import Path

import pytest
import torch
import xxhash

from mypt.errors import DataError
from mypt.streams.jit_stream import JitLoader, JitStream
from mypt.streams.size import Size
from mypt.tokenization.train import build_char_tokenizer

TOKENIZER = build_char_tokenizer(string.ascii_letters + string.digits + " ")
BLOCK = 16
LAYOUTS = [(1, 0), (1, 2), (2, 0), (2, 2)]  # processes, DataLoader workers


@pytest.fixture
def corpus(tmp_path):
    """corpus(5, 40): a glob of 5 jsonl files of 40 documents, each with its number in front."""

    def write(files: int, documents: int, words=(4, 30)) -> str:
        numbers, rng = itertools.count(), random.Random(0)
        for index in range(files):
            texts = [f"{next(numbers)} {'word ' * rng.randint(*words)}end" for _ in range(documents)]
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (tmp_path / f"{index:03d}.jsonl").write_text(lines)
        return str(tmp_path / "*.jsonl")

    return write


def build(source: str, *, state=None, **options) -> JitStream:
    """A stream whose units are single files, which are too small to be units of their own."""
    stream = JitStream([source], TOKENIZER, **{"block_size": BLOCK, "shuffle_buffer": 7, **options})
    stream.units = [replace(unit, paths=(path,)) for unit in stream.units for path in unit.paths]
    if state:
        stream.resume(state)
    return stream


def texts_of(source: str) -> list[str]:
    return [json.loads(line)["text"] for path in sorted(glob(source)) for line in Path(path).read_text().splitlines()]


def lanes_of(batches: list, workers: int) -> list[list]:
    """One process's batches by the worker that made them: they take turns."""
    return [batches[worker :: max(1, workers)] for worker in range(max(1, workers))]


def numbers(batches: list) -> list[int]:
    """The numbers of the documents that a reader's windows hold from their start to their end of text, in order."""
    ids = torch.cat([batch["input_ids"].reshape(-1) for batch in batches])
    return [int(text.split()[0]) for text in TOKENIZER.decode(ids).split(TOKENIZER.eos_token)[:-1]]


def epochs_of(stream: JitStream, batches: int) -> dict[int, Counter]:
    """By epoch, how often each document was given, from a lane's windows and the places they carry."""
    pairs = list(itertools.islice(stream.batches(), batches))
    # every document is longer than a window, so that one begins in each
    epoch = {0: 0} | {place.documents: place.epoch for _, place in pairs}
    found = {}
    for index, number in enumerate(numbers([batch for batch, _ in pairs])):
        found.setdefault(epoch[index], Counter())[number] += 1
    return found


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize(
    "files, options", [(5, {}), (1, {}), (3, {"max_examples": 57}), (1, {"shuffle_buffer": 1_000})]
)
def test_every_document_comes_once_per_epoch_over_all_readers(corpus, files, options, lanes):
    source, documents = corpus(files, 24), options.get("max_examples", files * 24)
    given = {}
    for rank in range(lanes):
        for epoch, counts in epochs_of(build(source, rank=rank, world_size=lanes, **options), 3_600 // lanes).items():
            given.setdefault(epoch, Counter()).update(counts)
    assert len(given) > 4
    for epoch in range(3):
        assert given[epoch] == Counter(range(documents)), f"epoch {epoch}"


@pytest.mark.parametrize("processes, workers", LAYOUTS)
@pytest.mark.parametrize("files, options", [(6, {}), (1, {"stride": 5}), (2, {"max_examples": 30})])
def test_killed_anywhere_and_resumed_it_gives_the_batches_of_an_unbroken_run(
    corpus, files, options, processes, workers
):
    source, batches, rng = corpus(files, 20), 150, random.Random(files * 10 + workers)
    for rank in range(processes):
        layout = {"rank": rank, "world_size": processes, "micro_batch_size": 2, **options}
        unbroken = list(itertools.islice(JitLoader(build(source, **layout), workers), batches))
        joined, state = [], None
        for until in [*sorted(rng.sample(range(1, batches), 2)), batches]:
            stream = build(source, state=state, **layout)
            joined += itertools.islice(JitLoader(stream, workers), until - len(joined))
            state = json.loads(json.dumps(stream.state()))
        for index, (left, right) in enumerate(zip(unbroken, joined, strict=True)):
            assert all(torch.equal(left[name], right[name]) for name in left), f"batch {index}"
        if "stride" not in options:
            for left, right in zip(lanes_of(unbroken, workers), lanes_of(joined, workers), strict=True):
                assert numbers(left) == numbers(right)


@pytest.mark.parametrize("processes, workers", LAYOUTS)
def test_a_killed_run_sees_each_document_of_an_epoch_exactly_once(corpus, processes, workers):
    """Through the loader alone: the numbers that come out, cut into epochs of the whole corpus."""
    source, documents = corpus(1, 40), 40  # one unit: every reader gets an equal share of each epoch
    lanes = processes * max(1, workers)
    found = []
    for rank in range(processes):
        joined, state, rng = [], None, random.Random(rank)
        while len(joined) < 900 // processes:
            stream = build(source, rank=rank, world_size=processes, state=state)
            joined += itertools.islice(JitLoader(stream, workers), rng.randint(100, 300))
            state = stream.state()
        found += [numbers(batches) for batches in lanes_of(joined, workers)]
    share = documents // lanes
    for epoch in range(min(map(len, found)) // share):
        given = Counter(number for lane in found for number in lane[epoch * share : (epoch + 1) * share])
        assert given == Counter(range(documents)), f"epoch {epoch}"
    assert epoch >= 2


def test_windows_are_the_packed_documents(corpus):
    source = corpus(2, 10)
    windows = list(itertools.islice(build(source, micro_batch_size=3), 40))
    for batch in windows:
        assert list(batch) == ["input_ids", "shift_labels", "labels"]
        assert {(tensor.dtype, tensor.shape) for tensor in batch.values()} == {(torch.int64, (3, BLOCK))}
        assert torch.equal(batch["labels"], batch["input_ids"])
    inputs, targets = (torch.cat([b[name] for b in windows]).reshape(-1) for name in ("input_ids", "shift_labels"))
    assert torch.equal(inputs[1:], targets[:-1])  # no target twice, none left out
    texts = set(texts_of(source))
    read = TOKENIZER.decode(targets.new_tensor([*inputs[:1], *targets])).split(TOKENIZER.eos_token)[:-1]
    assert len(read) > 20 and set(read) == texts


def test_a_stride_repeats_what_windows_share(corpus):
    source = corpus(2, 10)
    overlapping = torch.cat([b["input_ids"] for b in itertools.islice(build(source, stride=4), 40)])
    packed = torch.cat([b["input_ids"].reshape(-1) for b in itertools.islice(build(source), 20)])
    assert torch.equal(overlapping, packed.unfold(0, BLOCK, 4)[:40])


def test_document_mask_and_single_samples(corpus):
    sample = next(iter(build(corpus(1, 10), document_mask=True, micro_batch_size=None, block_size=300)))
    assert sample["input_ids"].shape == (300,)
    ends = [-1, *torch.where(sample["input_ids"] == TOKENIZER.eos_token_id)[0].tolist()]
    assert len(ends) > 2
    expected = [at - max(end for end in ends if end < at) - 1 for at in range(300)]
    assert sample["position_ids"].tolist() == expected


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else(corpus):
    source = corpus(4, 10)
    first, again, other = (numbers(list(itertools.islice(build(source, seed=seed), 700))) for seed in (0, 0, 1))
    assert first == again != other
    assert first[:40] != first[40:80] and sorted(first[:40]) == sorted(first[40:80]) == list(range(40))
    assert first[:40] != sorted(first[:40])


def test_held_out_documents_are_those_of_the_hash_split(corpus):
    source = corpus(2, 50)
    found = {
        fraction: set(numbers(list(itertools.islice(build(source, val_fraction=fraction), 1_000))))
        for fraction in (0.0, 0.3)
    }
    texts = texts_of(source)
    kept = {i for i, text in enumerate(texts) if xxhash.xxh3_64_intdigest(text.encode()) >= 0.3 * 2**64}
    assert found == {0.0: set(range(100)), 0.3: kept} and 50 < len(kept) < 90


def test_each_process_finds_its_places_in_the_union_of_all(corpus):
    source, states, batches = corpus(1, 40), [], 30
    for rank in range(2):
        stream = build(source, rank=rank, world_size=2)
        list(itertools.islice(stream, batches))
        states.append(stream.state())
    assert [list(state["lanes"]) for state in states] == [["0"], ["1"]]
    union = states[0] | {"lanes": states[0]["lanes"] | states[1]["lanes"]}
    for rank in range(2):
        whole = itertools.islice(build(source, rank=rank, world_size=2), batches, batches + 10)
        rest = build(source, rank=rank, world_size=2, state=union)
        assert [b["input_ids"].tolist() for b in whole] == [b["input_ids"].tolist() for b in itertools.islice(rest, 10)]
        assert list(rest.state()["lanes"]) == [str(rank)]


def test_a_state_of_other_data_settings_or_readers_is_refused(corpus):
    source = corpus(2, 10)
    stream = build(source)
    next(iter(stream))
    state = stream.state()
    with pytest.raises(DataError, match=r"cannot resume .seed: 0 there, 1 now"):
        build(source, seed=1, state=state)
    with pytest.raises(DataError, match="1 processes of 1 workers, now by 1 of 2"):
        next(iter(JitLoader(build(source, state=state), 2)))
    with pytest.raises(DataError, match="1 processes of 1 workers, now by 2 of 1"):
        next(iter(build(source, state=state, rank=1, world_size=2)))
    with open(sorted(glob(source))[1], "a") as file:
        file.write(json.dumps({"text": "one more document"}) + "\n")
    with pytest.raises(DataError, match=r"cannot resume .data: "):
        build(source, state=state)


def test_moved_data_is_still_the_same_data(corpus, tmp_path):
    stream = build(corpus(2, 10))
    next(iter(stream))
    (tmp_path / "moved").mkdir()
    for path in map(Path, glob(stream.name)):
        path.rename(tmp_path / "moved" / path.name)
    build(str(tmp_path / "moved" / "*.jsonl"), state=stream.state())


def test_a_reader_without_documents_is_an_error(corpus, tmp_path):
    source = corpus(1, 3)
    assert len(numbers(list(itertools.islice(build(source, rank=2, world_size=3), 40)))) > 3
    with pytest.raises(DataError, match=r"reader 4 of 4 found no document .* use fewer processes"):
        # three documents, four readers: in no epoch is there one for the last
        next(iter(build(source, rank=3, world_size=4)))
    (tmp_path / "000.jsonl").write_text('{"text": " "}\n' * 5)
    with pytest.raises(DataError, match="reader 1 of 1 found no document to train on in 3 passes"):
        next(iter(build(source)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stride": BLOCK + 1}, "stride 17: expected 1 to block_size"),
        ({"stride": 0}, "stride 0: expected 1 to block_size"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0"),
        ({"max_examples": 0}, "max_examples is 0"),
        ({"rank": 1}, "rank 1 of 1"),
    ],
)
def test_settings_without_sense_are_refused(corpus, options, words):
    with pytest.raises(DataError, match=words):
        build(corpus(1, 3), **options)


def test_memory_is_bounded_by_the_buffer(corpus):
    source = corpus(1, 4_000, words=(400, 600))  # 10 MB
    stream = iter(build(source, shuffle_buffer=100, micro_batch_size=8, block_size=512))
    next(stream)
    tracemalloc.start()
    for _ in itertools.islice(stream, 1_500):  # more than half an epoch
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 100 texts of 2.5 kB, the tokens of 64 of them (uint32 and what the tokenizer makes of them), parsing
    assert peak < 6e6, peak


def test_the_ledger_expects_until_it_has_counted(corpus):
    """Each source has 40 documents; after an epoch their number and that of their tokens are exact."""
    source = corpus(1, 40)
    tokens = sum(len(text) + 1 for text in texts_of(source))
    assert build(source).tokens_per_epoch == 0 and build(source).seen(5)[0].coverage is None
    expected = Size(50, tokens / 40)
    stream, wrong = build(source, expected=expected), round(tokens * 50 / 40)
    assert stream.tokens_per_epoch == wrong
    assert asdict(stream.seen(10)[0]) == {
        "name": source, "samples": 10, "tokens": 10 * BLOCK, "epochs": 10 * BLOCK / wrong,
        "coverage": 10 * BLOCK / wrong, "estimated": True,
    }  # fmt: skip
    batches = -(-3 * tokens // BLOCK)
    list(itertools.islice(stream, batches))
    assert stream.size == Size(40, tokens / 40, exact=True) and stream.sources[0].tokens == tokens
    assert stream.tokens_per_epoch == wrong  # a run's length does not change
    assert stream.seen(batches)[0].epochs == batches * BLOCK / tokens and not stream.seen(batches)[0].estimated
    assert stream.state()["seen"] == [asdict(stream.seen(batches)[0])]
    again = build(source, state=json.loads(json.dumps(stream.state())))
    assert (again.expected, again.size) == (expected, stream.size)


@pytest.mark.parametrize("files, lanes", [(1, 3), (5, 2)])
def test_readers_together_count_an_epoch_exactly_once_all_were_through_it(corpus, files, lanes):
    source = corpus(files, 24)
    tokens = sum(len(text) + 1 for text in texts_of(source))
    states = []
    for rank in range(lanes):
        stream = build(source, rank=rank, world_size=lanes, expected=Size(7, 5))
        list(itertools.islice(stream, 2 * tokens // lanes // BLOCK))
        assert stream.seen(1)[0].estimated  # of the others it knows nothing
        states.append(stream.state())
    union = states[0] | {"lanes": {number: place for state in states for number, place in state["lanes"].items()}}
    assert build(source, world_size=lanes, state=union).size == Size(files * 24, tokens / files / 24, exact=True)


def test_a_state_knows_what_was_read_ahead(corpus):
    stream = build(corpus(1, 10), micro_batch_size=4)
    list(itertools.islice(stream, 3))
    assert stream.state(12) == stream.state()
    with pytest.raises(DataError, match=r"12 samples of .* handed out, and 8 trained on"):
        stream.state(8)
