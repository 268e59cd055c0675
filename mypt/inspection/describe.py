"""Reports of checkpoints and of their differences as lines and tables."""

from collections.abc import Iterator

from mypt.inspection.training_history import settings_of

Block = str | tuple[list[str], list[list[str]]]  # a line, or a table: columns and rows
HISTORY_ROWS = 12  # of the forgetting history; a report as JSON has all of it


def describe(report: dict) -> Iterator[Block]:
    """A report of `inspect_checkpoint` or `inspect_original`, the model first, then how it was trained."""
    yield f"{report['path']}: {report['kind']}"
    if report.get("model_path", report["path"]) != report["path"]:
        yield line("model", f"of {report['model_path']}; the run has not finished")
    yield from _architecture(report)
    if origin := report.get("converted_from"):
        yield line("converted", f"from {origin['path']}, {origin['form']} of {origin['from']}, step {origin['step']}")
        if training := origin.get("training_state", {}).get("training_config"):
            yield line("its settings", plain(training))
    if progress := report["progress"]:
        yield from _progress(progress)
    if parameters := report["parameters"]:
        yield ""
        yield ["parameters", "number"], [[part, f"{count:,}"] for part, count in parameters.items()]
    if coverage := report.get("coverage"):
        rows = [[s["name"], f"{s['samples']:,}", f"{s['tokens']:,}", times(s)] for s in coverage["seen"]]
        yield ""
        yield ["training data", "samples seen", "tokens seen", "coverage"], rows
    if report.get("forgetting"):
        yield from _forgetting(report["forgetting"])
    if report.get("diagnosis"):
        yield ""
        yield from report["diagnosis"]["lines"]
    if report.get("recipe"):
        settings, changed = settings_of(report["recipe"]), report["changed_settings"]
        yield from pairs("settings that are not the defaults, from recipe.yaml", {n: settings[n] for n in changed})
        yield from pairs("defaults", {name: value for name, value in settings.items() if name not in changed})
    if report.get("settings"):
        yield from pairs("settings, from training_state.json", report["settings"])
    if report.get("checkpoints"):
        yield ""
        yield ["checkpoint", "state"], [[c["name"], c["missing"] or "complete"] for c in report["checkpoints"]]
    yield ""
    yield from files(report)


def files(report: dict) -> Iterator[Block]:
    total = sum(file["bytes"] for file in report["files"])
    rows = [[file["name"], size(file["bytes"])] for file in report["files"]]
    yield ["file", "size"], [*rows, ["all", size(total)]]
    for problem in report["problems"]:
        yield f"PROBLEM: {problem}"


def _architecture(report: dict) -> Iterator[Block]:
    model, weights, adapter = report["model"], report["weights"], report.get("adapter")
    if adapter:
        modules = adapter["target_modules"]
        if isinstance(modules, list):  # peft may name each layer's
            modules = sorted({name.rpartition(".")[2] for name in modules})
        yield line("adapter", f"{adapter['peft_type']} of {adapter['base_model_name_or_path']}")
        yield line("rank", f"{adapter['r']}, alpha {adapter['lora_alpha']}, in {adapter['layers']} modules")
        yield line("targets", ", ".join(modules) if isinstance(modules, list) else str(modules))
    if report.get("era"):
        yield line("architecture", f"the original MyPT's, {report['era']} attention, {report['form']}")
    elif model:
        yield line("architecture", f"{model['architecture']} ({model['model_type']})")
    if model:
        heads = f"{model['heads']} heads"
        if model.get("kv_heads") not in (None, model["heads"]):
            heads += f" ({model['kv_heads']} key-value)"
        yield line("shape", f"{model['layers']} layers x {heads} x {model['width']}, context {model['context']} tokens")
    if report.get("era") and model["norm"]:
        tied = "tied" if model["tied"] else "untied"
        yield line("switches", f"{model['positions']} positions, {model['norm']}, {model['activation']}, {tied} head")
    if weights:
        dtypes = ", ".join(weights["dtypes"])
        yield line("weights", f"{weights['parameters']:,} parameters in {dtypes}, {size(weights['bytes'])}")
    if tokenizer := report["tokenizer"]:
        wider = model and model["vocabulary"] not in (None, tokenizer["ids"])
        padded = f" (padded to {model['vocabulary']:,})" if wider else ""
        count = f"{tokenizer['ids']:,} ids" if tokenizer["ids"] else "size unknown"
        yield line("tokenizer", f"{tokenizer['type']}, {count}{padded}, EOS {tokenizer['eos_token']}")


def _progress(progress: dict) -> Iterator[Block]:
    if progress["step"] is None:
        return
    of = f" of {progress['max_steps']:,}" if progress["max_steps"] is not None else ""
    yield line("progress", f"step {progress['step']:,}{of}")
    if progress.get("loss") is not None:
        rate = f", learning rate {progress['learning_rate']:.2e}" if progress["learning_rate"] is not None else ""
        yield line("training", f"loss {progress['loss']:.4f} nats/token at step {progress['logged_at_step']:,}{rate}")
    if progress.get("best_checkpoint") and progress.get("best_metric") is not None:
        # eval_constrained_loss: the target's loss, or 1,000 + the worst excess over the forgetting tolerance
        metric = progress["best_metric"]
        excess = f"a guarded set is {metric - 1_000:.4f} nats/token beyond its tolerance"
        yield line("best", f"{progress['best_checkpoint']}, " + (excess if metric >= 1_000 else f"loss {metric:.4f}"))


