"""Speed and loss on one GPU: `mypt train` beside HF's models in HF's Trainer and nanoGPT, on text made on the spot.

    python scripts/bench_gpu.py [--shape gpt2 qwen3] [--nanogpt nanoGPT] [--minutes 10] [--json]

gpt2 is GPT-2 small (124M parameters: 12 layers, 12 heads, width 768, 50,304 ids), qwen3 is Qwen3-0.6B (28 layers, 16
heads of 128, 8 key-value heads, width 1024, 151,936 ids); both train on windows of 1,024 tokens, in bfloat16 autocast
of float32 weights, compiled (--no-compile: none is). tiny has all the code in seconds, on a CPU too.

Sides: "ours" is `mypt train` with its default optimizer and rate for a new model, "ours_adamw" the same with the
peers' AdamW; "hf_gpt2", "hf_qwen3" and "hf_llama" are transformers' classes in a stock Trainer with fused AdamW;
"nanogpt" is nanoGPT's model and optimizer from its own source in a loop like its train.py. All take micro-batches of
one size, rate 6e-4 (but "ours"), 100 steps of warm-up, then a constant rate, weight decay 0.1, betas 0.9 and 0.95,
clipping at 1.0.

Every side is a process of its own with a time limit. After 10 steps, which compile, all train for the same number of
seconds: tokens per second are of these, "loss" is the mean nats per token on the same held-out windows after them.
MFU counts 6 N + 12 L A T FLOPs a token for all sides of a shape (docs/throughput.md) and is of the peak that the line
names, mypt's own table. The text is the running interpreter's documentation and the Python sources that are installed,
with a vocabulary of 8,192 made from it.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench_training import exact_loss, read_ids

ROOT = Path(__file__).parents[1]
RATE, WARMUP, DECAY, BETAS = 6e-4, 100, 0.1, (0.9, 0.95)
SETTLE = 10  # steps before the time is taken: compiling, allocating
OVERHEAD = 50  # seconds of a side beside its training: imports, weights, compiling, the loss
SPARE = 10  # seconds that are left when the last side has to end
TEXT_MB = 60  # of Python sources beside the embedded corpus
ENDLESS = 1_000_000  # steps that no side reaches


@dataclass(frozen=True)
class Shape:
    """preset, fields: of `mypt.models.presets`. batch: windows of `block` tokens in a step. windows: of the loss."""

    preset: str
    fields: dict
    block: int
    batch: int
    sides: tuple[str, ...]
    windows: int = 64
    vocabulary: int = 8_192


QWEN3 = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
         "hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 151_936, "max_position_embeddings": 1024,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}  # fmt: skip
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "vocab_size": 512,
        "max_position_embeddings": 32}  # fmt: skip
SHAPES = {
    "gpt2": Shape("150M_1024", {"num_hidden_layers": 12}, 1024, 32, ("ours", "ours_adamw", "hf_gpt2", "nanogpt")),
    "qwen3": Shape("modern-large", QWEN3, 1024, 16, ("ours", "ours_adamw", "hf_qwen3")),
    "tiny": Shape("tiny", TINY, 32, 4, ("ours", "ours_adamw", "hf_gpt2", "hf_qwen3", "hf_llama", "nanogpt"), 4, 0),
}


class Clock:
    """Training of `seconds` after the first SETTLE steps."""

    def __init__(self, seconds: float, device):
        self.seconds, self.device = seconds, device
        self.steps = 0
        self.created = time.perf_counter()

    def step(self) -> bool:
        """A step has ended; whether it was the last one."""
        self.steps += 1
        if self.steps == SETTLE:
            self.settled = self._now()
        if self.steps <= SETTLE or time.perf_counter() - self.settled < self.seconds:
            return False
        self.ended = self._now()
        return True

    def _now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def dimensions(shape: Shape) -> dict:
    from mypt.models.presets import preset_dimensions

    return preset_dimensions(shape.preset, **shape.fields)


def stopper(clock: Clock):
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_training_stop or clock.step()

    return Stopper()


def train_ours(args, shape: Shape, ids: dict, clock: Clock):
    import yaml

    from mypt import build_trainer, load_recipe

    optimizer = {"schedule": "constant"} | ({"name": "adamw"} if args.side == "ours_adamw" else {})
    rate = {"learning_rate": RATE} if args.side == "ours_adamw" else {}
    run = args.work / f"{args.name}-run"
    shutil.rmtree(run, ignore_errors=True)
    content = {
        "model": {"preset": shape.preset, **shape.fields},
        "data": {"train": str(args.data), "eval": {}, "block_size": shape.block},
        "coverage": {"confirm": False},
        "optimizer": optimizer,
        "training": {
            "output_dir": str(run), "max_steps": ENDLESS, "per_device_train_batch_size": shape.batch,
            "gradient_accumulation_steps": 1, "warmup_steps": WARMUP, "weight_decay": DECAY, "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1], "max_grad_norm": 1.0, "logging_steps": 50, "eval_strategy": "no",
            "save_steps": ENDLESS, "torch_compile": args.compile, "bf16": clock.device.type == "cuda", **rate,
        },
    }  # fmt: skip
    recipe = args.work / f"{args.name}.yaml"
    recipe.write_text(yaml.safe_dump(content))
    trainer = build_trainer(load_recipe(recipe), assume_yes=True)
    trainer.add_callback(stopper(clock))
    trainer.train()
    trainer.give_back()
    return trainer.model, lambda inputs: trainer.model(input_ids=inputs, use_cache=False).logits


def hf_model(side: str, shape: Shape):
    import transformers

    d = dimensions(shape)
    if side == "hf_gpt2":
        config = transformers.GPT2Config(
            vocab_size=d["vocab_size"], n_positions=shape.block, n_embd=d["hidden_size"],
            n_layer=d["num_hidden_layers"], n_head=d["num_attention_heads"],
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "max_position_embeddings")  # fmt: skip
    sizes = {name: d[name] for name in names} | {"tie_word_embeddings": True}
    # Two thirds of a plain MLP's width have its number of weights when a third matrix is the gate.
    sizes["intermediate_size"] = d["intermediate_size"] if d["mlp_gated"] else d["intermediate_size"] * 2 // 3
    sizes["rope_parameters"] = d.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10_000.0}
    if side == "hf_qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def train_hf(args, shape: Shape, ids: dict, clock: Clock):
    import torch
    from torch.utils.data import IterableDataset
    from transformers import PrinterCallback, Trainer, TrainingArguments

    text = ids["train"]

    class Windows(IterableDataset):
        def __iter__(self):
            while True:
                place = int(torch.randint(len(text) - shape.block, ()))
                window = text[place : place + shape.block]
                yield {"input_ids": window, "labels": window}

    model = hf_model(args.side, shape)
    on_gpu = clock.device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(args.work / args.name), max_steps=ENDLESS, per_device_train_batch_size=shape.batch,
        learning_rate=RATE, warmup_steps=WARMUP, lr_scheduler_type="constant_with_warmup", weight_decay=DECAY,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=1.0, optim="adamw_torch_fused", bf16=on_gpu,
        torch_compile=args.compile, use_cpu=not on_gpu, save_strategy="no", logging_steps=50, report_to="none",
        disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Windows(), callbacks=[stopper(clock)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model, lambda inputs: model(input_ids=inputs, use_cache=False).logits


def train_nanogpt(args, shape: Shape, ids: dict, clock: Clock):
    """Its model, with the settings that its train.py has for GPT-2 (no biases), and a loop like its own."""
    import torch

    sys.path.insert(0, str(args.nanogpt))
    from model import GPT, GPTConfig

    d, text, device = dimensions(shape), ids["train"], clock.device
    sizes = (shape.block, d["vocab_size"], d["num_hidden_layers"], d["num_attention_heads"], d["hidden_size"])
    model = GPT(GPTConfig(*sizes, dropout=0.0, bias=False)).to(device)
    optimizer = model.configure_optimizers(DECAY, RATE, BETAS, device.type)
    run = torch.compile(model) if args.compile else model
    on_gpu = device.type == "cuda"

    def batch() -> tuple:
        places = torch.randint(len(text) - shape.block, (shape.batch,))
        pair = (torch.stack([text[i + shift : i + shift + shape.block] for i in places]) for shift in (0, 1))
        return tuple(part.pin_memory().to(device, non_blocking=True) if on_gpu else part for part in pair)

    inputs, targets = batch()
    ended = False
    while not ended:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (clock.steps + 1) / (WARMUP + 1))
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            _, loss = run(inputs, targets)
        inputs, targets = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ended = clock.step()
        if clock.steps % 10 == 0:
            loss.item()
    return model, lambda inputs: model(inputs, inputs)[0]


TRAINERS = {"ours": train_ours, "ours_adamw": train_ours, "hf_gpt2": train_hf, "hf_qwen3": train_hf,
            "hf_llama": train_hf, "nanogpt": train_nanogpt}  # fmt: skip


def child(args) -> dict:
    """One side's figures, also written to --work."""
    import torch

    from mypt.hardware.peak import peak_of
    from mypt.planning.scaling import flops_per_token

    shape, device = SHAPES[args.shape[0]], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32, for all sides
    ids = read_ids(args.data, keep_eos=True)
    clock = Clock(args.seconds, device)
    model, logits = TRAINERS[args.side](args, shape, ids, clock)
    memory = memory_gib(device)
    model.eval()
    val = ids["val"][: shape.windows * shape.block + 1].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = exact_loss(logits, val, block=shape.block, rows=4)
    trained, spent = clock.steps - SETTLE, clock.ended - clock.settled
    speed = trained * shape.batch * shape.block / spent
    peak = peak_of(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    report = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_second": speed,
        "mfu": speed * flops_per_token(dimensions(shape), shape.block) / peak.flops,
        "peak": peak.words,
        "memory_gib": memory,
        "startup_seconds": clock.settled - clock.created,
        "seconds": spent,
        "tokens": clock.steps * shape.batch * shape.block,
        "loss": loss,
    }
    (args.work / f"{args.name}.json").write_text(json.dumps(report))
    return report


