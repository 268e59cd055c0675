"""Speed of generation next to transformers', on one CPU thread: `python scripts/bench_generation.py [SHAPE ...]`.

For each shape, batch size and way of choosing, in rounds that alternate between the sides:

    fast                 mypt.generation.engine on MyPTForCausalLM, text included
    fast, int8           the same with weights in 8 bits
    mypt, transformers   the same model through transformers' generate
    gpt2                 GPT2LMHeadModel.generate, random weights
    llama                LlamaForCausalLM.generate, random weights
    forward loop         the stock class of the same shape (gpt2 or llama): forward with a DynamicCache and argmax
    bare loop            GPT-2's weights in the fewest lines of plain torch with a cache and argmax (classic shapes)

One line each: the median of CPU milliseconds per step (a step is one token of every row), lowest and highest round, and
how many times the time of `fast`. Before, greedy ids of all sides with the same weights are compared: fast and
transformers on MyPT, the three ways on GPT-2 (or Llama). Nothing is downloaded.
"""

import argparse
import os
import platform
import statistics
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers
from torch.nn import functional as F
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mypt import MyPTForCausalLM, preset_config
from mypt.generation.engine import Engine
from mypt.generation.fast_decoder import FastDecoder
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.train import build_char_tokenizer

# preset whose architecture is taken, vocabulary, layers, heads, width
SHAPES = {
    "classic-0.8M": ("tiny", 320, 4, 4, 128),
    "modern-0.8M": ("modern-nano", 320, 4, 4, 128),
    "classic-10M": ("tiny", 320, 6, 6, 384),
    "modern-10M": ("modern-nano", 320, 6, 6, 384),
    "classic-124M": ("tiny", 50304, 12, 12, 768),
    "modern-124M": ("modern-nano", 50304, 12, 12, 768),
}
PROMPT = 32


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES], metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="times each side runs (5)")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens of each row (200)")
    parser.add_argument("--greedy", action="store_true", help="greedy texts alone, no drawn ones")
    return parser.parse_args()


def make_models(shape: str):
    """The MyPT model, GPT-2 and Llama of one shape (Llama without qk_norm), with large random weights."""
    preset, vocabulary, layers, heads, width = SHAPES[shape]
    torch.manual_seed(0)
    config = preset_config(
        preset,
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        hidden_size=width,
        max_position_embeddings=512,
    )
    gpt2 = GPT2Config(vocab_size=vocabulary, n_layer=layers, n_head=heads, n_embd=width, n_positions=512)
    llama = LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 64) * 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    models = MyPTForCausalLM(config), GPT2LMHeadModel(gpt2), LlamaForCausalLM(llama)
    for model in models:
        model.generation_config.eos_token_id = None
        for weight in model.parameters():
            weight.data *= 5 if weight.dim() > 1 else 1  # fewer near ties than at the start of a training
    return [model.eval() for model in models]


