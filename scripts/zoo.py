"""Take tiny models of many architectures through every command: what works, what is refused, and what fails.

    python scripts/zoo.py OUT [--only NAME ...] [--json]

Makes a random model of each architecture that transformers has for causal language modelling (2 layers of width 32, no
dropout), with a byte-level BPE trained on Python's own documentation, in the folder OUT. Each goes through these steps:

  train       4 steps of 4 windows with model.init_from
  4x1 = 1x4   the same steps in micro-batches of 1: losses and weights within 1e-5
  resume      from step 2: weights equal bit for bit
  evaluate    the loss is the mean cross-entropy of each row computed by itself
  generate    a batch of prompts gives each prompt's own text, which is that of a loop without a cache
  inspect, estimate, plan   the parameters counted are those that the model has
  export      a stock checkpoint of equal logits, or a refusal
  lora, merge an adapter is trained; with it in its weights the base computes the same

A cell is `ok`, `refused: REASON` (one clear error of mypt) or `FAILED: REASON`. Mistakes are models that are no
decoder-only language model: train, evaluate and generate have to refuse them. Exits with 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mypt.cli.main import main as mypt_main
from mypt.errors import MyPTError
from mypt.preparation.prepare import prepare_dataset
from mypt.streams.eval_windows import EvalWindows
from mypt.terminal import print_table

BLOCK, CONTEXT, VOCABULARY, STEPS, NEW = 32, 128, 384, 4, 6
TOLERANCE = 1e-5
PROMPTS = ("The statement", "An", "A class definition is an executable statement")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = SIZES | {"intermediate_size": 64, "max_position_embeddings": CONTEXT}
GROUPED = DECODER | {"num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
LOCAL = {"head_dim": 8, "sliding_window": 16}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
XGLM = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": CONTEXT}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

# name: (configuration class without "Config", its fields), of models that AutoModelForCausalLM makes
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "apertus": ("Apertus", GROUPED),
    "bert_decoder": ("Bert", DECODER | {"is_decoder": True}),
    "bigcode": ("GPTBigCode", GPT),
    "biogpt": ("BioGpt", DECODER),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": ("CodeGen", GPT | {"rotary_dim": 4}),
    "cohere": ("Cohere", GROUPED),
    "ctrl": ("CTRL", GPT | {"dff": 64}),
    "deepseekv3": (
        "DeepseekV3",
        DECODER
        | MLA
        | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        | {"n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
    ),
    "falcon": ("Falcon", SIZES | {"max_position_embeddings": CONTEXT}),
    "falcon_alibi": ("Falcon", SIZES | {"max_position_embeddings": CONTEXT, "alibi": True}),
    "gemma": ("Gemma", GROUPED | {"head_dim": 8}),
    "gemma2": ("Gemma2", GROUPED | LOCAL | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", GROUPED | LOCAL | {"query_pre_attn_scalar": 8}),
    "glm4": ("Glm4", GROUPED | {"head_dim": 8}),
    "gpt2": ("GPT2", GPT),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 4}),
    "gptneo": (
        "GPTNeo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": CONTEXT, "window_size": 16}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "gptneox": ("GPTNeoX", DECODER),
    "gptneoxjapanese": (
        "GPTNeoXJapanese",
        SIZES | {"intermediate_multiple_size": 2, "max_position_embeddings": CONTEXT},
    ),
    "gptoss": ("GptOss", GROUPED | LOCAL | EXPERTS | {"num_local_experts": 4}),
    "granite": ("Granite", GROUPED),
    "granitemoe": ("GraniteMoe", GROUPED | EXPERTS | {"num_local_experts": 4}),
    "jamba": (
        "Jamba",
        GROUPED
        | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False}
        | {"output_router_logits": True},
    ),
    "lfm2": ("Lfm2", GROUPED),
    "llama": ("Llama", GROUPED),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": (
        "Mamba2",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    ),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 16}),
    "mixtral": ("Mixtral", GROUPED | EXPERTS | {"num_local_experts": 4}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "expansion_ratio": 2}),
    "nemotron": ("Nemotron", GROUPED),
    "olmo2": ("Olmo2", GROUPED),
    "olmoe": ("Olmoe", GROUPED | EXPERTS | {"num_experts": 4}),
    "openaigpt": ("OpenAIGPT", GPT),
    "opt": ("OPT", SIZES | {"ffn_dim": 64, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 32}),
    "persimmon": ("Persimmon", DECODER),
    "phi": ("Phi", DECODER),
    "phi3": ("Phi3", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2moe": (
        "Qwen2Moe",
        GROUPED | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "qwen3moe": ("Qwen3Moe", GROUPED | EXPERTS | {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32}),
    "smollm3": ("SmolLM3", GROUPED),
    "stablelm": ("StableLm", GROUPED),
    "starcoder2": ("Starcoder2", GROUPED),
    "xglm": ("XGLM", XGLM),
}
# name: (model class, configuration class without "Config", its fields)
MISTAKES: dict[str, tuple[str, str, dict]] = {
    "bart": ("BartForConditionalGeneration", "Bart", BART),
    "bert": ("BertForMaskedLM", "Bert", DECODER),
    "llama_base": ("LlamaModel", "Llama", GROUPED),
    "llama_classifier": ("LlamaForSequenceClassification", "Llama", GROUPED),
    "roberta": ("RobertaForMaskedLM", "Roberta", DECODER),
    "t5": ("T5ForConditionalGeneration", "T5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "vit": ("ViTForImageClassification", "ViT", VISION | {"image_size": 32, "patch_size": 8}),
    "xlnet": ("XLNetLMHeadModel", "XLNet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
}


class World:
    """The folder of a zoo: its text, data and tokenizer."""

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.data = out.resolve(), out.resolve() / "data"
        text = self.out / "text.txt"
        text.write_text("\n\n".join(text for _, text in sorted(topics.items()))[:60_000], encoding="utf-8")
        prepare_dataset([text], self.data, "bpe", vocab_size=VOCABULARY, progress=False, val_fraction=0.005)
        self.tokenizer = AutoTokenizer.from_pretrained(self.data)

    def make(self, name: str) -> Path:
        """The folder of a model with random weights."""
        end = self.tokenizer.eos_token_id
        fields = {"vocab_size": VOCABULARY, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
        kind, own = (ARCHITECTURES.get(name) or MISTAKES[name][1:])[-2:]
        config_class = getattr(transformers, f"{kind}Config")
        config = config_class(**(fields if name != "vit" else {}), **own)
        for field in config.to_dict():
            if ("dropout" in field or field.endswith("pdrop")) and isinstance(getattr(config, field), float):
                setattr(config, field, 0.0)
        torch.manual_seed(0)
        make = AutoModelForCausalLM.from_config if name in ARCHITECTURES else getattr(transformers, MISTAKES[name][0])
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        make(config).save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")
        return folder

    def recipe(self, folder: Path, run: str, rows: int = STEPS, **sections: dict) -> list[str]:
        """The words of `mypt train` for a short run in `folder`/`run`."""
        content = {
            "model": {"init_from": str(folder / "model")},
            "data": {"train": str(self.data), "eval": {"text": str(self.data)}, "block_size": BLOCK},
            "coverage": {"confirm": False},
            "forgetting": {"eval_windows": 4},
            # A larger epsilon, since Adam would enlarge the rounding of gradients that are 0 (biases of keys).
            "optimizer": {"name": "adamw", "schedule": "constant"},
            "training": {
                "output_dir": str(folder / run),
                "max_steps": STEPS,
                "save_steps": 2,
                "eval_steps": STEPS,
                "logging_steps": 1,
                "save_total_limit": None,
                "per_device_train_batch_size": rows,
                "gradient_accumulation_steps": 4 // rows,
                "learning_rate": 1e-3,
                "adam_epsilon": 1e-6,
                "warmup_steps": 0,
                "bf16": False,
            },
        } | sections
        path = folder / f"{run}.yaml"
        path.write_text(json.dumps(content))  # JSON is YAML
        return ["train", str(path)]


def mypt(*words: object) -> str:
    """What a command prints. Raises its MyPTError, and AssertionError for another exit code than 0."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = mypt_main([*map(str, words), "--debug"])
    assert code == 0, f"exit code {code}"
    return out.getvalue()