def memory_gib(device) -> float:
    """The most that torch allocated on the GPU, or that the process held."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def environment() -> dict:
    """That of a child: this checkout is the mypt that runs."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def prepare(args, tiny: bool) -> None:
    """`args.data`, from text that this machine has."""
    text = args.work / "text"
    text.mkdir(parents=True, exist_ok=True)
    if tiny:
        from pydoc_data.topics import topics

        write_documents(text / "topics.jsonl", list(topics.values())[:40])
    else:
        run([sys.executable, "-m", "mypt.text.embedded", str(text)])
        write_documents(text / "installed.jsonl", installed_sources(TEXT_MB * 10**6))
    kind = ["--tokenizer", "char"] if tiny else ["--vocab-size", str(SHAPES["gpt2"].vocabulary)]
    workers = str(min(8, os.cpu_count() or 1))
    run([sys.executable, "-m", "mypt", "prepare", "--source", *map(str, sorted(text.glob("*.jsonl"))), "--out",
         str(args.data), "--workers", workers, *kind])  # fmt: skip


def installed_sources(most: int):
    """Python files of the installed packages, up to `most` bytes."""
    size = 0
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        size += len(source)
        if size > most:
            return
        yield source


def write_documents(path: Path, documents) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document}) + "\n" for document in documents if document.strip())


