"""What the choices of docs/hardware.md rest on, measured on this machine's CPU with one thread.

    python scripts/bench_hardware.py [--seconds 0.5]

- attention: forward and backward pass of MyPT's plain products and of SDPA, alone, by sequence length
- precision: error and speed of float32 products under `highest` and `medium`
- passes: tokens per CPU second of a model's forward and backward pass, by tokens per pass
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mypt.models.modeling_mypt import MyPTForCausalLM, eager_attention_forward
from mypt.models.presets import preset_config
from mypt.training.model.precision import matmul_precision, product_error

TOKENS, HEADS = 2_048, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU seconds per figure")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print("precision                  error   GFLOP/s (2048 x 384 times 384 x 1536)")
    for name in ("highest", "medium"):
        with matmul_precision(name):
            product = partial(torch.matmul, torch.randn(2048, 384), torch.randn(1536, 384).T)
            speed = 2 * 2048 * 384 * 1536 / cpu_time(product, seconds) / 1e9
        print(f"{name:<24} {product_error(nn.Linear(384, 1536), name):.1e}   {speed:.0f}")
    with matmul_precision("medium"):
        print("\nattention     head_dim  length    plain     SDPA   SDPA / plain   (microseconds per token)")
        for dtype in DTYPES:
            for width in (32, 64):
                for length in (64, 128, 256, 512, 1024):
                    plain, fused = (attention(f, length, width, dtype, seconds)
                                    for f in (eager_attention_forward, sdpa_attention_forward))  # fmt: skip
                    row = f"{dtype:<12}  {width:>8}  {length:>6}  {plain:>7.2f}  {fused:>7.2f}  {fused / plain:>13.2f}"
                    print(row, flush=True)
        print("\npasses, modern-nano, length 256, bfloat16 autocast: tokens per pass and per CPU second")
        for sequences in (1, 2, 4, 8, 16, 32, 64, 128):
            print(f"{256 * sequences:>6,} {passes(sequences, seconds):>8,.0f}", flush=True)


def cpu_time(work: Callable[[], object], seconds: float) -> float:
    """Median CPU seconds of one call."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return sorted(times)[len(times) // 2]


def attention(function: Callable, length: int, width: int, dtype: str, seconds: float) -> float:
    """Microseconds per token of a causal pass there and back, casts from float32 included."""
    shape = (TOKENS // length, HEADS, length, width)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True, training=True)
    mask = None
    if function is eager_attention_forward:
        least = torch.finfo(DTYPES[dtype]).min
        mask = torch.full((length, length), least, dtype=DTYPES[dtype]).triu(1)[None, None]

    def there_and_back() -> None:
        query, key, value = (tensor.to(DTYPES[dtype]) for tensor in inputs)
        output, _ = function(module, query, key, value, mask, scaling=width**-0.5, dropout=0.0)
        output.backward(torch.ones_like(output))

    return cpu_time(there_and_back, seconds) / TOKENS * 1e6


def passes(sequences: int, seconds: float) -> float:
    """Tokens per CPU second of a model there and back."""
    model = MyPTForCausalLM(preset_config("modern-nano", vocab_size=8_192, attn_implementation="eager"))
    ids = torch.randint(0, 8_192, (sequences, 256))

    def there_and_back() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return ids.numel() / cpu_time(there_and_back, seconds)


if __name__ == "__main__":
    main()
