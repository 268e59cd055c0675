"""Weights and data that change on the way: exact shares, no own sample skipped or repeated, each epoch complete."""

import numpy as np
import pytest

from mypt.streams.mixture import Mixture
from mypt.streams.timeline import Source, Timeline
from mypt.streams.windows import phase, window_count

TWO = [Source("a", 5_000, 0.9), Source("b", 900, 0.1)]


def reweighed(sample: int, *weights: float) -> dict:
    return {"sample": sample, "weights": list(weights)}


def grown(sample: int, tokens: int, source: int = 0) -> dict:
    return {"sample": sample, "appended": {"source": source, "tokens": tokens, "shards": 2, "fingerprint": "f"}}


def test_nine_to_one_is_exact_and_a_change_of_weights_repeats_nothing():
    before, after = Timeline(TWO, 10), Timeline(TWO, 10, [reweighed(100_000, 0.3, 0.7)])
    samples = np.arange(200_000)
    owners, local = after.locate(samples)
    assert np.bincount(owners[:100_000]).tolist() == [90_000, 10_000]
    assert np.bincount(owners[100_000:]).tolist() == [30_000, 70_000]
    for source, total in enumerate((120_000, 80_000)):
        assert np.array_equal(local[owners == source], np.arange(total))
        assert after.drawn(200_000)[source] == total
    for changed, unchanged in zip((owners, local), before.locate(samples[:100_000]), strict=True):
        assert np.array_equal(changed[:100_000], unchanged)


@pytest.mark.parametrize("changes", [[7], [999, 1_000, 1_001], [123, 123], [1, 2, 3, 2_500]])
def test_own_samples_run_on_through_changes_at_any_sample(changes):
    rng = np.random.default_rng(0)
    timeline = Timeline(TWO, 10, [reweighed(sample, *rng.uniform(0.1, 1, 2)) for sample in changes])
    samples = np.arange(4_000)
    owners, local = timeline.locate(samples)
    for source in range(2):
        assert np.array_equal(local[owners == source], np.arange((owners == source).sum()))
    for cut in (0, 1, *changes, changes[-1] + 1, 3_999):
        assert timeline.drawn(cut) == np.bincount(owners[:cut], minlength=2).tolist()
    shuffled = rng.permutation(samples)
    for whole, single in zip((owners, local), timeline.locate(shuffled), strict=True):
        assert np.array_equal(whole[shuffled], single), "a place depends on the sample alone"


def test_the_new_weights_begin_a_new_period():
    owners, _ = Timeline(TWO, 10, [reweighed(17, 1, 3)]).locate(np.arange(17, 2_017))
    assert np.array_equal(owners, Mixture([1, 3]).locate(np.arange(2_000))[0])


# A source of 41 tokens in blocks of 10 has (41 - 10) // 10 = 3 windows; grown to 61 it has 5.


@pytest.mark.parametrize(
    ("at", "epochs"),
    [
        (0, [5, 5, 5]),  # before the first sample: at once
        (1, [3, 5, 5]),
        (2, [3, 5, 5]),
        (3, [3, 5, 5]),  # exactly between two epochs: at once
        (4, [3, 3, 5]),
        (6, [3, 3, 5]),
    ],
)
@pytest.mark.parametrize("order", ["full", "blocks"])
def test_new_data_enters_at_the_next_epoch_by_hand(at, epochs, order):
    timeline = Timeline([Source("a", 41, 1.0)], 10, [grown(at, 61)])
    starts = timeline.starts(0, np.arange(sum(epochs)), 3, order)
    done = 0
    for epoch, windows in enumerate(epochs):
        tokens = {3: 41, 5: 61}[windows]
        expected = phase(epoch, tokens, 10, 3) + 10 * np.arange(windows)
        assert np.array_equal(np.sort(starts[done : done + windows]), expected)
        assert timeline.epochs(0, done) == epoch
        assert timeline.epochs(0, done + 1) == pytest.approx(epoch + 1 / windows)
        done += windows


def test_data_that_grows_twice_within_an_epoch_enters_once():
    timeline = Timeline([Source("a", 41, 1.0)], 10, [grown(1, 61), grown(2, 81), grown(9, 101)])
    # 3 windows of the old epoch, then 7 of the 81 tokens (samples 3 to 9), then 9 of the 101
    starts = timeline.starts(0, np.arange(19), seed=0)
    assert [len(set(part.tolist())) for part in (starts[:3], starts[3:10], starts[10:19])] == [3, 7, 9]
    assert [timeline.epochs(0, drawn) for drawn in (3, 10, 19)] == [1, 2, 3]
    assert timeline.now[0].tokens == 101 and timeline.sources[0].tokens == 41


@pytest.mark.parametrize("seed", range(8))
def test_every_epoch_of_every_source_covers_each_window_once(seed):
    """Weights and sizes change at random samples; epochs are found again in what was drawn."""
    rng = np.random.default_rng(seed)
    sizes, events = [int(rng.integers(30, 90)) for _ in range(3)], []
    sources = [Source("abc"[index], sizes[index], float(5 - 2 * index)) for index in range(3)]
    now = list(sizes)
    for sample in np.sort(rng.integers(0, 400, 6)).tolist():
        index = int(rng.integers(3))
        now[index] += int(rng.integers(1, 60))
        events += [grown(sample, now[index], index), reweighed(sample, *rng.uniform(0.2, 1, 3))]
    timeline = Timeline(sources, 10, events)
    owners, local = timeline.locate(np.arange(600))
    for index in range(3):
        starts = timeline.starts(index, local[owners == index], seed)
        growth = [event["appended"] for event in events if "appended" in event]
        allowed = [sizes[index], *(size["tokens"] for size in growth if size["source"] == index)]
        done, epoch = 0, 0
        while done < len(starts):
            whole = [
                (tokens, n)
                for tokens, n in ((tokens, window_count(tokens, 10)) for tokens in allowed)
                if timeline.epochs(index, done + n) == epoch + 1
            ]
            assert whole, "an epoch has as many windows as one of the sizes that the source had"
            tokens, n = whole[0]
            seen = starts[done : done + n]
            assert len(set(seen.tolist())) == len(seen)
            assert set(seen.tolist()) <= {phase(epoch, tokens, 10, seed) + 10 * i for i in range(n)}
            done, epoch = done + n, epoch + 1
        assert epoch > 1
