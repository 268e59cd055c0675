"""`mypt inspect PATH`: what is in a run folder, a checkpoint or a dataset directory."""

import argparse
import json
from pathlib import Path

from mypt.cli.table import print_table
from mypt.errors import MyPTError

_TOLD = ("of", "from", "samples", "tokens", "fraction", "val", "seed")  # of what made a dataset of another one

HELP = "show what is in a run folder, a checkpoint or a dataset, without loading weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="run folder, checkpoint folder or dataset directory")
    add("--show", type=int, default=0, metavar="N", help="of a dataset: print the first N training windows as text")
    add("--block-size", type=int, default=128, metavar="N", help="tokens in a window of --show")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    from mypt.checkpoints.inspect import is_checkpoint
    from mypt.shards.format import METADATA_NAME
    from mypt.shards.legacy import is_foreign

    path = Path(args.path)
    if not path.exists():
        raise MyPTError(f"{path} does not exist; name a run folder, a checkpoint folder or a dataset directory")
    if (path / METADATA_NAME).is_file() or is_foreign(path):
        report = _dataset_report(path, args)
        show = _print_dataset
    elif is_checkpoint(path):
        report = _checkpoint_report(path, args)
        show = _print_checkpoint
    else:
        raise MyPTError(
            f"{path} holds neither config.json nor checkpoint-N (a model) nor {METADATA_NAME} (a dataset); "
            "name a run folder, a checkpoint folder or a dataset directory"
        )
    if args.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        show(report)
    return 1 if report["problems"] else 0


def _dataset_report(path: Path, args: argparse.Namespace) -> dict:
    from dataclasses import asdict

    from mypt.shards.inspect import inspect_dataset

    report = inspect_dataset(path)
    if args.show:
        from mypt.streams.show import decoded_windows
        from mypt.tokenization.load import load_tokenizer

        windows = decoded_windows(path, load_tokenizer(path), args.show, block_size=args.block_size)
        report["windows"] = [asdict(window) for window in windows]
    return report


def _checkpoint_report(path: Path, args: argparse.Namespace) -> dict:
    from mypt.checkpoints.inspect import inspect_checkpoint
    from mypt.streams.show import saved_ledger

    if args.show:
        raise MyPTError(f"--show prints windows of a dataset, and {path} is a model; name a dataset directory")
    report = inspect_checkpoint(path)
    if report["coverage"]:
        report["coverage"]["seen"] = saved_ledger(report["coverage"])
    return report


def _print_dataset(report: dict) -> None:
    columns = ["split", "tokens", "documents", "bytes of text", "bytes/token", "shards"]
    rows = [
        [name, *_numbers(s["tokens"], s["documents"], s["bytes"]), _figure(s["bytes_per_token"]), s["shards"]]
        for name, s in report["splits"].items()
    ]
    print_table(f"{report['path']}: dataset", columns, rows)
    tokenizer = report["tokenizer"]
    print()
    _line("tokenizer", f"{tokenizer['name']}, {tokenizer['vocab_size']:,} ids, EOS is {tokenizer['eos_token_id']}")
    _line("token ids", report["dtype"])
    _line("format", report["format"])
    for entry in report["history"]:
        told = {name: value for name, value in entry.items() if name in _TOLD}
        texts = ", ".join(source["name"] for source in entry.get("text", ()))
        _line(entry["did"], _plain({"of": texts} | told if texts else told))
    print()
    sources = [[s["name"], *_numbers(s["documents"], s["bytes"], s["tokens"])] for s in report["sources"]]
    print_table("", ["source", "documents", "bytes of text", "tokens"], sources)
    _pairs("settings", report["settings"])
    _pairs("while preparing", report["report"])
    print()
    _print_files(report)
    for window in report.get("windows", ()):
        print(
            f"\n--- sample {window['sample']}: {len(window['input_ids'])} tokens from token {window['first_token']:,}"
        )
        print(window["text"])


