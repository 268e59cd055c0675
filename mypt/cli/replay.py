"""`--replay` of `mypt plan`: its options, and the probes that follow the plan."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from mypt.cli.frameworks import quick_imports
from mypt.cli.numbers import count, shares
from mypt.errors import MyPTError
from mypt.terminal import print_table, say

if TYPE_CHECKING:
    from mypt.forecasting.replay import Probes
    from mypt.forecasting.replay_law import Advice
    from mypt.planning.plan import Plan, PlannedRun


def add_replay_options(add: Callable) -> None:
    add("--replay", action="store_true", help="run short probes and recommend a share of replayed samples")
    ratios = "shares of replay that the probes try (default: 0,5%%,25%%)"
    add("--replay-ratios", type=shares, metavar="R,R[,...]", help=ratios)
    steps = "steps of the longest probe of each share (default: a tenth of the run, from 40 to 400)"
    add("--probe-steps", type=count, help=steps)


def planned_probes(args: argparse.Namespace, run: PlannedRun, found: Plan) -> Probes | None:
    """The probes that the options ask for; found: the plan of the run. Raises MyPTError as `plan_probes`."""
    if not args.replay:
        if args.replay_ratios or args.probe_steps:
            raise MyPTError("--replay-ratios and --probe-steps are for --replay, which is missing")
        return None
    from mypt.forecasting.replay import RATIOS, plan_probes

    if found.memory and found.memory.fits is False and not args.memory:
        raise MyPTError(f"--replay trains on this machine, and a probe {found.memory.advice}")
    windows = found.evaluation.windows if found.evaluation else None
    ratios = args.replay_ratios or RATIOS
    return plan_probes(args.target, args.overrides, run, windows=windows, ratios=ratios, probe_steps=args.probe_steps)


def run_probes(probes: Probes) -> Advice:
    with quick_imports():
        from mypt.training import build  # noqa: F401

    return probes.run()


def print_advice(probes: Probes) -> None:
    from mypt.forecasting.replay_law import replay_lines, replay_table

    advice = run_probes(probes)
    say()
    print_table(*replay_table(advice, probes.policy.target))
    say(*replay_lines(advice, probes.policy.target))
