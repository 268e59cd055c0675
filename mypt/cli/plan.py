"""`mypt plan`: what a recipe, a preset or a checkpoint will cost and be worth, before any compute is spent."""

import argparse
import json
import os
import re
from pathlib import Path

from mypt.errors import MyPTError

HELP = "coverage, parameters, memory, compute and whether a run is worth it, before it starts"

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTE_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

DEFAULT_BATCH, DEFAULT_BLOCK = 8, 1024
BYTES_PER_TOKEN = 4  # English text under a BPE tokenizer of some tens of thousands of tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", nargs="?", help="a recipe, the name of a preset, or a folder with a config.json; or none")
    add("--tokens", type=count, help="size of the dataset in tokens (500_000_000, 5e8, 500M), instead of the recipe's")
    add("--params", type=count, help="parameters of the model (124M), where no model is named")
    add("--block-size", type=count, help=f"tokens per sequence; None: the model's, else {DEFAULT_BLOCK}")
    add("--batch-size", type=count, help=f"sequences per process and pass; None: the recipe's, else {DEFAULT_BATCH}")
    add("--accumulation", type=count, help="passes per step; None: the recipe's, else 1")
    add("--processes", type=count, help="processes, one per device; None: WORLD_SIZE, else 1")
    add("--steps", type=count, help="optimizer steps; None: the recipe's, else 3.5 passes over the data")
    add("--optimizer", choices=("adamw", "muon"), help="for its memory; None: the recipe's, else muon")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of activations; None: the recipe's, else float32")
    add("--memory", type=byte_count, help="memory of one device in bytes (24G: GiB); None: this machine's main memory")
    add("--tokens-per-second", type=count, help="a measured rate over all processes, to estimate the time")
    add("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(overrides=[])
    parser.epilog = "--section.key=value changes one value of the recipe, for example --training.max_steps=100"


def run(args: argparse.Namespace) -> None:
    from mypt.cli.table import print_table
    from mypt.planning.report import coverage_report, plan, plan_rows

    settings, steps, notes = _settings(args)
    settings["steps"], reason = _steps(args, settings, steps)
    result = plan(**settings)
    if args.json:
        print(json.dumps({"target": args.target, "notes": notes, "reason": reason, **result}, indent=1))
        return
    for note in notes:
        print(f"note: {note}")
    if settings["steps"]:
        print(f"{settings['steps']:,} steps: {reason}")
    if "coverage" in result:
        shared = ("sources", "batch_size", "block_size", "accumulation", "processes", "steps")
        report = coverage_report(**{name: settings[name] for name in shared}, parameters=result.get("parameters"))
        print("\n".join(report))
    for table in plan_rows(result):
        print()
        print_table(*table)
    for words in _last_words(result, "" if args.memory else " (this machine's main memory; --memory for a GPU's)"):
        print(f"\n{words}")


def _settings(args: argparse.Namespace) -> tuple[dict, dict, list[str]]:
    """Arguments of `plan` but the steps, what the recipe says of the steps, and what had to be assumed or left out."""
    known, steps, notes = _read_target(args)
    if args.tokens:
        known["sources"] = [{"name": "data", "tokens": args.tokens}]
    if args.params and "dimensions" in known:
        raise MyPTError(f"--params {args.params:,}: {args.target} has a number of parameters already; leave one out")
    known["parameters"] = args.params
    given = {
        "batch_size": args.batch_size,
        "block_size": args.block_size,
        "accumulation": args.accumulation,
        "processes": args.processes or _world_size(),
        "optimizer": args.optimizer,
        "compute_dtype": args.dtype,
        "tokens_per_second": args.tokens_per_second,
        "available": args.memory or _main_memory(),
    }
    known |= {name: value for name, value in given.items() if value is not None}
    for name, default in (("batch_size", DEFAULT_BATCH), ("block_size", DEFAULT_BLOCK)):
        if name not in known:
            known[name] = default
            notes.append(f"no --{name.replace('_', '-')} given: {default} assumed")
    dimensions, block_size = known.get("dimensions"), known["block_size"]
    if dimensions and block_size > dimensions["max_position_embeddings"]:
        limit = dimensions["max_position_embeddings"]
        notes.append(f"the model has {limit:,} positions, fewer than the block size: planned with {block_size:,}")
        known["dimensions"] = dimensions | {"max_position_embeddings": block_size}
    if "sources" not in known:
        notes.append("the size of the data is not known: give --tokens to plan coverage")
    return {"accumulation": 1, "optimizer": "muon", "sources": None} | known, steps, notes


def _read_target(args: argparse.Namespace) -> tuple[dict, dict, list[str]]:
    from mypt.models.presets import PRESETS, preset_dimensions

    target = args.target
    is_recipe = target and (target.endswith((".yaml", ".yml")) or Path(target, "recipe.yaml").is_file())
    if args.overrides and not is_recipe:
        raise MyPTError(f"unrecognized arguments: {' '.join(args.overrides)}; only a recipe has keys to change")
    if target is None:
        if not (args.tokens or args.params):
            raise MyPTError("nothing to plan: name a recipe, a preset or a checkpoint, or give --tokens and --params")
        return {}, {}, []
    if is_recipe:
        return _from_recipe(target, args.overrides)
    if target in PRESETS:
        dimensions = preset_dimensions(target)
    elif Path(target).exists():
        dimensions = _read_config(target)
    else:
        try:
            dimensions = preset_dimensions(target)
        except ValueError as error:
            raise MyPTError(f"{target} is no recipe (.yaml) or checkpoint folder that exists, and {error}") from None
    return {"dimensions": dimensions, "block_size": dimensions["max_position_embeddings"]}, {}, []


def _from_recipe(path: str, overrides: list[str]) -> tuple[dict, dict, list[str]]:
    from mypt.planning.coverage import whole
    from mypt.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    training, notes = recipe.training, []
    autocast = "bfloat16" if training.get("bf16") else "float16" if training.get("fp16") else None
    batch, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
    known = {
        "batch_size": whole(f"training.{batch}", training.get(batch, DEFAULT_BATCH)),
        "accumulation": whole(f"training.{accumulation}", training.get(accumulation, 1)),
        "checkpointing": bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing")),
        "weight_dtype": recipe.model.dtype or "float32",
        "compute_dtype": autocast or recipe.model.dtype or "float32",
    }
    sources, vocabulary = _sources(recipe, notes)
    if sources:
        known["sources"] = sources
    dimensions = _recipe_dimensions(recipe, vocabulary, notes)
    if dimensions:
        known["dimensions"] = dimensions
    block_size = recipe.data.block_size or (dimensions and dimensions["max_position_embeddings"])
    if block_size:
        known["block_size"] = block_size
    optimizer = "adamw" if "optim" in training else recipe.optimizer.name
    if optimizer not in (None, "adamw", "muon"):
        notes.append(f"the memory of optimizer {optimizer} is not known: AdamW's is assumed")
        optimizer = "adamw"
    known["optimizer"] = optimizer or ("adamw" if recipe.model.init_from else "muon")
    steps = {name: training.get(name) for name in ("max_steps", "num_train_epochs")}
    return known, steps | {"coverage_target": recipe.coverage.target}, notes


def _recipe_dimensions(recipe, vocabulary: int | None, notes: list[str]) -> dict | None:
    from mypt.models.presets import preset_dimensions

    section = recipe.model
    if section.init_from:
        if Path(section.init_from, "config.json").is_file():
            return _read_config(section.init_from)
        notes.append(f"model.init_from {section.init_from} is not on this machine: give --params to plan the model")
        return None
    try:
        dimensions = preset_dimensions(section.preset)
        changes = {"vocab_size": -(-vocabulary // 64) * 64} if vocabulary else {}
        if recipe.data.block_size and recipe.data.block_size > dimensions["max_position_embeddings"]:
            changes["max_position_embeddings"] = recipe.data.block_size
        return preset_dimensions(section.preset, **changes | section.config)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise MyPTError(f"model: {error}") from None


def _sources(recipe, notes: list[str]) -> tuple[list[dict] | None, int | None]:
    """Sizes of the recipe's training data (None unless all are known) and its vocabulary, if it is prepared."""
    from mypt.shards.format import METADATA_NAME, read_manifest
    from mypt.text.files import dataset_directory

    sources, vocabulary = [], None
    for name, weight in recipe.data.train.items():
        directory = Path(name)
        prepared = Path(recipe.training.get("output_dir", ""), "data")
        if directory.is_file() and (prepared / METADATA_NAME).is_file():
            directory = prepared
        if directory.is_dir() and dataset_directory(name) is None:
            manifest = read_manifest(directory, recipe.data.dtype)
            vocabulary = manifest.vocab_size
            sources.append({"name": name, "weight": weight, "tokens": manifest.splits["train"].tokens})
        elif directory.is_file():
            tokens = int(directory.stat().st_size / BYTES_PER_TOKEN * (1 - recipe.data.val_fraction))
            notes.append(f"{name} is not prepared yet: its tokens are estimated at {BYTES_PER_TOKEN} bytes each")
            sources.append({"name": name, "weight": weight, "tokens": max(1, tokens), "estimated": True})
        elif directory.is_dir() or name.startswith("hf://"):
            notes.append(f"{name} is streamed: its size is not known before it is read")
        else:
            notes.append(f"{name} is not on this machine yet (`mypt prepare --source ... --out DIR` makes a dataset)")
    return (sources if sources and len(sources) == len(recipe.data.train) else None), vocabulary


def _steps(args: argparse.Namespace, settings: dict, recipe_steps: dict) -> tuple[int | None, str | None]:
    """The rule by which training decides, too; None where the size of the data is needed and not known."""
    from mypt.planning.coverage import planned_steps

    if args.steps:
        return args.steps, "--steps"
    sources = settings["sources"]
    if not sources:
        steps = recipe_steps.get("max_steps")
        return (steps, "training.max_steps") if isinstance(steps, int) and steps > 0 else (None, None)
    samples, tokens = _epoch(sources, settings["block_size"])
    return planned_steps(
        recipe_steps.get("max_steps"),
        recipe_steps.get("num_train_epochs"),
        recipe_steps.get("coverage_target"),
        samples,
        tokens,
        settings["batch_size"] * settings["accumulation"] * settings["processes"],
        settings["block_size"],
    )


def _epoch(sources: list[dict], block_size: int) -> tuple[int, int]:
    """Samples and tokens of the whole mixture in which its main source is seen once, as `ShardStream` counts them."""
    from mypt.streams.mixture import PERIOD, Mixture
    from mypt.streams.windows import window_count

    weights = [source.get("weight", 1) for source in sources]
    main = weights.index(max(weights))
    mixture, tokens = Mixture(weights), sources[main]["tokens"]
    samples = -(-window_count(tokens, block_size) * PERIOD // mixture.counts[main])
    return samples, round(tokens / mixture.shares[main])


def _read_config(folder: str) -> dict:
    from mypt.planning.parameters import dimensions_of

    path = Path(folder, "config.json")
    try:
        return dimensions_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise MyPTError(f"{path} cannot be read ({type(error).__name__}); expected a saved model's folder") from None


def _world_size() -> int:
    value = os.environ.get("WORLD_SIZE", "1")
    if not value.isdigit() or int(value) < 1:
        raise MyPTError(f"WORLD_SIZE is {value!r}, expected a whole number; unset it or pass --processes")
    return int(value)


def _main_memory() -> int | None:
    """Bytes of main memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _last_words(result: dict, which_memory: str) -> list[str]:
    words = []
    if "advice" in result.get("memory", {}):
        words.append(f"Memory{which_memory}: {result['memory']['advice']}")
    if "compute_optimal_tokens" in result["training"] and "coverage" not in result:
        words.append(f"Compute-optimal training data: about {result['training']['compute_optimal_tokens']:,} tokens")
    return words


def count(text: str) -> int:
    """500_000_000, 5e8, 1.2B or 500M as a whole number."""
    return _parse(text, _UNITS, "a number such as 500_000_000, 5e8, 1.2B or 500M")


def byte_count(text: str) -> int:
    """24G, 24GiB or 25769803776 as bytes; the letters are powers of 1,024."""
    return _parse(re.sub(r"(?i)i?b$", "", text), _BYTE_UNITS, "bytes such as 24G or 80GiB")


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]{1,2})?)\s*([a-zA-Z]?)", text.strip())
    if not match or match[2].lower() not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is not understood, expected {expected}")
    from fractions import Fraction

    number = int(Fraction(re.sub("[_,]", "", match[1])) * units[match[2].lower()])
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1, expected {expected}")
    return number
