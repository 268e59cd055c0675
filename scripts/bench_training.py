"""How fast and how well small models learn: `mypt train` beside nanoGPT's recipe and HF's models in HF's Trainer.

    git clone https://github.com/karpathy/nanoGPT
    python scripts/bench_training.py input.txt --nanogpt nanoGPT --short 300 750 [--seeds 3] [--plot FILE.png]

The same characters, the same split (the last tenth is val), the same number of tokens: 12 windows of 64 a step, 4
layers of 4 heads and width 128. Each run is a process of its own, pinned to one core with one thread; the sides take
turns.
nanoGPT's model and optimizer come from its own source, with the command of its README for a CPU, without evaluations;
HF's models get the same recipe in a stock Trainer. Ours is recipes/shakespeare_char.yaml.

Seconds are CPU seconds from the first step on, without evaluations and saves, with the compiler's, which finds its
cache empty once for every kind of model: those seconds stand at the first seed. Speed is taken after 20 steps.
"val" is the exact mean loss in nats per character over all of val, in windows of 64 that do not overlap.
`--short`: further runs of ours, compiled and not, that end after so few steps: when do they reach a peer's loss?
A call that was broken off goes on with the results in --work; another folder begins anew.
"bare" is a plain loop with the model, optimizer, schedule, clipping and stream of "ours": what Trainer costs.
"ours_compiled" compiles the layers, which `mypt train` does by itself in longer runs. "ours_adamw" is compiled, too,
and has AdamW in Muon's place. "ours_gpt2" is nanoGPT's architecture (with biases) in our Trainer, in float32, with
AdamW and without compiling.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare_char.yaml"
BATCH, BLOCK, LAYERS, HEADS, WIDTH = 12, 64, 4, 4, 128
PEAK, LEAST, WARMUP, BETAS, DECAY = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1  # nanoGPT's train_shakespeare_char.py
SETTLE = 20  # steps before the speed is taken


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for: compilers."""
    used = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Watch:
    """CPU seconds of training alone, and the val loss at the end."""

    def __init__(self, steps: int, evaluate):
        self.steps, self.evaluate = steps, evaluate
        self.marks, self.val = [], None

    def start(self) -> None:
        self.began = cpu_seconds()

    def step(self) -> None:
        self.marks.append(cpu_seconds() - self.began)
        if len(self.marks) == self.steps:
            self.val = self.evaluate()

    def report(self, model) -> dict:
        milliseconds = 1e3 * (self.marks[-1] - self.marks[SETTLE - 1]) / (self.steps - SETTLE)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"ms": milliseconds, "seconds": self.marks[-1], "val": self.val, "parameters": parameters}


def exact_loss(logits, val, block: int = BLOCK, rows: int = 256) -> float:
    """Mean nats over all predictions of `val`, ids (n,), in windows of `block`, `rows` at a time.

    logits: ids (n, T) -> (n, T, V).
    """
    import torch
    from torch.nn.functional import cross_entropy

    predictions = len(val) - 1
    whole = predictions // block * block
    inputs, targets = val[:-1], val[1:]
    windows = (ids[:whole].view(-1, block).split(rows) for ids in (inputs, targets))
    pairs = [*zip(*windows, strict=True)]
    if whole < predictions:
        pairs.append((inputs[None, whole:], targets[None, whole:]))
    with torch.no_grad():
        losses = [cross_entropy(logits(x).flatten(0, 1).float(), y.flatten(), reduction="sum").item() for x, y in pairs]
    return sum(losses) / predictions


def evaluate_hf(model, val, autocast: bool) -> float:
    import torch

    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = exact_loss(lambda inputs: model(input_ids=inputs, use_cache=False).logits, val)
    model.train()
    return loss


def read_ids(data: Path, keep_eos: bool = False) -> dict:
    """Token ids of both splits, int64; without the end of text that closes each document, unless it is kept."""
    import torch

    from mypt.shards.format import read_manifest
    from mypt.shards.reader import ShardReader

    eos, splits = read_manifest(data).eos_token_id, {}
    for split in ("train", "val"):
        reader = ShardReader(data, split)
        ids = torch.from_numpy(reader.gather([0], len(reader))[0].astype("int64"))
        splits[split] = ids if keep_eos else ids[ids != eos]
    return splits