def sides(shape: str, batch: int, sampling: bool, tokens: int) -> dict:
    """Functions that generate once and return ids (batch, tokens), or text for `fast`."""
    mypt, gpt2, llama = make_models(shape)
    tokenizer = build_char_tokenizer("abcdefgh")
    prompts = torch.randint(3, 260, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    settings = GenerationSettings(greedy=not sampling, temperature=0.8, top_k=50, seed=0, **limits)

    engines = Engine(mypt, tokenizer), Engine(mypt, tokenizer, int8=True)

    def fast(engine):
        return list(engine.complete_batch(prompts.tolist(), settings, batch_size=batch))

    def by_transformers(model, **options):
        chosen = {"do_sample": True, "temperature": 0.8, "top_k": 50} if sampling else {"do_sample": False}
        output = model.generate(prompts, max_new_tokens=tokens, pad_token_id=0, **chosen, **options)
        return output[:, PROMPT:].tolist()

    functions = {
        "fast": lambda: fast(engines[0]),
        "fast, int8": lambda: fast(engines[1]),
        "mypt, transformers": lambda: by_transformers(mypt),
        "gpt2": lambda: by_transformers(gpt2),
        "llama": lambda: by_transformers(llama),
    }
    if sampling:
        return functions
    classic = shape.startswith("classic")
    stock = gpt2 if classic else llama
    functions["forward loop"] = lambda: forward_loop(stock, prompts, tokens)
    if classic:
        functions["bare loop"] = lambda: bare_loop(gpt2, prompts, tokens)
    expected = by_transformers(stock)
    assert all(functions[name]() == expected for name in functions if name.endswith("loop")), "the loops differ"
    assert fast_ids(mypt, prompts, tokens) == by_transformers(mypt, suppress_tokens=None), (
        "fast and transformers differ"
    )
    return functions


def fast_ids(model, prompts: torch.Tensor, tokens: int) -> list[list[int]]:
    columns = []

    def choose(logits):
        columns.append(logits.argmax(-1))
        return columns[-1]

    FastDecoder(model).extend(prompts.tolist(), tokens, choose)
    return torch.stack(columns, 1).tolist()


@torch.inference_mode()
def forward_loop(model, ids: torch.Tensor, tokens: int) -> list[list[int]]:
    cache, found = DynamicCache(config=model.config), []
    for _ in range(tokens):
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        ids = logits.argmax(-1, keepdim=True)
        found.append(ids)
    return torch.cat(found, 1).tolist()


@torch.inference_mode()
def bare_loop(model, ids: torch.Tensor, tokens: int) -> list[list[int]]:
    body, heads = model.transformer, model.config.n_head
    batch, start, width = *ids.shape, model.config.n_embd
    cache = torch.zeros(len(body.h), 2, batch, heads, start + tokens, width // heads)
    first, found = 0, []
    for _ in range(tokens):
        last = first + ids.shape[1]
        x = body.wte(ids) + body.wpe.weight[first:last]
        for block, (keys, values) in zip(body.h, cache, strict=True):
            attention, mlp = block.attn, block.mlp
            qkv = F.layer_norm(x, (width,), block.ln_1.weight, block.ln_1.bias) @ attention.c_attn.weight
            query, key, value = (qkv + attention.c_attn.bias).view(batch, -1, 3, heads, width // heads).unbind(2)
            keys[:, :, first:last], values[:, :, first:last] = key.transpose(1, 2), value.transpose(1, 2)
            y = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys[:, :, :last], values[:, :, :last], is_causal=first == 0
            )
            x = x + y.transpose(1, 2).flatten(2) @ attention.c_proj.weight + attention.c_proj.bias
            y = F.layer_norm(x, (width,), block.ln_2.weight, block.ln_2.bias) @ mlp.c_fc.weight + mlp.c_fc.bias
            x = x + F.gelu(y, approximate="tanh") @ mlp.c_proj.weight + mlp.c_proj.bias
        x = F.layer_norm(x[:, -1:], (width,), body.ln_f.weight, body.ln_f.bias)
        ids, first = (x @ model.lm_head.weight.T).argmax(-1), last
        found.append(ids)
    return torch.cat(found, 1).tolist()


def measure(functions: dict, rounds: int, steps: int) -> dict[str, list[float]]:
    """CPU milliseconds per step of every side in every round; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if number:
                times[name].append((time.process_time() - start) / steps * 1e3)
    return times


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with open("/proc/cpuinfo") as file:
        processor = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")
    print(f"{processor}, 1 thread; load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"prompt {PROMPT} tokens, {args.tokens} new ones, {args.rounds} rounds; CPU ms per step, median (range)")
    for shape in args.shapes or SHAPES:
        for batch in args.batch:
            for sampling in (False,) if args.greedy else (False, True):
                functions = sides(shape, batch, sampling, args.tokens)
                times = measure(functions, args.rounds, args.tokens)
                fast = statistics.median(times["fast"])
                print(f"{shape}, batch {batch}, {'sampling' if sampling else 'greedy'}")
                for name, found in times.items():
                    middle, spread = statistics.median(found), f"({min(found):.3f}-{max(found):.3f})"
                    print(f"  {name:<20}{middle:9.3f} {spread:<19}{middle / fast:6.2f}x")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
