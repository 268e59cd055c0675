"""Describe reports of checkpoints and datasets, and of their differences, as lines and tables."""

from collections.abc import Iterator

from mypt.checkpoints.lineage import coverage_of, describe_runs
from mypt.inspection.training_history import describe_action, settings_of

Block = str | tuple[list[str], list[list]]  # a line, or a table: columns and rows
HISTORY_ROWS = 12  # of the forgetting history; a report as JSON has all of it
TENSORS = 12  # named in a table; a report as JSON names all
WIDTH = 60  # of a value in a table, in characters
_MADE_BY = ("of", "from", "samples", "tokens", "fraction", "val", "seed")  # shown of a dataset's history


def describe(report: dict) -> Iterator[Block]:
    """A report of `inspect_checkpoint` or `inspect_original`, the model first, then how it was trained."""
    yield f"{report['path']}: {report['kind']}"
    if report.get("model_path", report["path"]) != report["path"]:
        yield _line("model", f"of {report['model_path']}; the run has not finished")
    yield from _architecture(report)
    if origin := report.get("converted_from"):
        yield _line("converted", f"from {origin['path']}, {origin['form']} of {origin['from']}, step {origin['step']}")
        if training := origin.get("training_state", {}).get("training_config"):
            yield _line("its settings", _plain(training))
    if progress := report["progress"]:
        yield from _progress(progress)
    if between := report.get("interpolation"):
        words = f"alpha {between['alpha']:g} between {between['base']} (0) and {between['adapted']} (1)"
        where = "" if between["folder"] == report["path"] else f"{between['folder']}: "
        yield _line("interpolated", where + words)
    if parameters := report["parameters"]:
        yield from _table(["parameters", "number"], [[part, f"{count:,}"] for part, count in parameters.items()])
    if coverage := report.get("coverage"):
        rows = [[s["name"], f"{s['samples']:,}", f"{s['tokens']:,}", _times(s)] for s in coverage["seen"]]
        yield from _table(["training data", "samples seen", "tokens seen", "coverage"], rows)
    if "lineage" in report:
        yield from _lineage(report["lineage"], has_ledger=bool(coverage))
    if report.get("forgetting"):
        yield from _forgetting(report["forgetting"])
    if report.get("diagnosis"):
        yield from ("", *report["diagnosis"]["lines"])
    if report.get("recipe"):
        settings, changed = settings_of(report["recipe"]), report["changed_settings"]
        yield from _pairs("settings that are not the defaults, from recipe.yaml", {n: settings[n] for n in changed})
        yield from _pairs("defaults", {name: value for name, value in settings.items() if name not in changed})
    if report.get("settings"):
        yield from _pairs("settings, from training_state.json", report["settings"])
    if report.get("checkpoints"):
        rows = [[c["name"], c["missing"] or "complete"] for c in report["checkpoints"]]
        yield from _table(["checkpoint", "state"], rows)
    yield from _files(report)


def describe_dataset(report: dict) -> Iterator[Block]:
    """A report of `inspect_dataset`, with the windows that are to be shown."""
    yield f"{report['path']}: dataset"
    columns = ["split", "tokens", "documents", "bytes of text", "bytes/token", "shards"]
    rows = [
        [name, *_numbers(s["tokens"], s["documents"], s["bytes"]), _figure(s["bytes_per_token"], ".3f"), s["shards"]]
        for name, s in report["splits"].items()
    ]
    yield columns, rows
    tokenizer = report["tokenizer"]
    yield ""
    words = f"{tokenizer['name']}, {tokenizer['vocab_size']:,} ids, EOS is {tokenizer['eos_token_id']}"
    yield from (_line("tokenizer", words), _line("token ids", report["dtype"]), _line("format", report["format"]))
    for entry in report["history"]:
        made_by = {name: value for name, value in entry.items() if name in _MADE_BY}
        texts = ", ".join(source["name"] for source in entry.get("text", ()))
        yield _line(entry["did"], _plain({"of": texts} | made_by if texts else made_by))
    rows = [[s["name"], *_numbers(s["documents"], s["bytes"], s["tokens"])] for s in report["sources"]]
    yield from _table(["source", "documents", "bytes of text", "tokens"], rows)
    yield from _pairs("settings", report["settings"])
    yield from _pairs("while preparing", report["report"])
    yield from _files(report)
    for window in report.get("windows", ()):
        count = len(window["input_ids"])
        yield from ("", f"--- sample {window['sample']}: {count} tokens from token {window['first_token']:,}")
        yield from window["text"].split("\n")


