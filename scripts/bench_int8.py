"""What weights in 8 bits change and save, on one CPU thread: `python scripts/bench_int8.py [MODEL DATA [speeds]]`.

MODEL DATA: a run folder and a dataset directory, of whose val split 300 tokens of up to 20 documents are read: nats per
token in full precision and in 8 bits, how often the likeliest token is the same, how many greedy texts of 100 tokens
are equal. Without them: a model of 124M parameters that is trained on 4 random texts of 48 tokens for minutes.

Of both: CPU milliseconds per greedy token of `fast`, of `int8` and of `speculate`, alternating, text by text (median
and range; the prompt's reading included); and how many tokens a check of guesses gave.

MODEL DATA speeds: these alone, of 64 tokens after the first 64 of 8 documents.
"""

import os
import statistics
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch.nn import functional as F

from mypt import MyPTForCausalLM, preset_config
from mypt.checkpoints.load import load_model
from mypt.demo.run_view import example_texts
from mypt.generation.engine import Engine
from mypt.generation.fast_decoder import FastDecoder
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.load import load_tokenizer

SHAPE = {"vocab_size": 50304, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12,
         "hidden_size": 768}  # fmt: skip
STEPS = 30


def compare_losses(engine: Engine, texts: list[str]) -> None:
    """Print the loss of both, each token computed by a step of the decoder, and how often they agree."""
    decoders = FastDecoder(engine.model), FastDecoder(engine.model, int8=True)
    sums, likeliest, count, agreed = [0.0, 0.0], [None, None], 0, 0
    for text in texts:
        ids = [*engine.beginning(), *engine.encode([text])[0]]
        for number, decoder in enumerate(decoders):
            seen = []

            def choose(logits, seen=seen, ids=ids):
                seen.append(logits[0])
                return torch.tensor([ids[len(seen)]])

            decoder.extend([ids[:1]], len(ids) - 1, choose)
            logits = torch.stack(seen)
            sums[number] += F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
            likeliest[number] = logits.argmax(-1)
        count, agreed = count + len(ids) - 1, agreed + int((likeliest[0] == likeliest[1]).sum())
    print(f"{count:,} tokens: {sums[0] / count:.4f} nats in full, {sums[1] / count:.4f} in 8 bits; "
          f"the likeliest token is the same in {agreed / count:.1%}")  # fmt: skip
    settings = GenerationSettings(greedy=True, max_new_tokens=100, min_new_tokens=100)
    other = Engine(engine.model, engine.tokenizer, int8=True)
    prompts = [text[:40] for text in texts]
    pairs = zip(*(one.complete_batch(prompts, settings) for one in (engine, other)), strict=True)
    print(f"greedy texts that are equal: {sum(a.text == b.text for a, b in pairs)} of {len(prompts)}")


def compare_speeds(model: MyPTForCausalLM, prompts: list[list[int]], tokens: int) -> None:
    full, int8 = FastDecoder(model, speculate=True), FastDecoder(model, int8=True)
    ways = {"fast": full.extend, "int8": int8.extend, "speculate": full.speculate}
    checks, read = [], full.layers.read
    full.layers.read = lambda states, *rest: checks.append(len(states)) or read(states, *rest)
    times, equal = {name: [] for name in ways}, 0
    for prompt in prompts:
        found = {}
        for name, way in ways.items():
            ids = found[name] = []
            begun = time.process_time()
            way([prompt], tokens, lambda logits, ids=ids: ids.append(logits.argmax(-1)) or ids[-1])
            times[name].append((time.process_time() - begun) / tokens * 1e3)
        equal += found["fast"] == found["speculate"]
    fast = statistics.median(times["fast"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"  {name:<10}{middle:8.2f} ms ({min(values):.2f}-{max(values):.2f}) {fast / middle:5.2f}x", flush=True)
    given = len(prompts) * (tokens - 1) / len(checks)
    print(f"speculate: {equal} of {len(prompts)} texts are those of fast; {given:.2f} tokens a check")


def overfit() -> tuple[MyPTForCausalLM, list[list[int]]]:
    torch.manual_seed(0)
    model = MyPTForCausalLM(preset_config("modern-nano", max_position_embeddings=512, **SHAPE))
    ids = torch.randint(3, 50000, (4, 48))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"124M parameters, trained on {len(ids)} texts to a loss of {loss.item():.2f}")
    return model.eval(), [row[:8].tolist() for row in ids]


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 1:
        compare_speeds(*overfit(), tokens=40)
        return
    model, data, *speeds = sys.argv[1:]
    engine, texts = Engine(load_model(model), load_tokenizer(model)), example_texts(data)
    if speeds:
        prompts = [ids[:64] for ids in engine.encode(texts) if len(ids) >= 64]
        compare_speeds(engine.model, prompts[:8], tokens=64)
        return
    compare_losses(engine, texts)
    compare_speeds(engine.model, [engine.encode([text[:60]])[0] for text in texts[:10]], tokens=100)


if __name__ == "__main__":
    main()
