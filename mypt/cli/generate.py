"""`mypt generate MODEL`: continue prompts with a trained model."""

import argparse
import json
import sys

from mypt.generation.settings import GenerationSettings, sample_settings

HELP = "continue prompts with a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, checkpoint folder or hub id")
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="text to continue, - for standard input; repeatable; without any prompt a document is begun",
    )
    add("--prompt-file", action="append", default=[], metavar="FILE", help="file that is one prompt; repeatable")
    add("--max-new-tokens", type=int, default=GenerationSettings.max_new_tokens, metavar="N", help="tokens at most")
    add(
        "--temperature",
        type=float,
        default=GenerationSettings.temperature,
        metavar="T",
        help="below 1: more predictable, above 1: more surprising",
    )
    add(
        "--top-k",
        type=int,
        default=argparse.SUPPRESS,
        metavar="K",
        help="draw from the K likeliest tokens (default: all)",
    )
    add(
        "--top-p",
        type=float,
        default=argparse.SUPPRESS,
        metavar="P",
        help="draw from the likeliest tokens that together have probability P (default: all)",
    )
    add("--greedy", action="store_true", help="take the likeliest token each time; nothing is drawn")
    add("--num-samples", type=int, default=1, metavar="N", help="texts for each prompt, with seeds SEED, SEED + 1, ...")
    add("--seed", type=int, default=argparse.SUPPRESS, help="same seed, same text (default: a new one each time)")
    add("--trust-remote-code", action="store_true", help="run model code that comes with a hub model")
    add("--json", action="store_true", help="print prompts, texts, token counts and seeds as JSON")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict, fields

    from mypt.generation.prompts import read_prompts

    names = [field.name for field in fields(GenerationSettings) if hasattr(args, field.name)]
    settings = GenerationSettings(**{name: getattr(args, name) for name in names})
    samples = sample_settings(settings, args.num_samples)
    jobs = [(prompt, sample) for prompt in read_prompts(args.prompt, args.prompt_file) for sample in samples]

    from tqdm import tqdm
    from transformers import logging

    from mypt.generation.generate import generate
    from mypt.generation.load import load_model
    from mypt.tokenization.load import load_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = load_model(args.model, trust_remote_code=args.trust_remote_code)
    tokenizer = load_tokenizer(args.model)
    if args.json:
        bar = tqdm(jobs, unit="text", disable=None, leave=False)
        texts = [asdict(generate(model, tokenizer, prompt, sample)) for prompt, sample in bar]
        report = {"model": args.model, "settings": asdict(settings), "texts": texts}
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    for index, (prompt, sample) in enumerate(jobs):
        _write(f"---\n{prompt}" if index else prompt)
        completion = generate(model, tokenizer, prompt, sample, on_text=_write)
        _write("\n")
        if completion.finish == "context":
            print(
                f"mypt generate: stopped after {completion.tokens} tokens: the model's context is full", file=sys.stderr
            )


def _write(text: str) -> None:
    print(text, end="", flush=True)