def _print_checkpoint(report: dict) -> None:
    model, weights = report["model"], report["weights"]
    print(f"{report['path']}: {report['kind']}")
    if report["model_path"] != report["path"]:
        _line("model", f"of {report['model_path']}; the run has not finished")
    _line("architecture", f"{model['architecture']} ({model['model_type']})")
    heads = f"{model['heads']} heads"
    if model["kv_heads"] not in (None, model["heads"]):
        heads += f" ({model['kv_heads']} key-value)"
    _line("shape", f"{model['layers']} layers x {heads} x {model['width']}, context {model['context']} tokens")
    if weights:
        dtypes = ", ".join(weights["dtypes"])
        _line("weights", f"{weights['parameters']:,} parameters in {dtypes}, {_size(weights['bytes'])}")
    if tokenizer := report["tokenizer"]:
        padded = f" (padded to {model['vocabulary']:,})" if model["vocabulary"] != tokenizer["ids"] else ""
        _line("tokenizer", f"{tokenizer['type']}, {tokenizer['ids']:,} ids{padded}, EOS {tokenizer['eos_token']}")
    if progress := report["progress"]:
        _print_progress(progress)
    if parameters := report["parameters"]:
        print()
        print_table("", ["parameters", "number"], [[part, f"{count:,}"] for part, count in parameters.items()])
    if coverage := report["coverage"]:
        rows = [[s["name"], *_numbers(s["samples"], s["tokens"]), _times(s)] for s in coverage["seen"]]
        print()
        print_table("", ["training data", "samples seen", "tokens seen", "coverage"], rows)
    if report["forgetting"]:
        _print_forgetting(report["forgetting"])
    if report["recipe"]:
        sections = {name: report["recipe"].get(name, {}) for name in ("model", "data", "optimizer", "training")}
        _pairs(
            "settings, from recipe.yaml",
            {f"{s}.{k}": v for s, keys in sections.items() for k, v in keys.items() if v not in (None, {})},
        )
    if report["checkpoints"]:
        rows = [[entry["name"], entry["missing"] or "complete"] for entry in report["checkpoints"]]
        print()
        print_table("", ["checkpoint", "state"], rows)
    print()
    _print_files(report)


def _times(seen: dict) -> str:
    """Coverage, of which a streamed source has an estimate at best."""
    if seen["coverage"] is None:
        return "unknown"
    return f"{'about ' if seen.get('estimated') else ''}{seen['coverage']:.2f}x"


def _print_progress(progress: dict) -> None:
    _line("progress", f"step {progress['step']:,} of {progress['max_steps']:,}")
    if progress["loss"] is not None:
        rate = f", learning rate {progress['learning_rate']:.2e}" if progress["learning_rate"] is not None else ""
        _line("training", f"loss {progress['loss']:.4f} nats/token at step {progress['logged_at_step']:,}{rate}")
    if progress["best_checkpoint"]:
        # eval_constrained_loss: the target's loss, or 1,000 + the worst excess over the forgetting tolerance
        metric = progress["best_metric"]
        excess = f"a guarded set is {metric - 1_000:.4f} nats/token beyond its tolerance"
        _line("best", f"{progress['best_checkpoint']}, " + (excess if metric >= 1_000 else f"loss {metric:.4f}"))


def _print_forgetting(forgetting: dict) -> None:
    rows = [
        [
            name,
            f"{reading['loss']:.4f}",
            f"{reading['bits_per_byte']:.4f}",
            f"{reading['delta']:+.4f} +/- {reading['delta_error']:.4f}",
            reading["state"],
        ]
        for name, reading in forgetting["sets"].items()
    ]
    print()
    columns = [f"evaluated at step {forgetting['step']:,}", "nats/token", "bits/byte", "since step 0", "state"]
    print_table("", columns, rows)
    if forgetting["verdict"]:
        print(forgetting["verdict"])


def _print_files(report: dict) -> None:
    total = sum(file["bytes"] for file in report["files"])
    rows = [[file["name"], _size(file["bytes"])] for file in report["files"]]
    print_table("", ["file", "size"], [*rows, ["all", _size(total)]])
    for problem in report["problems"]:
        print(f"PROBLEM: {problem}")


def _line(name: str, value: str) -> None:
    print(f"{name:<14}{value}")


def _pairs(title: str, values: dict) -> None:
    width = max(map(len, values), default=0) + 2
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:<{width}}{_plain(value)}")


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _size(count: float) -> str:
    """Bytes in powers of 1,000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1_000 and len(units) > 1:
        count /= 1_000
        units.pop(0)
    return f"{count:,.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"
