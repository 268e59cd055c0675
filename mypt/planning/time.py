"""How long a run takes and what that costs: steps, evaluations, saves and preparing, at a speed that is stated."""

import math
from dataclasses import dataclass

from mypt.planning.coverage import exact

DISK = 200e6  # bytes per second of a checkpoint with its checksums, until it is flushed: a cloud's network disk
PREPARING = 1e6  # bytes of text per second of `mypt prepare` in one process, tokenizer included
SAVES = 10  # of a run that does not say how often: at its tenths


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast all devices of a run together are, and where that is from.

    Attributes:
        source: `measured`, `recorded`, `given` or `assumed`.
        words: The figure and its reason, for people.
        step: Seconds of an optimizer step.
        fast, slow: The range of it; equal to `step` where none is known.
        window: Seconds to evaluate one window; None: by its share of the compute.
        save: Seconds of a checkpoint; None: by its size, at DISK.
        preparing: Seconds to prepare the text; None: by its size, at PREPARING.
        starting: Seconds before the first step, imports and compiling included; None: not known.
    """

    source: str
    words: str
    step: float
    fast: float
    slow: float
    window: float | None = None
    save: float | None = None
    preparing: float | None = None
    starting: float | None = None


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """The peak of devices, and the share of it that a run is assumed to reach.

    flops: FLOP/s of one device. devices: how many work at once. utilisation: (least, expected, most), shares of 1.
    words: where the peak is from; reason: where the utilisation is from.
    """

    flops: float
    utilisation: tuple[float, float, float]
    words: str
    reason: str
    devices: int = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of a few real steps of a recipe on this machine, in one process.

    Attributes:
        steps, warmup: Optimizer steps that count, and those before them that do not.
        step, fast, slow: Seconds of a step: the mean, and those of the fastest and the slowest tenth.
        tokens_per_second: Of this process.
        windows, window: Windows that were evaluated, and seconds of one; None without an evaluation set.
        save: Seconds of one checkpoint.
        preparing: Seconds to prepare all text; None if the data is prepared. prepared: share of it that was measured.
        starting: Seconds before the first step, without preparing and the first evaluation.
        memory: Peak bytes of the steps: of the process on a CPU, allocated by torch on a GPU; None if not known.
        evaluation_memory: The same, of the evaluation.
        predicted, predicted_evaluation: Both by the memory model; None for a model that it does not know.
        free: Bytes that were free at the start; None if not known.
        notes: What was other than in the run.
    """

    steps: int
    warmup: int
    step: float
    fast: float
    slow: float
    tokens_per_second: float
    windows: int | None
    window: float | None
    save: float
    preparing: float | None
    prepared: float | None
    starting: float
    memory: int | None
    evaluation_memory: int | None
    predicted: int | None
    predicted_evaluation: int | None
    free: int | None
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Time:
    """The time of a run and its price, from the first command on.

    Attributes:
        source, words: As `Speed` has them.
        parts: Seconds of each part: `starting`, `preparing`, `steps`, `evaluation`, `saving`; those that are known.
        seconds: All of them.
        fastest, slowest: `seconds` over the range of the speed.
        device_hours: Hours of all devices.
        price: Of a device hour, as given. cost, least, most: price x device hours, over the same range.
    """

    source: str
    words: str
    parts: dict[str, float]
    seconds: float
    fastest: float
    slowest: float
    device_hours: float
    price: float | None = None
    cost: float | None = None
    least: float | None = None
    most: float | None = None


def given_speed(tokens_per_second: float, tokens_per_step: int) -> Speed:
    step = tokens_per_step / tokens_per_second
    return Speed(source="given", words=f"{tokens_per_second:,.0f} tokens/s, as given", step=step, fast=step, slow=step)


def assumed_speed(peak: Assumption, flops_per_step: float) -> Speed:
    """The speed at a share of the peak. flops_per_step: over all devices."""
    least, expected, most = peak.utilisation
    at_peak = flops_per_step / (peak.flops * peak.devices)
    words = f"{expected:.0%} of {peak.words} is assumed ({least:.0%} to {most:.0%}: {peak.reason})"
    return Speed(source="assumed", words=words, step=at_peak / expected, fast=at_peak / most, slow=at_peak / least)


def measured_speed(measured: Measured, processes: int = 1) -> Speed:
    """As fast as it was measured; of several processes each as fast as the one, and evaluations shared."""
    words = (
        f"{measured.tokens_per_second * processes:,.0f} tokens/s, measured in {measured.steps} steps of this recipe on "
        "this machine"
    )
    if processes > 1:
        words += f" in one process; {processes} are assumed to be as fast each, their exchange not counted"
    return Speed(
        source="measured",
        words=words,
        step=measured.step,
        fast=measured.fast,
        slow=measured.slow,
        window=measured.window and measured.window / processes,
        save=measured.save,
        preparing=measured.preparing or 0.0,
        starting=measured.starting,
    )


def plan_time(
    speed: Speed,
    *,
    steps: int,
    save_steps: float | None = None,
    checkpoint: int | None = None,
    windows: int = 0,
    evaluation_share: float = 0.0,
    text: int = 0,
    devices: int = 1,
    price: float | None = None,
) -> Time:
    """Seconds of every part of a run, in all, and the cost.

    Args:
        save_steps: From one checkpoint to the next, below 1 a share of the steps; 0 for none, None for tenths.
        checkpoint: Its bytes; None where they are not known.
        windows: Windows that are evaluated over the whole run, for a speed that knows the seconds of one.
        evaluation_share: Seconds of all evaluations per second of all steps, for a speed that does not.
        text: Bytes of text that have to be prepared.
        price: Of one device for one hour.

    Raises:
        MyPTError: `save_steps` is not a positive number or 0.
    """
    written = saves(steps, save_steps)
    save = speed.save if speed.save is not None else (checkpoint or 0) / DISK

    def parts_at(step: float) -> dict[str, float]:
        trained = steps * step
        # The range is of the machine: what slows a step slows an evaluation alike.
        measured = windows * speed.window * step / speed.step if speed.window is not None else None
        found = {
            "starting": speed.starting,
            "preparing": speed.preparing if speed.preparing is not None else text / PREPARING,
            "steps": trained,
            "evaluation": trained * evaluation_share if measured is None else measured,
            "saving": written * save,
        }
        return {name: seconds for name, seconds in found.items() if seconds}

    parts = parts_at(speed.step)
    seconds, fastest, slowest = (sum(parts_at(step).values()) for step in (speed.step, speed.fast, speed.slow))
    hours = [each * devices / 3_600 for each in (seconds, fastest, slowest)]
    cost, least, most = (None, None, None) if price is None else (price * each for each in hours)
    return Time(
        source=speed.source,
        words=speed.words,
        parts=parts,
        seconds=seconds,
        fastest=fastest,
        slowest=slowest,
        device_hours=hours[0],
        price=price,
        cost=cost,
        least=least,
        most=most,
    )


def saves(steps: int, interval: float | None) -> int:
    """Checkpoints that a run writes; the last step is saved, too. interval: as `save_steps` of `plan_time`."""
    if interval is None:
        interval = math.ceil(steps / SAVES)
    elif interval == 0:
        return 0
    every = exact("training.save_steps", interval)
    return math.ceil(steps / (math.ceil(every * steps) if every < 1 else every))
