"""Write a model card from a model's folder: what it is, how to use it, what it saw and what it forgot."""

import json
import re
from pathlib import Path

from mypt.checkpoints.evaluations import DEFINITIONS, PLOT_NAMES, Entry
from mypt.checkpoints.interpolated import PLOT_NAME
from mypt.checkpoints.lineage import describe_runs
from mypt.errors import CheckpointError
from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.inspection.training_history import describe_action
from mypt.planning.parameters import count_parameters
from mypt.recipe import RESOLVED_NAME
from mypt.storage import run_tables
from mypt.storage.run_info import RunInfo
from mypt.storage.run_tables import Code, Table, seen_by_source
from mypt.storage.upload_files import CARD_NAME
from mypt.terminal import one_line, visible

_STUB = "# Model Card for Model ID"  # the title of the form that peft lays beside every adapter, not filled in
# Characters that Markdown or HTML acts on: names of texts and models come from files that anybody may have written.
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[&<>\\`*\[\]~#$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def written_card(folder: Path) -> str | None:
    """The README.md that somebody wrote into a folder; None without one, and for peft's form that is not filled in.

    Raises CheckpointError if it is not UTF-8.
    """
    own = folder / CARD_NAME
    try:
        text = own.read_text(encoding="utf-8") if own.is_file() else _STUB
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{own}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    return None if _STUB in text else text


def card_of(folder: Path, name: str, *, revision: str | None = None, license: str | None = None) -> str:
    """The card to send: the folder's own README.md if somebody wrote one, else `model_card`."""
    own = written_card(folder)
    return model_card(folder, name, revision=revision, license=license) if own is None else own


def model_card(folder: Path, name: str, *, revision: str | None = None, license: str | None = None) -> str:
    """Markdown with the hub's metadata on top, made of the folder's files alone: the same files, the same card.

    folder: a run folder, its `best`, a checkpoint or an adapter, as `mypt.storage.upload_files.model_files` takes it.
    name, revision: what it will be loaded by, such as user/name. license: an identifier such as apache-2.0.
    Raises CheckpointError for files that are damaged.
    """
    info = RunInfo(folder)
    sections = [
        _metadata(info, name, license),
        f"# {_plain(name.rpartition('/')[2])}",
        _summary(info),
        _use(info, json.dumps(name) + (f", revision={json.dumps(revision)}" if revision else "")),
        _training(info),
        _forgetting(info),
        _evaluations(info),
        _limitations(info),
        _recipe(info),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def export_card(report: dict, name: str, license: str | None = None) -> str:
    """Markdown with the hub's metadata about a model that `mypt export` wrote: its export.json in words."""
    from huggingface_hub import ModelCardData

    result, title = report["result"], name.rpartition("/")[2]
    data = ModelCardData(pipeline_tag="text-generation", license=license, tags=["mypt", one_line(report["format"])])
    rows = [
        ("architecture", _plain(report["to"])),
        ("parameters", f"{report['parameters']:,}"),
        ("format", _plain(f"{report['format']} {report['dtype']}")),
        ("run and checked by", _plain(result.get("runtime"))),
        ("largest difference of a logit", f"{max(report['differences'].values()):.1e}"),
        ("greedy text", "that of the same weights" if report["greedy_equal"] else "NOT that of the same weights"),
    ]
    if result.get("bits_per_byte") is not None:
        rows.append(("bits/byte of a sample", f"{result['bits_per_byte']:.4f}"))
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(title)}",
        "A causal language model, written by `mypt export` for other programs. The difference is that between the "
        "files and the same weights in transformers.",
        _table(("", ""), rows),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(info: RunInfo, name: str, license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=one_line(set_name),
            dataset_name=f"{one_line(set_name)} (held-out split)",
            metric_type="loss",
            metric_name="loss, nats per token",
            metric_value=round(reading["loss"], 4),
        )
        for set_name, reading in (info.last["sets"] if info.last else {}).items()
    ] + [_eval_result(entry) for entry in info.evaluations]
    sources = [one_line(source["name"]) for source in info.coverage.get("sources", [])]
    data = ModelCardData(
        library_name="peft" if info.adapter else "transformers",
        pipeline_tag="text-generation",
        license=license,
        base_model=info.hub_base,
        tags=["mypt", *(["lora"] if info.adapter else [])],
        datasets=[one_line(re.split("[:@#]", s.removeprefix("hf://"))[0]) for s in sources if s.startswith("hf://")]
        or None,
        model_name=name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _eval_result(entry: Entry):
    """A figure of `mypt evaluate` in the hub's metadata (model-index)."""
    from huggingface_hub import EvalResult

    if "metric" in entry:
        kind = name = one_line(entry["metric"])
        value, split = entry["value"], None
    else:
        kind, name = "bits_per_byte", f"bits per byte ({one_line(entry['definition'])})"
        value, split = entry["bits_per_byte"], entry["split"]
    data = one_line(entry["data"])
    return EvalResult(
        task_type="text-generation",
        dataset_type=data,
        dataset_name=data,
        dataset_split=split,
        metric_type=kind,
        metric_name=name,
        metric_value=round(value, 4),
    )


def describe_model(folder: Path) -> dict[str, str]:
    """Describe the model in a folder: {"architecture": ..., "parameters": ..., ...}."""
    info = RunInfo(folder)
    if info.adapter:
        rank = {"rank": str(info.adapter["r"])} if "r" in info.adapter else {}
        return {"kind": f"{info.adapter.get('peft_type', 'peft')} adapter", "base model": f"{info.base}"} | rank
    report = inspect_checkpoint(folder)
    model, weights, tokenizer = report["model"], report["weights"], report["tokenizer"]
    if "heads" not in model:
        raise CheckpointError(f"{folder / 'config.json'} is damaged: it does not say what model this is; restore it")
    heads, kv_heads = model["heads"], model["kv_heads"]
    shared = f" ({kv_heads} for keys and values)" if kv_heads not in (None, heads) else ""
    return {
        "architecture": f"{model['architecture']} ({model['model_type']})",
        "shape": f"{model['layers']} layers, {heads} heads{shared}, width {model['width']}",
        "parameters": _parameters(info.config, weights["parameters"]),
        "context": f"{model['context']:,} tokens" if model["context"] else "not stated",
        "tokenizer": f"{tokenizer['type']}, {tokenizer['ids']:,} ids" if tokenizer else "none",
        "weights": f"{', '.join(weights['dtypes'])}, {weights['bytes'] / 1e6:,.1f} MB of safetensors",
    }


def _summary(info: RunInfo) -> str:
    words = "An adapter for a causal language model" if info.adapter else "A causal language model"
    if info.base:
        link = f"[{info.hub_base}](https://huggingface.co/{info.hub_base})" if info.hub_base else _code(info.base)
        words += f", trained from {link}"
    elif info.recipe:
        words += ", trained from scratch"
    words += " with MyPT" if info.recipe else ""
    if between := info.interpolation:
        words += (
            f". Its weights are between those of {_code(between['base'])} (alpha 0) and {_code(between['adapted'])} "
            f"(alpha 1), at alpha {between['alpha']:g} ([WiSE-FT](https://arxiv.org/abs/2109.01903))"
        )
    rows = [(f"**{name}**", _plain(value)) for name, value in describe_model(info.folder).items()]
    return f"{words}.\n\n{_table(('', ''), rows)}"


def _parameters(config: dict, stored: int) -> str:
    if config.get("model_type") != "mypt":
        return f"{stored:,}"
    parts = count_parameters(config)
    named = [f"{part} {count:,}" for part, count in parts.items() if count and part not in ("total", "non_embedding")]
    return f"{parts['total']:,} ({', '.join(named)})"


def _use(info: RunInfo, what: str) -> str:
    """The code that loads it; `what`: its name and revision as arguments."""
    if info.adapter:
        base = info.hub_base or "the base model's name or folder"
        lines = (
            "import mypt", "from peft import PeftModel", "from transformers import AutoModelForCausalLM", "",
            f'base = AutoModelForCausalLM.from_pretrained("{base}")',
            f"model = PeftModel.from_pretrained(base, {what})",
        )  # fmt: skip
        return "## Use\n\n" + _block("python", "\n".join(lines))
    ours = info.config.get("model_type") == "mypt"
    text = "## Use\n\n" + _block("python", ("import mypt\n" if ours else "") + _generating(what))
    if ours and info.config.get("auto_map"):
        text += "\n\nWithout mypt installed, by the code that lies beside the weights:\n\n"
        text += _block("python", _generating(f"{what}, trust_remote_code=True"))
    return text


def _generating(arguments: str) -> str:
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({arguments})
tokenizer = AutoTokenizer.from_pretrained({arguments})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""


def _training(info: RunInfo) -> str:
    parts = [_own_run(info), _all_runs(info)]
    return "## Training\n\n" + "\n\n".join(filter(None, parts)) if any(parts) else ""


def _own_run(info: RunInfo) -> str:
    if not info.coverage:
        return ""
    total = sum(entry.get("tokens", 0) for _, entry in seen_by_source(info))
    steps = [] if info.step is None else [f"{info.step:,} optimizer steps"]
    words = ", ".join([*steps, *([f"{total:,} tokens"] if total else [])])
    picture = "\n\n![Loss over the steps](loss.png)" if (info.folder / "loss.png").is_file() else ""
    return f"{f'{words}.' if words else 'What it was trained on:'}\n\n{_escaped(run_tables.data_table(info))}{picture}"


def _all_runs(info: RunInfo) -> str:
    """The data that the weights have seen over all runs, unless the ledger of the only run shows it."""
    table, lineage = run_tables.lineage_table(info), info.lineage
    if table is None:
        return ""
    total = sum(source["tokens"] for source in lineage["seen"])
    unknown = f" What {_plain(lineage['base'])} was trained on is not known." if lineage["base"] else ""
    return f"Over all runs ({_plain(describe_runs(lineage))}): {total:,} tokens.{unknown}\n\n{_escaped(table)}"


def _forgetting(info: RunInfo) -> str:
    table = run_tables.forgetting_table(info)
    if table is None:
        return ""
    text = f"## Evaluation and forgetting\n\nLoss in nats per token.\n\n{_escaped(table)}"
    last = info.last.get("step")  # None of an interpolated model
    actions = [a for a in info.forgetting.get("actions", []) if last is None or a["step"] <= last]
    if actions:
        text += "\n\nWhat the guard did:\n\n" + "\n".join(f"- {_plain(describe_action(action))}" for action in actions)
    if "verdict" in info.forgetting and info.forgetting["history"][-1] == info.last:
        text += f"\n\nVerdict: {_plain(info.forgetting['verdict'])}"
    for name, words in (("forgetting.png", "since step 0"), (PLOT_NAME, "between alpha 0 and 1")):
        if (info.folder / name).is_file():
            text += f"\n\n![Change of the losses {words}]({name})"
    return text


def _evaluations(info: RunInfo) -> str:
    """The figures that `mypt evaluate` measured of these weights."""
    losses, metrics = run_tables.losses_table(info.evaluations), run_tables.metrics_table(info.evaluations)
    tables = []
    if losses.rows:
        notes = [
            f"*{kind}*: {DEFINITIONS[kind]}."
            for kind in DEFINITIONS
            if any(entry.get("definition") == kind for entry in info.evaluations)
        ]
        tables.append("\n\n".join([_escaped(losses), *notes]))
    if metrics.rows:
        tables.append(_escaped(metrics))
    if not tables:
        return ""
    pictures = [
        f"![{words}]({name})"
        for name, words in zip(PLOT_NAMES, ("Bits per byte", "Loss by position", "Loss by source"), strict=True)
        if (info.folder / name).is_file()
    ]
    return "## Measured by mypt evaluate\n\n" + "\n\n".join([*tables, *pictures])


def _limitations(info: RunInfo) -> str:
    lines = [
        "It continues text as its training data would, with their errors and prejudices; what it says may be false.",
        "It does not follow instructions or refuse harmful requests, unless its data or its base model taught it to.",
        "The losses above are about the held-out text named there, and nothing else was measured.",
    ]
    if not (info.last or info.evaluations):
        lines[-1] = "Nothing was measured on held-out text."
    if not info.lineage:
        lines.append("What its weights have seen in all of their training is not known.")
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _recipe(info: RunInfo) -> str:
    parts = []
    if packages := info.environment.get("packages"):
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        parts.append(f"## Environment\n\nPython {_plain(info.environment.get('python'))}, {_plain(versions)}.")
    if info.recipe:
        block = _block("yaml", visible(info.recipe_text.strip()))
        parts.append(f"## Recipe\n\n<details>\n<summary>{RESOLVED_NAME}</summary>\n\n{block}\n\n</details>")
    return "\n\n".join(parts)


def _escaped(table: Table) -> str:
    rows = [
        tuple(_code(cell) if isinstance(cell, Code) and cell else _plain(cell) for cell in row) for row in table.rows
    ]
    return _table(table.columns, rows)


def _table(header: tuple, rows: list[tuple]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _plain(text: object) -> str:
    """A text as Markdown that shows it as it is, in a line or, by `_table`, in a cell."""
    return _MARKUP.sub(lambda found: _HTML.get(found[0], f"\\{found[0]}"), one_line(text))


def _code(text: object) -> str:
    """A text as a code span."""
    text = one_line(text)
    fence = _fence(text, 1)
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def _block(language: str, text: str) -> str:
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _fence(text: str, least: int) -> str:
    """Backticks, more in a row than the text has."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])
