"""`mypt generate MODEL`: continue prompts, answer questions, chat."""

import argparse
import sys

from mypt.cli.dataset_options import given
from mypt.cli.frameworks import load_transformers
from mypt.generation.settings import (
    NO_CONTRASTIVE_SEARCH,
    PRESETS,
    GenerationSettings,
    preset_settings,
    sample_settings,
)
from mypt.terminal import is_terminal, progress_bar, say, say_json, write

HELP = "continue prompts, answer questions or chat with a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, checkpoint folder or hub id")
    prompt = "text to continue, - for standard input; repeatable; without any prompt a document is begun"
    add("--prompt", action="append", default=[], metavar="TEXT", help=prompt)
    add("--prompt-file", action="append", default=[], metavar="FILE", help="file that is one prompt; repeatable")
    add("--prompts", metavar="FILE", help="file with a prompt on each line, or .jsonl with a prompt in each object")
    _add_settings(parser)
    add("--stop", action="append", default=[], metavar="TEXT", help=r"end before this text, \n a line end; repeatable")
    add("--num-samples", type=int, default=1, metavar="N", help="texts for each prompt, with seeds SEED, SEED + 1, ...")
    add("--seed", type=int, help="same seed, same text (default: a new one each time)")
    add("--qa", action="store_true", help="prompts are questions: print the answers alone")
    add("--template", metavar="TEXT|FILE", help="text around a question, with {question} in it")
    add("--batch-size", type=int, default=8, metavar="N", help="texts computed together with --json and --out")
    add("--resume", action="store_true", help="continue the file of --out")
    add("--int8", action="store_true", help="weights in 8 bits: faster on a CPU, slightly other texts")
    add("--speculate", action="store_true", help="same greedy texts, sooner for a model of 50M parameters or more")
    add("--trust-remote-code", action="store_true", help="run model code that comes with a hub model")
    add("--contrastive", action="store_true", help="refused: transformers 5 no longer has it")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--chat", action="store_true", help="answer each line of standard input, remembering earlier ones")
    add("--out", metavar="FILE", help="write a JSON line for each text; nothing is streamed")
    add("--json", action="store_true", help="print prompts, texts, token counts and seeds as JSON")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add fields of GenerationSettings; one that is not given is None, since it may come from the preset."""

    def add(name: str, help: str, **options) -> None:
        default = getattr(GenerationSettings, name.removeprefix("--").replace("-", "_"))
        shown = "" if isinstance(default, bool) else f" ({'all' if default is None else default})"
        parser.add_argument(name, default=None, help=help + shown, **options)

    parser.add_argument("--preset", choices=list(PRESETS), help="settings for a purpose; options given with it win")
    add("--temperature", "below 1: more predictable, above 1: more surprising", type=float, metavar="T")
    add("--top-k", "draw from the K likeliest tokens", type=int, metavar="K")
    add("--top-p", "draw from the likeliest tokens that together have probability P", type=float, metavar="P")
    add("--min-p", "draw from tokens at least P times as likely as the likeliest", type=float, metavar="P")
    add("--repetition-penalty", "above 1: tokens of prompt and text become less likely", type=float, metavar="R")
    add("--greedy", "take the likeliest token each time; nothing is drawn", action="store_true")
    add("--num-beams", "above 1: search for the likeliest text with N beams", type=int, metavar="N")
    add("--length-penalty", "beams only; above 0 favours long texts", type=float, metavar="X")
    add("--early-stopping", "beams only: end when N texts have ended", action="store_true")
    add("--max-new-tokens", "tokens at most", type=int, metavar="N")
    add("--min-new-tokens", "no end of text before so many tokens", type=int, metavar="N")
    add("--overflow", "at the end of the context", choices=["stop", "slide"])


def run(args: argparse.Namespace) -> None:
    from dataclasses import fields, replace

    from mypt.errors import MyPTError
    from mypt.generation.prompts import read_template, unescape
    from mypt.generation.results import ResultsFile

    if args.contrastive:
        raise MyPTError(NO_CONTRASTIVE_SEARCH)
    conflicts = {
        "--template goes with --qa or --chat": args.template and not (args.qa or args.chat),
        "--resume goes with --out": args.resume and not args.out,
        "--chat goes with questions on standard input": args.chat and (args.prompt or args.prompt_file or args.prompts),
    }
    for message, wrong in conflicts.items():
        if wrong:
            raise MyPTError(f"{message}; add that, or leave out what does not go with it")
    chosen = given(args, *(field.name for field in fields(GenerationSettings)))
    settings = preset_settings(args.preset, **chosen | {"stop": tuple(map(unescape, args.stop))})
    results = ResultsFile(args.out, args.resume) if args.out else None
    if results and results.seed is not None and "seed" not in chosen:
        settings = replace(settings, seed=results.seed)
    samples = sample_settings(settings, args.num_samples)
    template = read_template(args.template)
    jobs = [] if args.chat else [(record, sample) for record in _records(args) for sample in samples]
    if results:
        results.continue_for([(record["prompt"], sample.seed) for record, sample in jobs])

    from mypt.checkpoints.load import load_model, require_model

    require_model(args.model)

    load_transformers()
    from mypt.checkpoints.probes import require_causal
    from mypt.generation.engine import Engine
    from mypt.tokenization.load import load_tokenizer

    model = load_model(args.model, trust_remote_code=args.trust_remote_code)
    require_causal(model, args.model)
    engine = Engine(model, load_tokenizer(args.model), say=_say, int8=args.int8, speculate=args.speculate)
    if args.chat:
        _chat(engine, settings, template)
    elif args.json or args.out:
        _batches(args, engine, settings, template, jobs, results)
    else:
        _stream(args, engine, template, jobs)


def _records(args: argparse.Namespace) -> list[dict]:
    from mypt.generation.prompts import read_prompts, read_records

    records = [{"prompt": prompt} for prompt in read_prompts(args.prompt, args.prompt_file)]
    records += read_records(args.prompts) if args.prompts else []
    return records or [{"prompt": ""}]


def _stream(args, engine, template, jobs) -> None:
    from mypt.generation.dialogue import QuestionTemplate

    questions = QuestionTemplate(engine.tokenizer, template) if args.qa else None
    for index, (record, sample) in enumerate(jobs):
        prompt = record["prompt"]
        write("---\n" if index else "")
        if questions:
            prompt, sample = questions.prompt(prompt), questions.settings(sample)
        else:
            write(prompt)
        with engine.stream(prompt, sample, strip=args.qa) as pieces:
            for piece in pieces:
                write(piece)
        write("\n")
        _report_end(pieces.completion)


def _batches(args, engine, settings, template, jobs, results) -> None:
    from dataclasses import asdict, replace

    from mypt.generation.dialogue import QuestionTemplate

    prompts = [record["prompt"] for record, _ in jobs]
    if args.qa:
        questions = QuestionTemplate(engine.tokenizer, template)
        prompts, settings = [questions.prompt(prompt) for prompt in prompts], questions.settings(settings)
    first = results.done if results else 0
    options = {"seeds": [sample.seed for _, sample in jobs[first:]], "batch_size": args.batch_size, "strip": args.qa}
    completions = engine.complete_batch(prompts[first:], settings, **options)
    bar = progress_bar(total=len(jobs), initial=first, unit="text")
    texts = []
    for (record, _), completion in zip(jobs[first:], completions, strict=True):
        texts.append(record | asdict(replace(completion, prompt=record["prompt"])))
        bar.update()
        if results:
            results.write(texts[-1])
    bar.close()
    if results:
        say(f"{len(texts)} texts written to {args.out}, which has {len(jobs)}")
    else:
        say_json({"model": args.model, "settings": asdict(settings), "texts": texts})


def _chat(engine, settings, template) -> None:
    from mypt.errors import MyPTError
    from mypt.generation.dialogue import Chat

    if sys.stdin is None:
        raise MyPTError("--chat reads questions from standard input, and there is none; give --qa and --prompt")
    chat = Chat(engine, settings, template)
    terminal = is_terminal(sys.stdin)
    if terminal:
        say("Each line is a question; Ctrl-D ends the chat.", error=True)
    while True:
        try:
            question = input("> " if terminal else "").strip()
        except EOFError:
            return
        if not question:
            continue
        forgotten = chat.forgotten
        for piece in chat.ask(question):
            write(piece)
        write("\n")
        _report_end(chat.completion)
        if chat.forgotten > forgotten:
            _say(f"the context is full: the model no longer reads the first {chat.forgotten} turns")


def _report_end(completion) -> None:
    """Report the end of the context on standard error."""
    if completion.finish == "context":
        _say(f"stopped after {completion.tokens} tokens: the model's context is full")
    elif completion.dropped_tokens:
        _say(f"the context slid: at the end the model no longer saw the first {completion.dropped_tokens} tokens")


def _say(line: str) -> None:
    say(f"mypt generate: {line}", error=True)