def run(command: list[str]) -> None:
    done = subprocess.run(command, env=environment() | {"TOKENIZERS_PARALLELISM": "true"}, capture_output=True,
                          text=True)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:4])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def measure(args, shape: str, side: str, seconds: float, limit: float) -> dict:
    """One side in a process of its own; {"error": words} if it fails or does not end within `limit` seconds."""
    name = f"{shape}-{side}"
    (args.work / f"{name}.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--shape", shape, "--work", str(args.work), "--nanogpt", str(args.nanogpt),
               "--compile" if args.compile else "--no-compile",
               "--child", json.dumps({"side": side, "name": name, "seconds": seconds})]  # fmt: skip
    log = args.work / f"{name}.log"
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's workers, too
            process.wait()
            return {"error": f"did not end within {limit:.0f} s; see {log}"}
    if code:
        return {"error": f"exit code {code}: {last_words(log)}; see {log}"}
    return json.loads((args.work / f"{name}.json").read_text())


def last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def machine() -> dict:
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found = {"cpu": names[0].partition(": ")[2] if names else platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return found


def versions() -> dict:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "tokenizers", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main(args) -> int:
    end = time.monotonic() + 60 * args.minutes - SPARE
    quiet = args.json
    report = {"machine": machine(), "versions": versions(), "compiled": args.compile, "shapes": {}}
    tell(quiet, ", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    tell(quiet, ", ".join(f"{name} {value or 'not installed'}" for name, value in report["versions"].items()))
    if "gpu" not in report["machine"] and args.shape != ["tiny"]:
        print("there is no GPU here; --shape tiny runs all the code on a CPU", file=sys.stderr)
        return 2
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.data / "dataset_metadata.json").is_file():
        began = time.monotonic()
        prepare(args, tiny=args.shape == ["tiny"])
        tell(quiet, f"text prepared in {time.monotonic() - began:.0f} s")
    runs = [(shape, side) for shape in args.shape for side in sides_of(args, shape)]
    seconds = args.seconds or max(1.0, (end - time.monotonic()) / len(runs) - OVERHEAD)
    tell(quiet, f"{len(runs)} sides, {seconds:.0f} s of training each, {'compiled' if args.compile else 'eager'}")
    for shape, side in runs:
        left = end - time.monotonic()
        found = measure(args, shape, side, seconds, left) if left > seconds else {"error": "no time was left"}
        report["shapes"].setdefault(shape, {})[side] = found
        tell(quiet, f"  {shape}, {side}: {words(found)}")
    for shape, sides in report["shapes"].items():
        ratios = {f"{ours} / {peer}": sides[ours]["tokens_per_second"] / sides[peer]["tokens_per_second"]
                  for ours in sides if ours.startswith("ours") and "error" not in sides[ours]
                  for peer in sides if not peer.startswith("ours") and "error" not in sides[peer]}  # fmt: skip
        show(quiet, shape, sides, ratios)
        report.setdefault("ratios", {})[shape] = ratios
    if args.json:
        print(json.dumps(report, indent=1))
    return int(any("error" in found for sides in report["shapes"].values() for found in sides.values()))


def sides_of(args, shape: str) -> list[str]:
    chosen = args.sides or SHAPES[shape].sides
    return [side for side in chosen if side != "nanogpt" or (args.nanogpt and shape != "qwen3")]


def tell(quiet: bool, line: str) -> None:
    if not quiet:
        print(line, flush=True)


def words(found: dict) -> str:
    if "error" in found:
        return found["error"]
    return f"{found['tokens_per_second']:,.0f} tokens/s, MFU {found['mfu']:.1%}, loss {found['loss']:.4f}"


def show(quiet: bool, shape: str, sides: dict, ratios: dict) -> None:
    good = {side: found for side, found in sides.items() if "error" not in found}
    if not good:
        return
    size = SHAPES[shape]
    tell(quiet, f"\n{shape}: {size.batch} x {size.block} tokens a step; MFU of {next(iter(good.values()))['peak']}")
    tell(quiet, f"{'side':12} {'parameters':>12} {'tokens/s':>10} {'MFU':>6} {'GiB':>6} {'start s':>8} {'tokens':>12} "
                f"{'loss':>8}")  # fmt: skip
    for side, found in good.items():
        tell(quiet, f"{side:12} {found['parameters']:12,} {found['tokens_per_second']:10,.0f} {found['mfu']:6.1%} "
                    f"{found['memory_gib']:6.1f} {found['startup_seconds']:8.1f} {found['tokens']:12,} "
                    f"{found['loss']:8.4f}")  # fmt: skip
    for name, ratio in ratios.items():
        tell(quiet, f"tokens per second, {name}: {ratio:.2f}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", nargs="+", choices=SHAPES, default=["gpt2", "qwen3"], help="which models (gpt2 qwen3)")
    add("--sides", nargs="+", choices=TRAINERS, help="which, in this order; None: those of the shape")
    add("--nanogpt", type=Path, help="a checkout of nanoGPT; None: without it")
    add("--minutes", type=float, default=10, help="for everything (10)")
    add("--seconds", type=float, help="of training, each side; None: what --minutes leaves")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile every side (yes)")
    add("--work", type=Path, default=Path("bench_gpu"), help="folder for text, data and runs (bench_gpu)")
    add("--json", action="store_true", help="print one JSON object")
    add("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.nanogpt = None if str(args.nanogpt) == "None" else args.nanogpt
    args.data = args.work / ("tiny-data" if args.shape == ["tiny"] else "data")
    vars(args).update(args.child or {})
    return args


if __name__ == "__main__":
    chosen = parse()
    if chosen.child:
        child(chosen)
    else:
        sys.exit(main(chosen))
