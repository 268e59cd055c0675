"""What every export format makes of one model, in one table: `python scripts/bench_formats.py MODEL`.

Each format is written as `mypt export` does it, with its checks; size, parity, rounding, greedy text and bits/byte are
those of its export.json. The speed is measured here, for all formats in turn, round by round: the first 16 tokens of
the text are continued by --tokens tokens, greedily, one sequence, one thread, with a cache of keys and values. Counted
are seconds of CPU time of the process that computes (of llama.cpp its server), so that other work on the machine does
not matter; the prompt is subtracted, by a run of one token. Two more rows are the model itself, by transformers'
`generate` and by `mypt generate`.

    parity              the largest difference of a logit (gguf: log-probability) between the files in their runtime and
                        the stock class with the very weights of the files
    rounding            what the dtype changes in a logit
    greedy text         equal, or NOT equal, to that of the same weights; and how many tokens are as the model's own

A format that refuses the model, or whose packages are missing, is a line below the table. All models of the table are
in memory at once. The exit code is 1 if a check of an export failed, 2 for bad input.
"""

import argparse
import ctypes
import math
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from mypt.cli.frameworks import load_transformers
from mypt.conversion.formats import FORMATS, SHORT, require_format
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.folders import require_free
from mypt.terminal import print_table, say, say_json
from mypt.versions import version_of

