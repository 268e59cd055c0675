"""`mypt plan` against reality: memory by its model and time by `--measure`, beside a real run of `mypt train`.

    python scripts/bench_plan.py [--cpu] [--only WORDS] [--seconds 20] [--json FILE]

For each configuration a recipe is measured as `mypt plan RECIPE --measure` does it (a few steps, one evaluation, one
save, in a process of their own); the time of a run of about --seconds of steps is predicted from that, then
`mypt train` runs it in a fresh process: its seconds from start to end, imports and pictures included, and its peak
resident memory. Predicted memory is what `mypt plan` prints before anything is measured: the larger of a step's and of
an evaluation's. One thread.

--cpu counts CPU seconds on both sides, for a machine on which other processes run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

GIB = 2**30
MEMORY, TIME = 0.15, 0.25  # aims: how far predicted / measured may be from 1
WHILE_MEASURED = 300  # steps of the run, while it is measured
FLOAT32, AGAIN = {"training": {"bf16": False}}, {"training": {"activation_checkpointing": True}}
# name: preset, sequences x tokens, and what else is in the recipe
CONFIGURATIONS = {
    "modern-nano, 16 x 128": ("modern-nano", (16, 128), {}),
    "modern-nano, float32, 8 x 256": ("modern-nano", (8, 256), FLOAT32),
    "modern-tiny, 1 x 1024": ("modern-tiny", (1, 1024), {}),
    "modern-small, adamw, 2 x 256": ("modern-small", (2, 256), {"optimizer": {"name": "adamw"}}),
    "modern-tiny, 4 x 128, 4 passes": ("modern-tiny", (4, 128), {"training": {"gradient_accumulation_steps": 4}}),
    "modern-tiny, checkpointing, 8 x 256": ("modern-tiny", (8, 256), AGAIN),
    "modern-small, LoRA, 4 x 256": ("modern-small", (4, 256), {"lora": {"r": 8}}),
    "modern-nano, evaluation-heavy": (
        "modern-nano", (8, 128), {"forgetting": {"eval_windows": 200}, "training": {"eval_steps": 0.1}}
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds instead of wall time")
    parser.add_argument("--only", default="", help="run the configurations whose name holds this")
    parser.add_argument("--seconds", type=float, default=20, help="of steps in each real run")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    unit, rows = "CPU s" if args.cpu else "s", []
    began = time.perf_counter()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread; load {os.getloadavg()[0]:.1f} at the start")
    print(f"{'':44}{'memory, GiB':^27}{'time, ' + unit:^27}")
    print(f"{'configuration':<44}" + 2 * f"{'predicted':>10}{'measured':>10}{'ratio':>7}" + f"{'steps':>7}")
    with TemporaryDirectory() as folder:
        file = args.json and args.json.absolute()
        os.chdir(folder)
        prepare()
        for name in CONFIGURATIONS:
            if args.only in name:
                rows.append(compare(name, args.seconds, args.cpu))
                print(line(rows[-1]), flush=True)
                if file:
                    file.write_text(json.dumps(rows, indent=1))
    for what, aim in (("memory", MEMORY), ("time", TIME)):
        within = sum(abs(row[what]["ratio"] - 1) <= aim for row in rows)
        print(f"{what} within {aim:.0%}: {within} of {len(rows)}")
    print(f"load {os.getloadavg()[0]:.1f} at the end, after {time.perf_counter() - began:.0f} s")


def line(row: dict) -> str:
    cells = ""
    for what in ("memory", "time"):
        figures = row[what]
        cells += f"{figures['predicted']:>10.2f}{figures['measured']:>10.2f}{figures['ratio']:>7.2f}"
    return f"{row['name']:<44}{cells}{row['steps']:>7}"


def mypt(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "mypt", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mypt {' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout


def prepare() -> None:
    """`general`: prose, `code`: Python; one tokenizer."""
    Path("general.txt").write_text("\n\n".join(text for _, text in sorted(topics.items())), encoding="utf-8")
    sources = [Path(os.__file__).parent / f"{name}.py" for name in ("argparse", "ast", "inspect", "tarfile", "typing")]
    Path("code.txt").write_text("\n\n".join(path.read_text(encoding="utf-8") for path in sources), encoding="utf-8")
    tail = ("--val-split", "tail")
    mypt("prepare", "--source", "general.txt", "--out", "general", "--vocab-size", "8000", *tail)
    mypt("prepare", "--source", "code.txt", "--out", "code", "--tokenizer", "general", *tail)


def write_recipe(name: str) -> Path:
    from mypt.yaml12 import dump_yaml

    preset, (sequences, tokens), others = CONFIGURATIONS[name]
    folder = name.replace(" ", "_").replace(",", "")
    content = {
        "model": {"preset": preset},
        "data": {"train": {"code": 0.9, "general": 0.1}, "eval": {"code": "code", "general": "general"},
                 "block_size": tokens},
        "coverage": {"confirm": False},
        "forgetting": {"eval_windows": 16},
        "training": {"output_dir": f"runs/{folder}", "per_device_train_batch_size": sequences, "save_steps": 0.5,
                     "use_cpu": True},
    }  # fmt: skip
    for section, values in others.items():
        content[section] = content.get(section, {}) | values
    if "lora" in content:
        content["model"] = {"init_from": base(preset)}
    path = Path(f"{folder}.yaml")
    path.write_text(dump_yaml(content), encoding="utf-8")
    return path


def base(preset: str) -> str:
    """A model of random weights with the tokenizer, made in a process of its own."""
    program = (
        "import sys; from mypt.models.presets import preset_config; "
        "from mypt.models.modeling_mypt import MyPTForCausalLM; from mypt.tokenization.load import load_tokenizer; "
        "tokenizer = load_tokenizer('general'); tokenizer.save_pretrained('base'); "
        "config = preset_config(sys.argv[1], vocab_size=-(-len(tokenizer) // 64) * 64); "
        "MyPTForCausalLM(config).save_pretrained('base')"
    )
    subprocess.run([sys.executable, "-c", program, preset], check=True, capture_output=True)
    return "base"


def compare(name: str, seconds: float, cpu: bool) -> dict:
    from mypt.planning.time import measured_speed, plan_time
    from mypt.recipe import load_recipe
    from mypt.training.measured_steps import measure

    path = write_recipe(name)
    measured = measure(load_recipe(path), WHILE_MEASURED, cpu_seconds=cpu)
    steps = max(10, round(seconds / measured.step))
    length = f"--training.max_steps={steps}"
    plan = json.loads(mypt("plan", str(path), length, "--json"))
    predicted = plan_time(measured_speed(measured), steps=steps, save_steps=0.5, windows=plan["evaluation"]["forward"])
    real, memory = run("train", str(path), length, "--yes", cpu=cpu)
    planned = max(plan["memory"][name]["total"] for name in ("training", "evaluation"))
    return {
        "name": name,
        "steps": steps,
        "memory": ratio(planned / GIB, memory / GIB),
        "time": ratio(predicted.seconds, real),
        "measured_memory": measured.memory / GIB,
        "parts": predicted.parts,
        "plan": plan["time"] | {"flops": plan["compute"]["flops"]},
    }


def ratio(predicted: float, measured: float) -> dict:
    return {"predicted": predicted, "measured": measured, "ratio": predicted / measured}


def run(*arguments: str, cpu: bool) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command."""
    start = time.perf_counter()
    with open("output.txt", "wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "mypt", *arguments], stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"mypt {' '.join(arguments)}: {Path('output.txt').read_text()[-2000:]}")
    wall = time.perf_counter() - start
    peak = used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss * 1024
    return (used.ru_utime + used.ru_stime if cpu else wall), peak


if __name__ == "__main__":
    main()