def describe_diff(report: dict) -> Iterator[Block]:
    """A report of `diff_checkpoints` or `diff_datasets`: what differs, and that the rest does not."""
    yield from (_line("A", report["a"]), _line("B", report["b"]))
    if "fields" in report:  # two datasets
        rows = [[name, *map(_cell, values)] for name, values in report["fields"].items()]
        yield from _table(["field", "A", "B"], rows) if rows else ("no difference",)
        return
    yield _line("tokenizer", report["tokenizer"] or "not compared: A or B holds no tokenizer.json of today's")
    first, second = report["parameters"]
    yield _line("parameters", f"{_cell(first)} both" if first == second else f"{_cell(first)} and {_cell(second)}")
    steps = [(progress or {}).get("step") for progress in report["progress"]]
    if steps != [None, None]:
        yield _line("step", " and ".join(map(_cell, steps)))
    for title, key in (("field", "config"), ("setting", "settings")):
        if report[key]:
            rows = [[name, *map(_cell, values)] for name, values in report[key].items()]
            yield from _table([title, "A", "B"], rows)
        else:
            none = "not compared: A or B has none" if report[key] is None else "no difference"
            yield _line(f"{title}s", none)
    if report["losses"]:
        columns = ["nats/token of", "A", "since step 0", "B", "since step 0", "B - A"]
        yield from _table(columns, [[name, *_loss_cells(**found)] for name, found in report["losses"].items()])
    if report["weights"]:
        yield from _weights(report["weights"])


def _architecture(report: dict) -> Iterator[Block]:
    model, weights, adapter = report["model"], report["weights"], report.get("adapter")
    if adapter:
        modules = adapter["target_modules"]
        if isinstance(modules, list):  # peft may name each layer's
            modules = ", ".join(sorted({name.rpartition(".")[2] for name in modules}))
        yield _line("adapter", f"{adapter['peft_type']} of {adapter['base_model_name_or_path']}")
        yield _line("rank", f"{adapter['r']}, alpha {adapter['lora_alpha']}, in {adapter['layers']} modules")
        yield _line("targets", str(modules))
    if report.get("era"):
        yield _line("architecture", f"the original MyPT's, {report['era']} attention, {report['form']}")
    elif model:
        yield _line("architecture", f"{model['architecture']} ({model['model_type']})")
    if model:
        heads = f"{model['heads']} heads"
        if model.get("kv_heads") not in (None, model["heads"]):
            heads += f" ({model['kv_heads']} key-value)"
        shape = f"{model['layers']} layers x {heads} x {model['width']}, context {model['context']} tokens"
        yield _line("shape", shape)
    if report.get("era") and model["norm"]:
        tied = "tied" if model["tied"] else "untied"
        yield _line("switches", f"{model['positions']} positions, {model['norm']}, {model['activation']}, {tied} head")
    if weights:
        dtypes = ", ".join(weights["dtypes"])
        yield _line("weights", f"{weights['parameters']:,} parameters in {dtypes}, {_size(weights['bytes'])}")
    if tokenizer := report["tokenizer"]:
        wider = model and model["vocabulary"] not in (None, tokenizer["ids"])
        padded = f" (padded to {model['vocabulary']:,})" if wider else ""
        count = f"{tokenizer['ids']:,} ids" if tokenizer["ids"] else "size unknown"
        yield _line("tokenizer", f"{tokenizer['type']}, {count}{padded}, EOS {tokenizer['eos_token']}")


def _progress(progress: dict) -> Iterator[Block]:
    if progress["step"] is None:
        return
    of = f" of {progress['max_steps']:,}" if progress["max_steps"] is not None else ""
    yield _line("progress", f"step {progress['step']:,}{of}")
    if progress.get("loss") is not None:
        rate = f", learning rate {progress['learning_rate']:.2e}" if progress["learning_rate"] is not None else ""
        yield _line("training", f"loss {progress['loss']:.4f} nats/token at step {progress['logged_at_step']:,}{rate}")
    if progress.get("best_checkpoint") and progress.get("best_metric") is not None:
        # eval_constrained_loss: the target's loss, or 1,000 + the worst excess over the forgetting tolerance
        metric = progress["best_metric"]
        excess = f"a guarded set is {metric - 1_000:.4f} nats/token beyond its tolerance"
        yield _line("best", f"{progress['best_checkpoint']}, " + (excess if metric >= 1_000 else f"loss {metric:.4f}"))


def _lineage(lineage: dict | None, has_ledger: bool) -> Iterator[Block]:
    """The data that the weights have seen over all runs, unless the ledger of the only run shows it."""
    if lineage is None:
        yield from ("", _line("over all runs", "not known: there is no lineage.json beside the weights"))
    elif lineage["base"] or len(lineage["runs"]) > 1 or not has_ledger:
        rows = [[s["name"], f"{s['samples']:,}", f"{s['tokens']:,}", coverage_of(s)] for s in lineage["seen"]]
        yield from _table(["over all runs", "samples seen", "tokens seen", "coverage"], rows)
        yield _line("runs", describe_runs(lineage))
        if lineage["base"]:
            yield _line("before them", f"what {lineage['base']} was trained on is not known")


