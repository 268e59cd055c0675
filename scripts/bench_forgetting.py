"""What an adaptation learns and what it forgets, by method: replay, actions of the guard, LoRA, penalties, averages.

    OMP_NUM_THREADS=1 python scripts/bench_forgetting.py --plot docs/images/forgetting_methods.png

A pair is a text that a base model is trained on (general) and one that it is adapted to (domain): `code`, documentation
to source code of this Python; `german`, Perl's manual to German man pages (Debian's packages perl-doc and manpages-de,
by `apt-get download`); or a folder with general.jsonl and domain.jsonl. Documents are split into train, val and test.
The guard and the interpolation see val alone; what is reported is measured on test, against the base model.
Each run adds a line to WORK/PAIR/results.jsonl; a line that is there is not run again. Two pairs can run side by side.
"""

import argparse
import contextlib
import gzip
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

import torch
from transformers import TrainerCallback

from mypt.checkpoints.load import load_model
from mypt.errors import CheckFailed
from mypt.evaluation.evaluator import Evaluator
from mypt.evaluation.forgetting import Policy
from mypt.evaluation.interpolate import largest_kept
from mypt.preparation.prepare import prepare_dataset
from mypt.recipe import parse_recipe
from mypt.streams.eval_windows import EvalWindows
from mypt.text.embedded import write_embedded_corpus
from mypt.training.build import build_trainer
from mypt.training.run import finish

BLOCK, BATCH, TOLERANCE, RATE = 128, 8, 0.05, 6e-4
SETS = ("domain", "general")


@dataclass(frozen=True)
class Size:
    """How much is computed. `vocabulary` ids, `characters` of each text, `windows` of val (at most) and of test."""

    base_steps: int = 600
    steps: int = 80
    eval_steps: int = 16
    vocabulary: int = 1024
    characters: int = 2_400_000
    windows: tuple[int, int] = (64, 100)
    layers: int = 2
    width: int = 128


QUICK = Size(8, 6, 3, 512, 90_000, (10, 10), 1, 32)


@dataclass(frozen=True)
class Method:
    """One way to adapt.

    Attributes:
        recipe: What it changes in the recipe, by section.
        replay: Share of general in the training data.
        pull: L2-SP, decoupled as AdamW's weight decay: the part of the way back to the start that a step goes.
        kl: Weight of KL(base model || model) on the domain's batches.
        averages: Decays of the exponential averages of weights that are measured beside the final model.
        guarded: Whether it is evaluated and saved every `eval_steps`, as the guard needs it.
    """

    recipe: dict = field(default_factory=dict)
    replay: float = 0.0
    pull: float = 0.0
    kl: float = 0.0
    averages: tuple[float, ...] = ()
    guarded: bool = False


def rate(value: float) -> dict:
    return {"training": {"learning_rate": value}}


def action(name: str, **keys) -> dict:
    return {"forgetting": {"action": name, **keys}}


ADAMW, LORA = {"optimizer": {"name": "adamw"}}, {"lora": {"r": 16, "alpha": 32}}
LONGER = {"training": {"max_steps": 107}}
OFTEN = {"training": {"eval_steps": 4, "save_steps": 4}}
METHODS = {
    "full": Method(averages=(0.95, 0.99)),
    "replay 1%": Method(replay=0.01),
    "replay 5%": Method(replay=0.05),
    "replay 10%": Method(replay=0.1, averages=(0.95, 0.99)),
    "replay 25%": Method(replay=0.25),
    "replay 50%": Method(replay=0.5),
    "L2-SP 0.01": Method(pull=0.01),
    "L2-SP 0.03": Method(pull=0.03),
    "KL 0.1": Method(kl=0.1),
    "KL 0.3": Method(kl=0.3),
    "KL 1": Method(kl=1.0),
    "replay 10%, KL 0.3": Method(replay=0.1, kl=0.3),
    "replay 25%, KL 0.3": Method(replay=0.25, kl=0.3),
    "full, 4/3 steps": Method(LONGER),  # the compute of KL
    "replay 10%, 4/3 steps": Method(LONGER, replay=0.1),
    "replay 25%, 4/3 steps": Method(LONGER, replay=0.25),
    "LoRA, rate 3e-3": Method(LORA | rate(3e-3)),
    "LoRA, rate 1e-2": Method(LORA | rate(1e-2)),
    "AdamW": Method(ADAMW),
    "AdamW, rate x 2": Method(ADAMW | rate(RATE * 2)),
    "full, rate x 2": Method(rate(RATE * 2)),
    "replay 25%, rate x 2": Method(rate(RATE * 2), replay=0.25),
    "guard: warn": Method(guarded=True),
    "guard: warn, replay 10%": Method(replay=0.1, guarded=True),
    "guard: reduce_lr": Method(action("reduce_lr"), guarded=True),
    "guard: raise_replay": Method(action("raise_replay"), guarded=True),
    "guard: raise_replay, evaluated 4 x as often": Method(action("raise_replay") | OFTEN, guarded=True),
    "guard: rollback": Method(action("rollback"), guarded=True),
}