def _forgetting(forgetting: dict) -> Iterator[Block]:
    rows = [
        [
            name,
            f"{reading['loss']:.4f}",
            f"{reading['bits_per_byte']:.4f}" if "bits_per_byte" in reading else "",
            f"{reading['delta']:+.4f}" + (f" +/- {reading['delta_error']:.4f}" if "delta_error" in reading else ""),
            reading["state"],
        ]
        for name, reading in forgetting["sets"].items()
    ]
    yield ""
    yield [f"evaluated at step {forgetting['step']:,}", "nats/token", "bits/byte", "since step 0", "state"], rows
    if forgetting["verdict"]:
        yield forgetting["verdict"]
    history, names = forgetting["history"], list(forgetting["sets"])
    if len(history) > 1:
        yield ""
        yield (
            ["step", *(f"{name} (since step 0)" for name in names)],
            [
                [f"{entry['step']:,}", *(_reading(entry["sets"].get(name)) for name in names)]
                for entry in _thinned(history)
            ],
        )


def _reading(reading: dict | None) -> str:
    return f"{reading['loss']:.4f} ({reading['delta']:+.4f})" if reading else ""


def _thinned(history: list) -> list:
    """At most HISTORY_ROWS entries, evenly spaced, the first and the last among them."""
    last = len(history) - 1
    if last < HISTORY_ROWS:
        return history
    return [history[round(row * last / (HISTORY_ROWS - 1))] for row in range(HISTORY_ROWS)]


def times(seen: dict) -> str:
    """Coverage, of which a streamed source has an estimate at best."""
    if seen["coverage"] is None:
        return "unknown"
    return f"{'about ' if seen.get('estimated') else ''}{seen['coverage']:.2f}x"


def line(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def pairs(title: str, values: dict) -> Iterator[str]:
    width = max(map(len, values), default=0) + 2
    yield ""
    yield title
    for name, value in values.items():
        yield f"  {name:<{width}}{plain(value)}"


def plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def size(count: float) -> str:
    """Bytes in powers of 1,000."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1_000 and len(units) > 1:
        count /= 1_000
        units.pop(0)
    return f"{count:,.0f} B" if units[0] == "B" else f"{count:.1f} {units[0]}"


TENSORS = 12  # named in a table; a report as JSON names all
WIDTH = 60  # of a value in a table, in characters


def describe_diff(report: dict) -> Iterator[Block]:
    """A report of `diff_checkpoints`: what differs, and that the rest does not."""
    yield line("A", report["a"])
    yield line("B", report["b"])
    yield line("tokenizer", report["tokenizer"] or "not compared: A or B holds no tokenizer.json of today's")
    first, second = report["parameters"]
    yield line("parameters", f"{_cell(first)} both" if first == second else f"{_cell(first)} and {_cell(second)}")
    steps = [(progress or {}).get("step") for progress in report["progress"]]
    if steps != [None, None]:
        yield line("step", " and ".join(map(_cell, steps)))
    for title, key in (("field", "config"), ("setting", "settings")):
        if report[key]:
            yield ""
            yield [title, "A", "B"], [[name, *map(_cell, values)] for name, values in report[key].items()]
        else:
            none_told = "not compared: A or B tells none"
            yield line(f"{title}s", none_told if report[key] is None else "no difference")
    if report["losses"]:
        yield ""
        columns = ["nats/token of", "A", "since step 0", "B", "since step 0", "B - A"]
        yield columns, [[name, *_loss_cells(**found)] for name, found in report["losses"].items()]
    if report["weights"]:
        yield from _weights(report["weights"])


def describe_fields(first: str, second: str, fields: dict[str, list]) -> Iterator[Block]:
    """Two datasets side by side."""
    yield line("A", first)
    yield line("B", second)
    if fields:
        yield ""
        yield ["field", "A", "B"], [[name, *map(_cell, values)] for name, values in fields.items()]
    else:
        yield "no difference"


def _weights(found: dict) -> Iterator[Block]:
    states: dict[str, list[str]] = {}
    for name, tensor in found["tensors"].items():
        states.setdefault(tensor["state"], []).append(name)
    yield ""
    yield line("tensors", ", ".join(f"{len(names)} {state}" for state, names in states.items()))
    for state in ("other shape", "only in A", "only in B"):
        if names := states.get(state):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield line(state, ", ".join(names[:3]) + more)
    for title, key in (("part", "parts"), ("layer", "layers")):
        if found[key]:
            rows = [[name, group["tensors"], group["identical"], _ratio(group)] for name, group in found[key].items()]
            if key == "parts":
                total = found["total"]
                rows.append(["all", total["tensors"], total["identical"], _ratio(total)])
            yield ""
            yield [title, "tensors", "identical", "||B - A|| / ||A||"], rows
    changed = [(tensor["relative_change"], name) for name, tensor in found["tensors"].items()
               if tensor.get("relative_change")]  # fmt: skip
    if changed:
        rows = [[name, f"{change:.3g}"] for change, name in sorted(changed, reverse=True)[:TENSORS]]
        yield ""
        yield ["most changed", "||B - A|| / ||A||"], rows


def _loss_cells(loss: list, delta: list) -> list[str]:
    cells = []
    for value, change in zip(loss, delta, strict=True):
        cells += [_figure(value, ".4f"), _figure(change, "+.4f")]
    both = None not in loss
    return [*cells, f"{loss[1] - loss[0]:+.4f}" if both else ""]


def _ratio(group: dict) -> str:
    return _figure(group["relative_change"], ".3g") or "A is zero"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cell(value: object) -> str:
    text = "-" if value is None else plain(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