def _forgetting(forgetting: dict) -> Iterator[Block]:
    rows = [
        [
            name,
            f"{reading['loss']:.4f}",
            _figure(reading.get("bits_per_byte"), ".4f"),
            f"{reading['delta']:+.4f}" + (f" +/- {reading['delta_error']:.4f}" if "delta_error" in reading else ""),
            reading["state"],
        ]
        for name, reading in forgetting["sets"].items()
    ]
    title = f"evaluated at step {forgetting['step']:,}"
    yield from _table([title, "nats/token", "bits/byte", "since step 0", "state"], rows)
    if forgetting["verdict"]:
        yield forgetting["verdict"]
    if forgetting["actions"]:
        yield "\n".join(f"guard: {describe_action(action)}" for action in forgetting["actions"])
    history, names = forgetting["history"], list(forgetting["sets"])
    if len(history) > 1:
        # At most HISTORY_ROWS, evenly spaced, the first and the last among them.
        last, count = len(history) - 1, min(len(history), HISTORY_ROWS)
        shown = [history[round(row * last / (count - 1))] for row in range(count)]
        rows = [[f"{e['step']:,}", *(loss_and_change(e["sets"].get(name)) for name in names)] for e in shown]
        yield from _table(["step", *(f"{name} (since step 0)" for name in names)], rows)


def _weights(found: dict) -> Iterator[Block]:
    states: dict[str, list[str]] = {}
    for name, tensor in found["tensors"].items():
        states.setdefault(tensor["state"], []).append(name)
    yield ""
    yield _line("tensors", ", ".join(f"{len(names)} {state}" for state, names in states.items()))
    for state in ("other shape", "only in A", "only in B"):
        if names := states.get(state):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield _line(state, ", ".join(names[:3]) + more)
    for title, groups in (("part", found["parts"]), ("layer", found["layers"])):
        if groups:
            groups = groups | {"all": found["total"]} if title == "part" else groups
            rows = [
                [name, group["tensors"], group["identical"], _figure(group["relative_change"], ".3g") or "A is zero"]
                for name, group in groups.items()
            ]
            yield from _table([title, "tensors", "identical", "||B - A|| / ||A||"], rows)
    changed = [(tensor["relative_change"], name) for name, tensor in found["tensors"].items()
               if tensor.get("relative_change")]  # fmt: skip
    if changed:
        rows = [[name, f"{change:.3g}"] for change, name in sorted(changed, reverse=True)[:TENSORS]]
        yield from _table(["most changed", "||B - A|| / ||A||"], rows)


def _files(report: dict) -> Iterator[Block]:
    total = sum(file["bytes"] for file in report["files"])
    rows = [[file["name"], _size(file["bytes"])] for file in report["files"]]
    yield from _table(["file", "size"], [*rows, ["all", _size(total)]])
    for problem in report["problems"]:
        yield f"PROBLEM: {problem}"


def _table(columns: list[str], rows: list[list]) -> Iterator[Block]:
    yield ""
    yield columns, rows


def _pairs(title: str, values: dict) -> Iterator[str]:
    width = max(map(len, values), default=0) + 2
    yield from ("", title)
    for name, value in values.items():
        yield f"  {name:<{width}}{_plain(value)}"


def _line(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def loss_and_change(reading: dict | None) -> str:
    """A measurement of an evaluation set in a table: `2.8930 (+0.0412)`; empty without one."""
    return f"{reading['loss']:.4f} ({reading['delta']:+.4f})" if reading else ""


def _times(seen: dict) -> str:
    """Coverage, of which a streamed source has an estimate at best."""
    if seen["coverage"] is None:
        return "unknown"
    return f"{'about ' if seen.get('estimated') else ''}{seen['coverage']:.2f}x"


def _loss_cells(loss: list, delta: list) -> list[str]:
    difference = "" if None in loss else f"{loss[1] - loss[0]:+.4f}"
    pairs = zip(loss, delta, strict=True)
    return [*(cell for a, b in pairs for cell in (_figure(a, ".4f"), _figure(b, "+.4f"))), difference]


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: object) -> str:
    text = "-" if value is None else _plain(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _size(count: float) -> str:
    """Bytes in powers of 1,000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1_000 and len(units) > 1:
        count /= 1_000
        units.pop(0)
    return f"{count:,.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"