# ---- text ----


def texts_of(pair: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """("general", documents) and ("domain", documents) of a pair."""
    if pair == "german":
        unpack(["perl-doc", "manpages-de"], folder)
        pods = [path.read_text("utf-8", "replace") for path in sorted(folder.rglob("*.pod"))]
        yield "general", [part for pod in pods for part in re.split(r"(?m)^(?==head1)", pod)]
        pages = [path for path in sorted(folder.rglob("*.gz")) if "man/de" in str(path)]
        yield (
            "domain",
            [without_macros(gzip.decompress(path.read_bytes()).decode("utf-8", "replace")) for path in pages],
        )
        return
    if pair == "code":
        write_embedded_corpus(folder)
    for name in ("general", "domain"):
        lines = ((folder if pair == "code" else Path(pair)) / f"{name}.jsonl").read_text("utf-8").splitlines()
        yield name, [json.loads(line)["text"] for line in lines]


def unpack(packages: list[str], folder: Path) -> None:
    """Debian's packages into a folder, without root."""
    if not shutil.which("apt-get"):
        raise SystemExit("the pair german needs apt-get of Debian; use --pairs code or a folder of your own")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *packages], cwd=folder, check=True, capture_output=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package.name, "unpacked"], cwd=folder, check=True)


def without_macros(page: str) -> str:
    """A man page without comments, the names of macros and changes of font."""
    page = re.sub(r"(?m)^[.'](\\\".*\n|[A-Za-z]+ ?)", "", page)
    return re.sub(r"\\f[BIRP]|\\[,/&]", "", page).replace("\\-", "-")


def prepare(pair: str, folder: Path, size: Size) -> None:
    """Make folder/general and folder/domain with train and val, folder/general_test and folder/domain_test."""
    if (folder / "ready").exists():
        return
    for name, documents in texts_of(pair, folder / "text"):
        documents = [text[:8_000] for text in dict.fromkeys(documents) if text.strip()]
        random.Random(0).shuffle(documents)
        val, test = (5 * BLOCK * windows for windows in size.windows)  # characters
        parts, taken = {"test": [], "": []}, 0
        for text in documents:
            parts["test" if taken < test else ""].append(text)
            taken += len(text)
            if taken > size.characters:
                break
        for part, options in ("", {"val_fraction": val / (taken - test)}), ("test", {"val_fraction": 0.0}):
            out = folder / f"{name}_{part}".strip("_")
            source = folder / f"{out.name}.jsonl"
            source.write_text("".join(json.dumps({"text": text}) + "\n" for text in parts[part]))
            tokenizer = folder / "general"
            if out == tokenizer:
                tokenizer, options = "bpe", options | {"vocab_size": size.vocabulary}
            prepare_dataset(source, out, tokenizer, progress=False, **options)
    (folder / "ready").touch()


# ---- runs ----


class Averages(TrainerCallback):
    """Exponential moving averages of the trained weights, which begin at the base model's."""

    def __init__(self, decays: tuple[float, ...]):
        self.of = dict.fromkeys(decays)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.of = {decay: [p.detach().clone() for p in model.parameters()] for decay in self.of}

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        for decay, average in self.of.items():
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - decay)