def renumbered(ids: dict) -> tuple[dict, int]:
    """The ids as nanoGPT's prepare.py would give them, 0, 1, ... for the characters that occur; and how many do."""
    import torch

    both = torch.cat([*ids.values()])
    names, numbers = both.unique(return_inverse=True)
    return dict(zip(ids, numbers.split([len(part) for part in ids.values()]), strict=True)), len(names)


def cosine(step: int, steps: int) -> float:
    """nanoGPT's schedule as a factor of the peak."""
    if step < WARMUP:
        return (step + 1) / (WARMUP + 1)
    share = min(1.0, (step - WARMUP) / max(1, steps - WARMUP))
    return (LEAST + 0.5 * (1 + math.cos(math.pi * share)) * (PEAK - LEAST)) / PEAK


def run_nanogpt(args, ids) -> dict:
    import torch

    sys.path.insert(0, str(args.nanogpt))
    from model import GPT, GPTConfig

    ids, characters = renumbered(ids)
    torch.manual_seed(1337 + args.seed)
    model = GPT(GPTConfig(BLOCK, characters, LAYERS, HEADS, WIDTH, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(DECAY, PEAK, BETAS, "cpu")
    text = ids["train"]

    def evaluate():
        model.eval()
        return exact_loss(lambda inputs: model(inputs, inputs)[0], ids["val"])

    watch = Watch(args.steps, evaluate)
    watch.start()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * cosine(step, args.steps)
        places = torch.randint(len(text) - BLOCK, (BATCH,))  # as its get_batch
        inputs = torch.stack([text[i : i + BLOCK] for i in places])
        _, loss = model(inputs, torch.stack([text[i + 1 : i + 1 + BLOCK] for i in places]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()
        watch.step()
    return watch.report(model)


def run_hf(args, ids, model) -> dict:
    """A stock model in a stock Trainer with nanoGPT's recipe."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR
    from torch.utils.data import Dataset
    from transformers import PrinterCallback, Trainer, TrainingArguments

    text = ids["train"]

    class Windows(Dataset):
        def __len__(self):
            return args.steps * BATCH

        def __getitem__(self, index):
            place = int(torch.randint(len(text) - BLOCK - 1, ()))
            window = text[place : place + BLOCK + 1]  # one more than is predicted, since the model shifts
            return {"input_ids": window, "labels": window}

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, fused=True)
    arguments = TrainingArguments(
        output_dir=str(args.work / "hf"), max_steps=args.steps, per_device_train_batch_size=BATCH, max_grad_norm=1.0,
        use_cpu=True, bf16="bf16" in args.side, save_strategy="no", logging_steps=10, report_to="none",
        disable_tqdm=True, seed=1337 + args.seed,
    )  # fmt: skip
    watch = Watch(args.steps, lambda: evaluate_hf(model, ids["val"], arguments.bf16))
    schedule = LambdaLR(optimizer, lambda step: cosine(step, args.steps))
    trainer = Trainer(model, arguments, train_dataset=Windows(), optimizers=(optimizer, schedule),
                      callbacks=[watcher(watch)])  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch.report(model)


def watcher(watch: Watch):
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if not state.global_step:
                watch.start()

        def on_step_end(self, args, state, control, **kwargs):
            watch.step()

    return Callback()


def run_hf_gpt2(args, ids) -> dict:
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    ids, characters = renumbered(ids)
    set_seed(1337 + args.seed)
    sizes = {"vocab_size": characters, "n_positions": BLOCK + 1, "n_embd": WIDTH, "n_layer": LAYERS}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return run_hf(args, ids, GPT2LMHeadModel(GPT2Config(**sizes, n_head=HEADS, **dropouts)))


def run_hf_llama(args, ids) -> dict:
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    ids, characters = renumbered(ids)
    set_seed(1337 + args.seed)
    sizes = {"vocab_size": characters, "hidden_size": WIDTH, "intermediate_size": 344, "num_hidden_layers": LAYERS,
             "num_attention_heads": HEADS, "max_position_embeddings": BLOCK + 1}  # fmt: skip
    return run_hf(args, ids, LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)))


def our_trainer(args):
    from mypt.recipe import load_recipe
    from mypt.training.build import build_trainer

    overrides = {
        "data.train": args.data, "data.eval": "{}", "training.output_dir": args.work / f"{args.name}-run",
        "training.max_steps": args.steps, "training.save_steps": args.steps, "training.eval_strategy": "no",
        "training.seed": 42 + args.seed,
    } | OURS[args.side]  # fmt: skip
    lines = [f"--{key}={value}" for key, value in overrides.items()] + args.ours
    return build_trainer(load_recipe(RECIPE, lines), assume_yes=True)


def run_ours(args, ids) -> dict:
    trainer = our_trainer(args)
    watch = Watch(args.steps, lambda: evaluate_hf(trainer.model, ids["val"], trainer.args.bf16))
    trainer.add_callback(watcher(watch))
    trainer.train()
    return watch.report(trainer.model)


def run_bare(args, ids) -> dict:
    """What `ours` computes, in a loop of its own."""
    import torch

    from mypt.hardware.main_memory import keep_freed
    from mypt.training.model.precision import matmul_precision

    keep_freed()
    trainer = our_trainer(args)
    trainer.create_optimizer_and_scheduler(args.steps)
    model, optimizer, schedule = trainer.model.train(), trainer.optimizer, trainer.lr_scheduler
    batches = iter(trainer.train_dataset)
    watch = Watch(args.steps, lambda: evaluate_hf(model, ids["val"], trainer.args.bf16))
    with matmul_precision(trainer.hardware.matmul_precision):
        watch.start()
        for _ in range(args.steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                loss = model(**next(batches), use_cache=False, num_items_in_batch=BATCH * BLOCK).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            watch.step()
    return watch.report(model)


COMPILED, ADAMW = {"training.torch_compile": "true"}, {"optimizer.name": "adamw"}
GPT2 = {"model.preset": "tiny", "model.intermediate_size": 4 * WIDTH, "training.bf16": "false"}
OURS = {"ours": {}, "bare": {}, "ours_compiled": COMPILED, "ours_adamw": COMPILED | ADAMW, "ours_gpt2": GPT2 | ADAMW}
SIDES = {"nanogpt": run_nanogpt, "hf_gpt2": run_hf_gpt2, "hf_llama": run_hf_llama, "hf_llama_bf16": run_hf_llama,
         **dict.fromkeys(OURS, run_ours), "bare": run_bare}  # fmt: skip
PEERS = ("nanogpt", "hf_gpt2", "hf_llama")
FULL = (*PEERS, "ours")  # run for all steps; the others show their speed alone


def child(args) -> None:
    os.sched_setaffinity(0, {args.core})
    import torch

    torch.set_num_threads(1)
    report = SIDES[args.side](args, read_ids(args.data))
    (args.work / f"{args.name}.json").write_text(json.dumps(report | {"changes": changes(args, args.side)}))


def start(args, side: str, seed: int, steps: int) -> dict:
    """One run in a process of its own, or the result of one that --work has."""
    name = f"{side}-{steps}-{seed}"
    path, words = args.work / f"{name}.json", " (done before)"
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get("changes") != changes(args, side):
        run_child(args, side, seed, steps, name)
        result, words = json.loads(path.read_text()), ""
    numbers = f"{result['ms']:.1f} ms/step, {result['seconds']:.1f} s, val {result['val']:.4f}"
    print(f"  seed {seed}, {side}, {steps:,} steps: {numbers}{words}", flush=True)
    return result


def changes(args, side: str) -> list[str]:
    """Of the recipe, for those that are trained by one."""
    return args.ours if side in OURS else []


def run_child(args, side: str, seed: int, steps: int, name: str) -> None:
    shutil.rmtree(args.work / f"{name}-run", ignore_errors=True)  # of a call that was broken off
    command = [sys.executable, __file__, str(args.text), "--nanogpt", str(args.nanogpt), "--work", str(args.work),
               "--core", str(args.core), "--steps", str(steps), *(f"--ours={o}" for o in args.ours),
               "--child", json.dumps({"side": side, "seed": seed, "name": name})]  # fmt: skip
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(args.work / "inductor")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def spread(runs: list[dict], key: str, digits: int) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def main(args) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.data.exists():
        command = [sys.executable, "-m", "mypt", "prepare", "--source", str(args.text), "--out", str(args.data)]
        subprocess.run([*command, "--tokenizer", "char", "--val-split", "tail"], check=True, stdout=subprocess.DEVNULL)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(": ")[2] if names else "?"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{cpu}, core {args.core}, {platform.system()}; {versions}")
    runs = {side: [] for side in args.sides}
    short = {(side, steps): [] for steps in args.short for side in ("ours", "ours_compiled") if side in args.sides}
    for seed in range(args.seeds):
        for side in args.sides:
            steps = args.steps if side in FULL else min(args.steps, args.speed_steps)
            runs[side].append(start(args, side, seed, steps))
        for side, steps in short:
            short[side, steps].append(start(args, side, seed, steps))
    show(args, runs, short)


def show(args, runs: dict, short: dict) -> None:
    tokens = BATCH * BLOCK
    print(f"\n{args.text.name}, {args.steps:,} steps of {tokens} tokens, {args.seeds} seeds: median (smallest-largest)")
    print(f"{'side':14} {'parameters':>10} {'ms/step':>20} {'CPU s':>22} {'val':>24}")
    for side, group in runs.items():
        rest = f"{spread(group, 'seconds', 1):>22} {spread(group, 'val', 4):>24}" if side in FULL else ""
        print(f"{side:14} {group[0]['parameters']:10,} {spread(group, 'ms', 1):>20} {rest}".rstrip())
    for side in (side for side in OURS if side in runs and side != "bare"):
        for peer in (peer for peer in runs if peer not in OURS):
            print(f"tokens per second, {side} / {peer}: {median(runs[peer], 'ms') / median(runs[side], 'ms'):.2f}")
    if {"bare", "ours"} <= {*runs}:
        overhead = median(runs["ours"], "ms") / median(runs["bare"], "ms") - 1
        print(f"overhead of mypt train over the bare loop: {overhead:+.1%}")
    for (side, steps), group in short.items():
        print(f"{side} in {steps:,} steps: {spread(group, 'seconds', 1)} s, val {spread(group, 'val', 4)}")
    for peer in (peer for peer in PEERS if peer in runs):
        for side in dict.fromkeys(side for side, _ in short):
            show_reached(args, runs[peer], peer, side, {steps: short[side, steps] for steps in args.short})
    if args.plot:
        plot(args, {side: runs[side] for side in FULL if side in runs}, short)


def plot(args, full: dict, short: dict) -> None:
    """Every run as a point: CPU seconds, val loss."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for side, group in full.items():
        group = [*group, *(run for (one, _), runs in short.items() if one == side for run in runs)]
        axes.scatter([run["seconds"] for run in group], [run["val"] for run in group], label=side, s=24)
    axes.set(xlabel="CPU seconds of training (one core)", ylabel="val, nats per character", xlim=(0, None))
    also = ", ".join(f"{steps:,}" for steps in args.short)
    axes.set_title(f"{args.text.name}: {args.steps:,} steps" + (f", ours also {also}" if also else ""))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.plot, dpi=120)
    pyplot.close(figure)


def show_reached(args, peer: list[dict], name: str, side: str, short: dict) -> None:
    """The shortest of our runs of which every seed is below the peer's median loss."""
    best = median(peer, "val")
    reached = [steps for steps, group in short.items() if max(run["val"] for run in group) <= best]
    if not reached:
        return
    steps = min(reached)
    faster = median(peer, "seconds") / median(short[steps], "seconds")
    print(
        f"{name}'s {best:.4f}: every seed of {side} is below it in {steps:,} steps, {steps * BATCH * BLOCK:,} tokens: "
        f"{faster:.1f}x less time, {args.steps / steps:.1f}x fewer tokens"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("text", type=Path, help="a text file")
    add("--nanogpt", type=Path, help="a checkout of nanoGPT; None: without it")
    add("--steps", type=int, default=2_000, help="of each side (2000)")
    add("--speed-steps", type=int, default=300, help="of the sides that only show their speed (300)")
    add("--short", type=int, nargs="*", default=[], help="steps of further runs of ours")
    add("--seeds", type=int, default=3, help="runs of each side (3)")
    add("--sides", nargs="+", choices=SIDES, default=[*SIDES], help="which, in this order (all)")
    add("--core", type=int, default=0, help="the core that all runs are pinned to (0)")
    add("--ours", action="append", default=[], metavar="--SECTION.KEY=VALUE", help="a change of our recipe")
    add("--plot", type=Path, metavar="FILE.png", help="the runs' losses over their seconds")
    add("--work", type=Path, default=Path("bench_training"), help="folder for data and runs (bench_training)")
    add("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.child:
        args.work = args.work / args.text.stem
    args.data = args.work / "data"
    if not args.nanogpt:
        args.sides = [side for side in args.sides if side != "nanogpt"]
    vars(args).update(args.child or {})
    return args


if __name__ == "__main__":
    arguments = parse()
    child(arguments) if arguments.child else main(arguments)