DEFAULT = ("safetensors", "onnx", "gguf:float16", "gguf:q8_0", "gguf:q4_k_m", "int8")
PACKAGES = ("torch", "transformers", "onnxruntime", "xllamacpp", "torchao")
PROMPT = 16  # tokens


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="run folder, checkpoint folder or hub id")
    names = f"{', '.join(FORMATS)}, each also with :DTYPE (default: {' '.join(DEFAULT)})"
    parser.add_argument("--formats", nargs="+", default=DEFAULT, metavar="FORMAT", help=names)
    parser.add_argument("--text", metavar="FILE", help="text for bits/byte and the prompt (Python's documentation)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="new tokens that are timed (64)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times each side is timed (5)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the exports there, in FORMAT-DTYPE folders")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    try:
        return run(args)
    except MyPTError as error:
        say(f"bench_formats: {error}", error=True)
        return error.exit_code


def run(args: argparse.Namespace) -> int:
    from mypt.checkpoints.load import require_model

    asked = [split(name) for name in args.formats]
    if min(args.tokens, args.rounds) < 1:
        raise CheckpointError("--tokens and --rounds are 1 or more")
    require_model(args.model)
    if args.out:
        require_free(args.out, CheckpointError)
    load_transformers()
    import torch

    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        exports, left_out, failed = write(args, asked, args.out or Path(place))
        rows = [of_the_model(exports), *map(of_an_export, exports)] if exports else []
        timed, speeds = measure_speed(args, exports)
        for name, seconds in speeds.items():
            row = next((row for row in rows if row["files"] == name), None)
            if row is None:  # a further way to run the model itself
                row = dict.fromkeys(rows[0]) | {"files": name}
                rows.insert(1, row)
            row["tokens_per_cpu_second"] = 1 / statistics.median(seconds)
            row["range"] = [1 / max(seconds), 1 / min(seconds)]
    found = {"machine": machine(), "model": args.model, "tokens": timed, "rounds": args.rounds}
    found |= {"source": source_of(exports), "formats": rows, "left_out": left_out}
    (say_json if args.json else print_found)(found)
    return int(failed)


def split(name: str) -> tuple[str, str | None]:
    """A format and the dtype that is asked for, of `format` or `format:dtype`. Raises CheckpointError."""
    format, _, dtype = name.partition(":")
    if format not in FORMATS:
        raise CheckpointError(f"--formats {name}: there is no format {format}; choose {', '.join(FORMATS)}")
    dtype = SHORT.get(dtype, dtype) or None
    if dtype and dtype not in (known := FORMATS[format].dtypes):
        raise CheckpointError(f"--formats {name}: {format} has no dtype {dtype}; choose {', '.join(known)}")
    return format, dtype


def write(args: argparse.Namespace, asked: list, out: Path) -> tuple[list[tuple[Path, dict]], list[str], bool]:
    """Export the model to every format that can hold it.

    Returns folders with their reports, lines about what was left out, and whether the check of an export failed.
    """
    from mypt.conversion.export import export_model

    exports, left_out, failed = [], [], False
    for format, dtype in asked:
        name, began = f"{format}-{dtype}" if dtype else format, time.process_time()
        try:
            require_format(format, dtype, None)
            report = export_model(args.model, out / name, dtype=dtype, format=format, text=args.text)
        except MyPTError as error:
            left_out.append(f"{name}: {error}")
            failed |= isinstance(error, CheckFailed)
            continue
        if label(report) in map(label, (other for _, other in exports)):
            left_out.append(f"{name}: {label(report)} is in the table already")
            continue
        exports.append((out / name, report))
        say(f"{name}: written and checked in {time.process_time() - began:.0f} CPU s", error=True)
    return exports, left_out, failed


def of_the_model(exports: list[tuple[Path, dict]]) -> dict:
    source = exports[0][1]["source"]
    same = dict.fromkeys(("parity", "rounding", "greedy_equal", "greedy_as_source", "greedy_tokens"))
    return {"files": MODEL, "bytes": source["bytes"], **same, "bits_per_byte": source["bits_per_byte"]}


def of_an_export(export: tuple[Path, dict]) -> dict:
    report = export[1]
    return {
        "files": label(report),
        "bytes": report["result"]["bytes"],
        "parity": max(report["differences"].values()),
        **{name: report[name] for name in ("rounding", "greedy_equal", "greedy_as_source", "greedy_tokens")},
        "bits_per_byte": report["result"]["bits_per_byte"],
        "runtime": report["result"]["runtime"],
    }


def label(report: dict) -> str:
    """What an export is called in the table."""
    return " ".join(dict.fromkeys((report["format"], report["dtype"])))


MODEL, ENGINE = "the model, by transformers", "the model, by mypt generate"


class EngineRunner:
    """The model by `mypt generate`: the `decode` and the `process` of a `Runner`."""

    def __init__(self, model, tokenizer):
        from mypt.generation.engine import Engine

        self.process, self._engine = os.getpid(), Engine(model, tokenizer)

    def decode(self, prompt, new: int) -> None:
        from mypt.generation.settings import GenerationSettings

        settings = GenerationSettings(greedy=True, max_new_tokens=new, min_new_tokens=new)
        self._engine.complete(prompt[0].tolist(), settings)


def measure_speed(args: argparse.Namespace, exports: list[tuple[Path, dict]]) -> tuple[int, dict[str, list[float]]]:
    """The tokens that are timed, which the model's context may limit, and CPU seconds per token of every way to run the
    model or its exports, in each round."""
    from mypt.checkpoints.load import load_model
    from mypt.conversion.export import WRITERS
    from mypt.conversion.parity import TransformersRunner
    from mypt.tokenization.load import model_tokenizer

    if not exports:
        return 0, {}
    model, tokenizer = load_model(args.model, device="cpu"), model_tokenizer(args.model)
    prompt = prompt_of(args.text, tokenizer, model.config)
    new = min(args.tokens, (getattr(model.config, "max_position_embeddings", None) or math.inf) - prompt.shape[1] - 1)
    if new < 1:
        raise CheckpointError(f"{args.model} has a context that leaves no room for a prompt and new tokens")
    with ExitStack() as opened:
        runners = {MODEL: TransformersRunner(model)}
        if tokenizer is not None:
            runners[ENGINE] = EngineRunner(model, tokenizer)
        for folder, report in exports:
            form = WRITERS[report["format"]]
            runners[label(report)] = opened.enter_context(form.open_folder(folder, tokenizer))
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(args.rounds + 1):
            for name, runner in runners.items():
                first, whole = (cpu_seconds(runner, prompt, count) for count in (1, new + 1))
                if number:  # the first round warms up
                    seconds[name].append((whole - first) / new)
    if wrong := [name for name, found in seconds.items() if not min(found) > 0]:
        raise CheckFailed(f"no time was counted for {', '.join(wrong)}: choose more --tokens")
    return new, seconds


def prompt_of(text: str | None, tokenizer, config):
    """The first tokens of the text, or random ids for a model without a tokenizer: int64 (1, T)."""
    from mypt.conversion.parity import make_text, random_ids, sample_text

    context = getattr(config, "max_position_embeddings", None) or PROMPT * 4
    length = max(1, min(PROMPT, context // 2))
    if tokenizer is None:
        return random_ids(config.vocab_size, length)[:1]
    content = Path(text).read_text(encoding="utf-8", errors="replace") if text else sample_text()
    found = make_text(tokenizer, content, context)
    if found is None:
        raise CheckpointError(f"{text} has less than two tokens; name a longer --text")
    return found.windows[0][:, :length]


def cpu_seconds(runner, prompt, new: int) -> float:
    """CPU time of the runner's process while it continues a prompt by exactly `new` tokens."""
    clock = clock_of(runner.process)
    began = time.clock_gettime(clock)
    runner.decode(prompt, new)
    return time.clock_gettime(clock) - began


def clock_of(process: int) -> int:
    """The clock of a process's CPU time, of all its threads: nanoseconds, where /proc counts hundredths."""
    if process == os.getpid():
        return time.CLOCK_PROCESS_CPUTIME_ID
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(ctypes.c_int(process), ctypes.byref(clock)):
        raise MyPTError(f"the CPU time of process {process} cannot be read here: {os.strerror(error)}")
    return clock.value


def machine() -> dict:
    names, cpu = {name: version_of(name) for name in PACKAGES}, platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), "packages": names}


def source_of(exports: list[tuple[Path, dict]]) -> dict | None:
    """What all exports were compared with."""
    if not exports:
        return None
    report = exports[0][1]
    return {name: report[name] for name in ("from", "to", "parameters", "largest_logit", "text")}


def print_found(found: dict) -> None:
    on, source = found["machine"], found["source"]
    say(f"{on['cpu']}, 1 thread; load {on['load']}; Python {on['python']}")
    say(", ".join(f"{name} {version}" for name, version in on["packages"].items()))
    if source:
        say(f"{found['model']}: {source['from']} as {source['to']}, {source['parameters']:,} parameters")
        read = source["text"] and f"; bits/byte of {source['text']['tokens']} tokens, {source['text']['bytes']:,} bytes"
        say(f"the largest logit is {source['largest_logit']:.1f}{read or ''}", "")
        columns = ["files", "MB", "parity", "rounding", "greedy text", "as the model's", "bits/byte"]
        print_table("", [*columns, "tokens per CPU second", "range"], [cells(row) for row in found["formats"]])
        say("", f"speed: {found['tokens']} tokens, greedy, one sequence; the median of {found['rounds']} rounds")
    for line in found["left_out"]:
        say(f"left out: {line}")


def cells(row: dict) -> list[str]:
    def shown(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    equal = {None: "-", True: "equal", False: "NOT equal"}[row["greedy_equal"]]
    common = "-" if row["greedy_tokens"] is None else f"{row['greedy_as_source']} of {row['greedy_tokens']}"
    size = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}"
    speed = f"{row['tokens_per_cpu_second']:,.{0 if row['tokens_per_cpu_second'] >= 100 else 1}f}"
    lowest, highest = (f"{value:,.{0 if value >= 100 else 1}f}" for value in row["range"])
    figures = [shown("parity", ".1e"), shown("rounding", ".1e"), equal, common, shown("bits_per_byte", ".4f")]
    return [row["files"], size, *figures, speed, f"{lowest}-{highest}"]


if __name__ == "__main__":
    sys.exit(main())