def stock(folder: Path) -> PreTrainedModel:
    """The model as transformers loads it; the reference, with none of our code."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def difference(one: Path, two: Path) -> float:
    """The largest absolute difference of any weight."""
    left, right = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert left.keys() == right.keys(), "other weights"
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def logged(run: Path, key: str) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [entry[key] for entry in map(json.loads, lines) if key in entry]


def train(world: World, folder: Path) -> str | None:
    mypt(*world.recipe(folder, "run"))
    losses, measured = logged(folder / "run", "loss"), logged(folder / "run", "eval_text_loss")
    assert len(losses) == STEPS and measured[-1] < measured[0], f"evaluation {measured}"
    assert abs(losses[0] - measured[0]) < 0.5, f"trained on {losses[0]:.2f}, measured {measured[0]:.2f}"
    return None


def layout(world: World, folder: Path) -> str | None:
    mypt(*world.recipe(folder, "rows", rows=1))
    apart = difference(folder / "run", folder / "rows")
    losses = zip(logged(folder / "run", "loss"), logged(folder / "rows", "loss"), strict=True)
    loss = max(abs(one - two) for one, two in losses)
    assert apart <= TOLERANCE, f"weights differ by {apart:.0e}, losses by {loss:.0e}"
    assert loss <= TOLERANCE, f"losses differ by {loss:.0e}"
    return None


def resume(world: World, folder: Path) -> str | None:
    again = folder / "again"
    shutil.copytree(folder / "run", again)
    shutil.rmtree(again / f"checkpoint-{STEPS}")
    mypt("train", again, "--resume")
    apart = difference(folder / "run", again)
    assert apart == 0, f"weights differ by {apart:.0e}"
    return None


@torch.no_grad()
def evaluate(world: World, folder: Path) -> str | None:
    (score,) = json.loads(
        mypt("evaluate", folder / "run", "--data", f"text={world.data}", "--block-size", BLOCK, "--json")
    )
    windows, model, sums = EvalWindows(world.data, "val", block_size=BLOCK), stock(folder / "run"), []
    for batch in windows.batches(1, 0, 1):
        inputs, targets = windows.gather(batch)
        scores = model(input_ids=inputs["input_ids"][:, : targets.ne(-100).sum()]).logits[0].double().log_softmax(-1)
        sums.extend(-scores[place, target].item() for place, target in enumerate(targets[targets.ne(-100)].tolist()))
    expected = sum(sums) / len(sums)
    assert score["tokens"] == len(sums), f"{score['tokens']} targets, expected {len(sums)}"
    assert abs(score["loss"] - expected) <= TOLERANCE * expected, f"{score['loss']:.6f}, expected {expected:.6f}"
    return None


@torch.no_grad()
def generate(world: World, folder: Path) -> str | None:
    settings = [folder / "run", "--max-new-tokens", NEW, "--seed", 1, "--json"]
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    for choice in (["--greedy"], ["--temperature", "0.8"]):
        batch = _texts(*settings, *prompts, *choice)
        single = [text for prompt in PROMPTS for text in _texts(*settings, "--prompt", prompt, *choice)]
        assert batch == single, f"a batch gives {batch}, its rows {single}"
        if choice == ["--greedy"]:
            expected = [_greedy(world, stock(folder / "run"), prompt) for prompt in PROMPTS]
            assert batch == expected, f"{batch}, expected {expected}"
    return None


def _texts(*words: object) -> list[str]:
    return [row["text"] for row in json.loads(mypt("generate", *words))["texts"]]


def _greedy(world: World, model: PreTrainedModel, prompt: str) -> str:
    """The likeliest token each time, from a whole forward pass for each."""
    ids = world.tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(NEW):
        last = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
        if last.item() == world.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, last], 1)
    return world.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def _counted(folder: Path, found: int, saved: bool = False) -> None:
    """saved: with the buffers that are in the files, which `inspect` cannot tell from parameters."""
    model = stock(folder)
    expected = sum(parameter.numel() for parameter in model.parameters())
    if saved:
        names = model.state_dict().keys()
        expected += sum(buffer.numel() for name, buffer in model.named_buffers() if name in names)
    assert found == expected, f"{found:,} parameters, the model has {expected:,}"


def inspect(world: World, folder: Path) -> str | None:
    report = json.loads(mypt("inspect", folder / "run", "--json"))
    assert not report["problems"], "; ".join(report["problems"])
    _counted(folder / "run", report["parameters"]["total"], saved=True)
    return None


def estimate(world: World, folder: Path) -> str | None:
    report = json.loads(mypt("estimate", folder / "model", "--json"))
    _counted(folder / "model", report["parameters"]["total"])
    return None


def plan(world: World, folder: Path) -> str | None:
    report = json.loads(mypt("plan", folder / "model", "--tokens", "1M", "--json"))
    found = report.get("parameters")
    assert found, "; ".join(report["notes"])
    _counted(folder / "model", found["total"] if isinstance(found, dict) else found)
    return None


def export(world: World, folder: Path) -> str | None:
    report = json.loads(mypt("export", folder / "run", "--out", folder / "exported", "--json"))
    assert report["greedy_equal"], "another greedy text"
    return report["target"]


def lora(world: World, folder: Path) -> str | None:
    mypt(*world.recipe(folder, "adapter", lora={"r": 4}))
    losses = logged(folder / "adapter", "loss")
    assert len(losses) == STEPS, f"losses {losses}"
    return None


@torch.no_grad()
def merge(world: World, folder: Path) -> str | None:
    from peft import PeftModel

    mypt("merge", folder / "adapter", "--out", folder / "merged")
    ids = world.tokenizer(PROMPTS[-1], return_tensors="pt").input_ids
    adapted = PeftModel.from_pretrained(stock(folder / "model"), folder / "adapter").eval()(input_ids=ids).logits
    apart = (stock(folder / "merged")(input_ids=ids).logits - adapted).abs().max().item()
    assert apart <= TOLERANCE * max(1.0, adapted.abs().max().item()), f"logits differ by {apart:.0e}"
    return None


STEPS_OF: dict[str, Callable[[World, Path], str | None]] = {
    "train": train,
    "4x1 = 1x4": layout,
    "resume": resume,
    "evaluate": evaluate,
    "generate": generate,
    "inspect": inspect,
    "estimate": estimate,
    "plan": plan,
    "export": export,
    "lora": lora,
    "merge": merge,
}
NEEDS = {"4x1 = 1x4": "train", "resume": "train", "evaluate": "train", "generate": "train", "inspect": "train",
         "export": "train", "merge": "lora"}  # fmt: skip
MISTAKEN = ("train", "evaluate", "generate")


def visit(world: World, name: str) -> dict[str, str]:
    """One row: step -> cell."""
    try:
        folder = world.make(name)
    except Exception as error:
        return {"train": f"FAILED: cannot be made: {reason(error)}"}
    row = {}
    for step in STEPS_OF if name in ARCHITECTURES else MISTAKEN:
        if step in NEEDS and name in ARCHITECTURES and not row[NEEDS[step]].startswith("ok"):
            row[step] = "-"
            continue
        row[step] = attempt(world, folder, step, mistake=name in MISTAKES)
    return row


def attempt(world: World, folder: Path, step: str, mistake: bool) -> str:
    try:
        found = use_mistake(world, folder, step) if mistake else STEPS_OF[step](world, folder)
        return "FAILED: accepted" if mistake else f"ok ({found})" if found else "ok"
    except MyPTError as error:
        return f"refused: {error}".replace(str(folder), "")
    except Exception as error:
        return f"FAILED: {reason(error)}".replace(str(folder), "")


def use_mistake(world: World, folder: Path, step: str) -> None:
    commands = {
        "train": world.recipe(folder, "run"),
        "evaluate": ["evaluate", folder / "model", "--data", f"text={world.data}", "--block-size", BLOCK],
        "generate": ["generate", folder / "model", "--prompt", "The", "--greedy", "--json"],
    }
    mypt(*commands[step])


def reason(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return first if isinstance(error, AssertionError) else f"{type(error).__name__}: {first}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for models and runs")
    names = [*ARCHITECTURES, *MISTAKES]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help="some of the models")
    parser.add_argument("--json", action="store_true", help="print {model: {step: cell}} as JSON")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    world, table = World(args.out), {}
    for name in args.only:
        start = time.perf_counter()
        table[name] = visit(world, name)
        cells = ", ".join(f"{step}: {cell}" for step, cell in table[name].items() if not cell.startswith("ok"))
        print(f"{name} ({time.perf_counter() - start:.1f} s) {cells or 'ok'}", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(table, indent=1))
    else:
        short = {name: {step: cell.partition(":")[0] for step, cell in row.items()} for name, row in table.items()}
        print_table("", ["model", *STEPS_OF], [[n, *(row.get(s, "") for s in STEPS_OF)] for n, row in short.items()])
        cells = [(n, s, cell) for n, row in table.items() for s, cell in row.items() if ":" in cell]
        print("\n" + "\n".join(f"{name}, {step}: {cell}" for name, step, cell in cells))
    return int(any(cell.startswith("FAILED") for row in table.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