class Pull(TrainerCallback):
    """L2-SP (Li et al. 2018, 1802.01483), decoupled: after a step, `strength` of the way back to the base model.

    Scaled with the learning rate as the step is, so that warm-up and cool-down do not change its share.
    """

    def __init__(self, strength: float):
        self.strength = strength

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.start = [p.detach().clone() for p in model.parameters()]

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        part = self.strength * optimizer.param_groups[0]["lr"] / args.learning_rate
        torch._foreach_lerp_([p.data for p in model.parameters()], self.start, part)


def add_kl(trainer, base: Path, weight: float) -> None:
    """Add weight x KL(base || model), nats per token, to the loss of every batch (Li & Hoiem 2016, 1606.09282)."""
    teacher, plain = load_model(base), trainer.compute_loss

    def compute_loss(model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = plain(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
            old = teacher(input_ids=inputs["input_ids"], use_cache=False).logits
        old, new = (logits.flatten(0, 1).float().log_softmax(-1) for logits in (old, outputs.logits))
        loss = loss + weight * torch.nn.functional.kl_div(new, old, reduction="batchmean", log_target=True)
        return (loss, outputs) if return_outputs else loss

    trainer.compute_loss = compute_loss


def recipe_of(method: Method, pair: Path, out: Path, seed: int, size: Size):
    """The recipe of an adaptation."""
    domain, general = (str(pair / name) for name in SETS)
    share = {domain: 1 - method.replay} | ({general: method.replay} if method.replay else {})
    every = size.eval_steps if method.guarded else size.steps
    content = {
        "model": {"init_from": str(pair / "base")},
        "data": {"train": share, "eval": {"domain": domain, "general": general}, "block_size": BLOCK},
        "coverage": {"confirm": False},
        "forgetting": {"target": "domain", "guard": ["general"], "tolerance": TOLERANCE, "time_budget": 0}
        | ({"eval_windows": 48} if method.guarded else {"eval_windows": 8, "interpolate": "off"}),
        "training": {"output_dir": str(out), "max_steps": size.steps, "learning_rate": RATE, "seed": seed,
                     "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": 32, "eval_steps": every,
                     "save_steps": every},
    }  # fmt: skip
    if "forgetting" in method.recipe:  # raise_replay has to know what to replay
        content["forgetting"]["guard"] = {"general": general}
    for section, values in method.recipe.items():
        content[section] = content.get(section, {}) | values
    return parse_recipe(content)


def train(recipe, method: Method, base: Path | None = None) -> tuple[Averages, dict]:
    """Train a recipe with the prototypes of a method. Returns what they kept, and the run's record."""
    averages = Averages(method.averages)
    callbacks = [averages] * bool(method.averages) + [Pull(method.pull)] * bool(method.pull)
    began, run = time.process_time(), Path(recipe.training["output_dir"])
    trainer = build_trainer(recipe, callbacks, assume_yes=True)
    if method.kl:
        add_kl(trainer, base, method.kl)
    try:
        finish(trainer)
    except CheckFailed as error:  # no step kept general
        if error.reason != "infeasible":
            raise
    finally:
        trainer.give_back()
    result = json.loads((run / "result.json").read_text())
    record = {"seconds": round(time.process_time() - began, 1), "reason": result["reason"], "step": result["step"]}
    return averages, record


def train_base(pair: Path, size: Size) -> None:
    if (pair / "base" / "result.json").exists():
        return
    shutil.rmtree(pair / "base", ignore_errors=True)
    general = str(pair / "general")
    train(
        parse_recipe({
            "model": {"preset": "modern-nano", "num_hidden_layers": size.layers, "hidden_size": size.width,
                      "intermediate_size": 3 * size.width, "num_attention_heads": 2, "num_key_value_heads": 2,
                      "head_dim": size.width // 2},
            "data": {"train": general, "eval": {"general": general}, "block_size": BLOCK},
            "coverage": {"confirm": False},
            "forgetting": {"guard": [], "eval_windows": 64},
            "training": {"output_dir": str(pair / "base"), "max_steps": size.base_steps, "learning_rate": 3e-3,
                         "per_device_train_batch_size": BATCH, "eval_steps": size.base_steps,
                         "save_steps": size.base_steps},
        }),
        Method(),
    )  # fmt: skip


class Bench:
    """The runs of one pair, and what was measured of them on test."""

    def __init__(self, pair: Path, size: Size):
        self.pair, self.size, self.results = pair, size, pair / "results.jsonl"
        limits = {"block_size": BLOCK, "max_windows": size.windows[0]}
        self.val = Evaluator({"general": EvalWindows(pair / "general", **limits)}, 32)
        limits["max_windows"] = size.windows[1]
        test = {name: EvalWindows(pair / f"{name}_test", "train", **limits) for name in SETS}
        self.evaluator = Evaluator(test, 32)
        base = load_model(pair / "base")
        self.start = [parameter.detach() for parameter in base.parameters()]
        self.base = {name: reading.losses for name, reading in self.evaluator.measure(base).items()}

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []

    def run(self, name: str, seed: int) -> None:
        """Train one method and measure its models; nothing if that was done before with the same settings."""
        method = METHODS[name]
        settings = json.loads(json.dumps({"method": asdict(method), "size": asdict(self.size)}))
        if any((row["name"], row["seed"], row["settings"]) == (name, seed, settings) for row in self.rows()):
            return
        run = self.pair / "runs" / f"{name.replace(' ', '_')}-{seed}"
        shutil.rmtree(run, ignore_errors=True)
        began = time.process_time()
        averages, record = train(recipe_of(method, self.pair, run, seed, self.size), method, self.pair / "base")
        model = load_model(run)
        models = {"final": self.two(model)}
        for decay, weights in averages.of.items():
            for parameter, average in zip(model.parameters(), weights, strict=True):
                parameter.data = average
            models[f"average {decay}"] = self.two(model)
        if method.guarded:
            models["published"] = self.published(run)
        base = {set_: [losses.loss, losses.standard_error] for set_, losses in self.base.items()}
        row = {"name": name, "seed": seed, "run": record, "models": models, "base": base}
        row |= {"cpu_seconds": round(time.process_time() - began, 1), "settings": settings}
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shutil.rmtree(run, ignore_errors=True)

    def test(self, model: torch.nn.Module) -> dict:
        """{set: {loss, delta, delta_error}} of a model on test, against the base model on the same windows."""
        measured = {}
        for name, reading in self.evaluator.measure(model).items():
            delta, error = reading.losses.delta(self.base[name])
            measured[name] = {"loss": reading.losses.loss, "delta": delta, "delta_error": error}
        return measured

    def two(self, model: torch.nn.Module) -> dict:
        """A model as it is, and interpolated towards the base model until general is kept on val."""
        before, policy = self.test(model), Policy("general", ["general"], TOLERANCE)
        weights = [parameter.detach().clone() for parameter in model.parameters()]

        def move(alpha: float) -> torch.nn.Module:
            for parameter, start, end in zip(model.parameters(), self.start, weights, strict=True):
                parameter.data = torch.lerp(start, end, alpha)
            return model

        alpha, curve = largest_kept(lambda alpha: self.val.measure(move(alpha)), policy)
        guard = {point["alpha"]: [point["sets"]["general"][key] for key in ("delta", "delta_error")] for point in curve}
        after = before if alpha == 1 else self.test(move(alpha))
        return {"before": before, "alpha": alpha, "after": after, "curve": guard}

    def published(self, run: Path) -> dict:
        """The best model of the run itself: what the guard leaves without further work."""
        best, report = run / "best", json.loads((run / "forgetting.json").read_text())
        interpolated = best / "interpolation.json"
        alpha = json.loads(interpolated.read_text())["alpha"] if interpolated.exists() else 1.0
        return {"after": self.test(load_model(best)), "alpha": alpha, "report": report}


# ---- results ----


def variants(rows: list[dict]) -> dict[str, list[dict]]:
    """{method, or method and average: one entry of `models` for each seed}. Of a guard: what its run published."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        for kind, model in row["models"].items():
            if kind == "published" or "published" not in row["models"]:
                name = f"{row['name']}, {kind}" if kind.startswith("average") else row["name"]
                found.setdefault(name, []).append(model)
    return found


def spread(values: list[float], digits: int = 3, sign: str = "") -> str:
    """The mean and, of several, the sample standard deviation."""
    error = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{error}"


def table(rows: list[dict]) -> str:
    """Markdown: each method's target loss and forgetting before and after interpolation, mean (SD over seeds).

    The last column is the target loss after interpolation minus that of the best method by hand with as many steps, of
    the same seed.
    """
    heads = ["method", "domain", "general", "alpha", "domain", "general", "kept", "to best"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found = variants(rows)
    most = max(len(models) for models in found.values())
    by_hand = [
        models
        for name, models in found.items()
        if "before" in models[0] and len(models) == most and not name.endswith("steps")
    ]
    best = min(by_hand, key=lambda models: statistics.mean(target_losses(models)), default=[])
    for name, models in found.items():
        final = cells([model["before"] for model in models]) if "before" in models[0] else ["", ""]
        after = [model["after"] for model in models]
        alpha = spread([model["alpha"] for model in models], 2)
        kept = sum(one["general"]["delta"] - 2 * one["general"]["delta_error"] <= TOLERANCE for one in after)
        gaps = [own - least for own, least in zip(target_losses(models), target_losses(best), strict=False)]
        gap = spread(gaps, sign="+") if gaps else ""
        row = [name, *final, alpha, *cells(after), f"{kept} of {len(after)}", gap]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def target_losses(models: list[dict]) -> list[float]:
    return [model["after"]["domain"]["loss"] for model in models]


def cells(measured: list[dict]) -> list[str]:
    """Loss on domain, and what general lost."""
    loss, lost = ([one[name][key] for one in measured] for name, key in (("domain", "loss"), ("general", "delta")))
    return [spread(loss), spread(lost, sign="+")]


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """Draw target loss against forgetting, means over seeds.

    A line goes from a method's final model to its interpolation; a star is what a run with a guard published.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results), 5.5), dpi=110, layout="constrained")
    shown = {pair: variants(rows) for pair, rows in results.items()}
    names = dict.fromkeys(name for found in shown.values() for name in found)
    for number, (pair, found) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(1, len(results), number, title=Path(pair).name)
        axes.set(xlabel="general, nats per token from the base model", ylabel="domain, nats per token")
        axes.grid(alpha=0.3)
        for index, name in enumerate(names):
            if name not in found:
                continue
            points = [mean_point(found[name], moment) for moment in ("before", "after") if moment in found[name][0]]
            marker, size = ("*", 11) if len(points) == 1 else ("osD^"[index // 10], 4)
            style = {"color": f"C{index % 10}", "marker": marker, "markersize": size, "linewidth": 0.8}
            axes.plot(*zip(*points, strict=True), label=name, **style)
        axes.axvline(TOLERANCE, color="black", linewidth=0.8, linestyle=":")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(path)


def mean_point(models: list[dict], moment: str) -> list[float]:
    """What general lost and the loss on domain, means over seeds."""
    places = ("general", "delta"), ("domain", "loss")
    return [statistics.mean(model[moment][name][key] for model in models) for name, key in places]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pairs", nargs="+", default=["code", "german"], help="code, german, or folders (code german)")
    add("--seeds", type=int, default=3, help="adaptations by each method (3)")
    add("--methods", nargs="+", choices=METHODS, default=[*METHODS], metavar="NAME", help=f"of: {'; '.join(METHODS)}")
    add("--quick", action="store_true", help="a few steps of a tiny model: whether it runs at all")
    add("--plot", type=Path, metavar="FILE.png", help="target loss against forgetting")
    add("--work", type=Path, default=Path("bench_forgetting"), help="folder for data, models and results")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    size, results = QUICK if args.quick else Size(), {}
    torch.set_num_threads(1)
    for pair in args.pairs:
        folder = args.work / Path(pair).name
        folder.mkdir(parents=True, exist_ok=True)
        with (
            open(folder / "log.txt", "a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            mock.patch.dict(sys.modules, {"matplotlib.figure": None}),  # no picture of each run
        ):
            prepare(pair, folder, size)
            train_base(folder, size)
            bench = Bench(folder, size)
            for seed in range(args.seeds):
                for name in args.methods:
                    bench.run(name, seed)
        results[pair] = [row for row in bench.rows() if row["name"] in args.methods and row["seed"] < args.seeds]
        print(f"\n{pair}\n\n{table(results[pair])}", flush=True)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main(parse())
