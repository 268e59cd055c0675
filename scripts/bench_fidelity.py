"""How often the verdict on a sweep's re-runs is wrong, and how often it finds a true winner, by simulation.

    python scripts/bench_fidelity.py --studies 1500

Each row is a set of true means and deviations over seeds, from which studies are drawn; docs/fidelity.md has the
figures.
"""

import argparse

import numpy as np

from mypt.sweeps.fidelity import LEVEL, MOST_REPEATS, judge

# name: (true means, deviations over seeds, deviation of what a seed does to all candidates alike)
TRUTHS = {
    "two equal": ([0, 0], 1, 0),
    "three equal": ([0] * 3, 1, 0),
    "five equal": ([0] * 5, 1, 0),
    "two equal, eight far": ([0, 0, *[50] * 8], 1, 0),
    "two equal and noisy (x 4), three far": ([0, 0, 20, 20, 20], [2, 2, 0.5, 0.5, 0.5], 0),
    "one better by 2 deviations": ([0, 2, 2], 1, 0),
    "one better by 4 deviations": ([0, 4, 4], 1, 0),
    "the same, seeds differ by 5": ([0, 4, 4], 1, 5),
}


def draw(rng: np.random.Generator, truth: tuple, seeds: int) -> np.ndarray:
    """Objectives (candidates, seeds)."""
    means, deviations, effect = truth
    noise = rng.standard_normal((len(means), seeds)) * np.broadcast_to(deviations, len(means))[:, None]
    return np.array(means)[:, None] + noise + effect * rng.standard_normal(seeds)


def named(table: np.ndarray, look: int, level: float):
    return judge({number: dict(enumerate(map(float, row))) for number, row in enumerate(table)}, look, level)


def one_look(rng: np.random.Generator, truth: tuple, seeds: int) -> int | None:
    """The winner of one verdict that is tested at `LEVEL`."""
    return named(draw(rng, truth, seeds), 1, 2 * LEVEL).winner


def all_looks(rng: np.random.Generator, truth: tuple, seeds: int) -> int | None:
    """The winner when the advised repeats are added, at most three times, with `LEVEL` for all verdicts together."""
    table = draw(rng, truth, MOST_REPEATS)
    for look in range(1, 5):
        found = named(table[:, :seeds], look, LEVEL)
        if not found.more_repeats or seeds + found.more_repeats > MOST_REPEATS:
            break
        seeds += found.more_repeats
    return found.winner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1_500)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for title, judged in (("one verdict", one_look), ("up to four, with the advised repeats", all_looks)):
        print(f"{title}: wrong winner, right winner")
        for name, truth in TRUTHS.items():
            rng, best = np.random.default_rng(0), 0 if truth[0].count(0) == 1 else None
            winners = [judged(rng, truth, args.seeds) for _ in range(args.studies)]
            wrong = sum(winner not in (None, best) for winner in winners) / args.studies
            right = sum(winner is not None and winner == best for winner in winners) / args.studies
            print(f"  {name:40}{wrong:7.1%}{right:8.1%}")


if __name__ == "__main__":
    main()
