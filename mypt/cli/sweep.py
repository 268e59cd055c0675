"""`mypt sweep RECIPE`: search the settings of a recipe on a subset of its data."""

import argparse
import importlib.util
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mypt.errors import CheckFailed, Interrupted, MyPTError
from mypt.terminal import print_table, say, say_json

HELP = "search settings on a subset of the data, on several devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = "%(prog)s RECIPE [options] [--section.key=value ...]"
    add("recipe", metavar="RECIPE", help="a YAML recipe; its section `sweep` defines the search")
    kinds = ("predefined", "random", "optimized")
    add("--type", choices=kinds, help="kind of search (default: the recipe's; optimized where it has sweep.space)")
    add("--num-random", type=int, metavar="N", help="trials of a random search (default: sweep.trials, 20)")
    add("--gpus", metavar="N[,N...]", help="one worker for each of these GPUs (default: all of this machine)")
    add("--workers", type=int, metavar="N", help="workers that share the CPU (default, without a GPU: one per 2 CPUs)")
    add("--out", type=Path, metavar="DIR", help="the sweep's folder (default: training.output_dir with -sweep added)")
    add("--storage", metavar="URL", help="database of the study, as Optuna names it (default: a journal file in DIR)")
    add("--study", metavar="NAME", help="name of the study in the storage (default: that of DIR)")
    add("--confirm", type=int, metavar="K", help="re-run the best K trials with other seeds, and judge the ranking")
    add("--confirm-seeds", type=int, default=3, metavar="N", help="re-runs of each of them")
    add("--confirm-samples", type=int, metavar="N", help="documents that they train on (default: all of the data)")
    add("--dry-run", action="store_true", help="prepare the subset and print every command; train nothing")
    add("--device", metavar="NAME", help="expect the times of this device: h100, a100, 4090, cpu ... (default: here)")
    add("--json", action="store_true", help="print the record of all trials and the report as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --sweep.trials=40"


def run(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("optuna") is None:
        raise MyPTError("mypt sweep needs the package optuna: pip install mypt[sweep]")
    from mypt.hardware.machine import cpus, gpus
    from mypt.sweeps.confirm import confirm, require_options
    from mypt.sweeps.sweep import cpu_workers, dry_run, gpu_workers, make_record, plan_lines, read_sweep
    from mypt.sweeps.sweep_report import print_report, report_lines, trials_table, write_report
    from mypt.sweeps.workers import run_workers

    devices = _gpus(args, gpus)
    workers = (
        gpu_workers(devices) if devices else cpu_workers(_positive("--workers", args.workers, max(1, cpus() // 2)))
    )
    tell = partial(say, error=args.json)
    sweep = read_sweep(args.recipe, _overrides(args), args.out, device=args.device, tell=tell)
    for line in plan_lines(sweep):
        tell(line)
    if args.confirm is not None:
        kind, least, most = sweep.section.type, sweep.data.samples, sweep.data.full_samples
        samples = require_options(args.confirm, args.confirm_seeds, args.confirm_samples, kind, least, most)
    if args.dry_run:
        for line in dry_run(sweep, workers):
            tell(line)
        if args.confirm is not None:
            tell(f"then {args.confirm * args.confirm_seeds} re-runs of the best {args.confirm} on {samples:,} samples")
        return
    study = sweep.join(args.study or sweep.out.name)
    stopped = report = None
    try:
        run_workers(sweep, study, workers, to_error=args.json)
    except (CheckFailed, Interrupted) as error:
        stopped = error
    record = make_record(sweep, study)
    if not args.json:
        print_table(*trials_table(record))
        say(*report_lines(record))
    try:
        if stopped:
            raise stopped
        report = write_report(sweep.out, record)
        if args.confirm is not None:
            options = {"top": args.confirm, "seeds": args.confirm_seeds, "samples": args.confirm_samples}
            found = confirm(record, sweep.out, **options, devices=workers, tell=tell)
            report = write_report(sweep.out, record, found)
    finally:
        if args.json:
            say_json(asdict(record) | {"report": report})
    if not args.json:
        print_report(sweep.out, record, report)
    if not any(trial.state == "completed" for trial in record.trials):
        raise CheckFailed("no trial was completed; the table has the reasons, and each folder its train.log")


def _overrides(args: argparse.Namespace) -> list[str]:
    """The options that are keys of the recipe, before what is given as `--section.key=value`."""
    kind = "random" if args.num_random and not args.type else args.type
    if args.num_random and kind != "random":
        raise MyPTError(f"--num-random is the number of trials of a random search, and --type is {kind}")
    trials = _positive("--num-random", args.num_random, None)
    given = {"type": kind, "trials": trials, "storage": args.storage}
    return [f"--sweep.{name}={value}" for name, value in given.items() if value is not None] + args.overrides


def _gpus(args: argparse.Namespace, found) -> list[str]:
    if args.gpus is None:
        return [] if args.workers else found()
    if args.workers:
        raise MyPTError("--gpus and --workers: workers share the CPU; give one of the two")
    numbers = [number.strip() for number in args.gpus.split(",")]
    if not all(number.isdecimal() for number in numbers) or len({*numbers}) < len(numbers):
        raise MyPTError(f"--gpus is {args.gpus!r}, expected different numbers with commas, such as 0,1,2,3")
    return numbers


def _positive(option: str, number: int | None, default: int | None) -> int | None:
    if number is not None and number < 1:
        raise MyPTError(f"{option} is {number}, expected 1 or more")
    return default if number is None else number
