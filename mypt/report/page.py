"""Lay out the page of a report as HTML that needs nothing else. Every text is escaped where it enters the page."""

from __future__ import annotations

import base64
import hashlib
import shlex
import statistics
from collections.abc import Iterable
from html import escape
from pathlib import Path

from mypt.checkpoints.evaluations import DEFINITIONS
from mypt.checkpoints.lineage import describe_runs
from mypt.errors import MyPTError
from mypt.evaluation.forgetting import TOLERANCE
from mypt.inspection.describe import loss_and_change
from mypt.inspection.reproduce import reproduce
from mypt.inspection.training_history import describe_action
from mypt.recipe import RESOLVED_NAME
from mypt.report.charts import is_finite
from mypt.report.content import RunContent, names_for_places
from mypt.report.curves import draw_curves, evaluation_curves, points_of
from mypt.report.html import block, details, list_of, pairs_of, table_of, text_of
from mypt.report.samples import Samples
from mypt.storage import run_tables
from mypt.storage.run_files import GENERATOR
from mypt.storage.run_tables import Code, Table, seen_by_source
from mypt.storage.upload_files import without_places

_SIGNS = {"good": "\u2713", "plain": "", "warning": "!", "bad": "\u00d7"}
_HISTORY_ROWS = 200  # of the table of all measurements


def page(content: RunContent, samples: Samples | None, no_samples: str = "") -> str:
    """The whole report; the same files give the same page. no_samples: the reason where there are none."""
    script, style = _file("page.js"), _file("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # No request leaves the page, and no script runs in it but this one, whatever a run's texts hold.
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    sections = [
        _section("curves", "Curves", draw_curves(content)),
        _section("forgetting", "Evaluation and forgetting", _forgetting(content)),
        _section("coverage", "Coverage", _coverage(content)),
        _section("samples", "Samples", _samples(samples, names_for_places(no_samples, content.run))),
        _section("evaluation", "Measured by mypt evaluate", _evaluation(content)),
        _section("events", "What happened on the way", _events(content)),
        _section("settings", "Hyperparameters", _settings(content)),
        _section("data", "Data", _data(content)),
        _section("environment", "Environment", _environment(content)),
        _section("repeat", "Repeat it", _repeat(content)),
    ]
    name = text_of(content.run.resolve().name)
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, body in sections if body)
    body = "".join(
        f'<section id="{key}"><h2>{escape(title)}</h2>{body}</section>' for key, title, body in sections if body
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{name}: report</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f'<header><h1>{name}</h1><p class="soft">{_subtitle(content)}</p>{_verdict(content)}{_tiles(content)}'
        f"<nav>{links}</nav></header>\n{body}\n"
        "<footer>Made by mypt report from the files of the run. This page loads nothing from anywhere.</footer>\n"
        f"</main>\n<script>{script}</script></body></html>\n"
    )


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _section(key: str, title: str, parts: Iterable[str]) -> tuple[str, str, str]:
    return key, title, "".join(parts)


# ---- the head ----


def _subtitle(content: RunContent) -> str:
    info, words = content.info, []
    preset = info.recipe.get("model", {}).get("preset")
    if info.recipe and not info.base:
        words.append(f"{preset}, trained from scratch" if preset else "trained from scratch")
    elif info.base:
        words.append(f"{'an adapter on' if info.recipe.get('lora') else 'trained from'} {info.base}")
    if parameters := content.model.get("parameters"):
        words.append(f"{parameters.partition(' ')[0]} parameters")
    return text_of(", ".join(words))


def _verdict(content: RunContent) -> str:
    verdict = content.verdict()
    lines = "".join(f"<p>{text_of(line)}</p>" for line in verdict["lines"])
    title = f"{_SIGNS[verdict['tone']]} {verdict['title']}".lstrip()
    return f'<div class="verdict {verdict["tone"]}"><b>{text_of(title)}</b>{lines}</div>'


def _tiles(content: RunContent) -> str:
    info, tiles = content.info, []
    if content.step is not None:
        tiles.append(("optimizer steps", f"{content.step:,}", f"of {content.max_steps:,}" if content.max_steps else ""))
    target, guard = info.forgetting.get("target"), info.forgetting.get("guard", [])
    if info.last and target in info.last["sets"] and target in info.first["sets"]:
        before, now = (entry["sets"][target]["loss"] for entry in (info.first, info.last))
        tiles.append((f"loss of {target}", f"{now:.4f}", f"{before:.4f} before, nats per token"))
    kept = {name: info.last["sets"][name]["delta"] for name in guard if info.last and name in info.last["sets"]}
    if kept:
        worst = max(kept, key=lambda name: kept[name] if kept[name] == kept[name] else float("inf"))
        tiles.append(
            (
                f"change of {worst}",
                f"{kept[worst]:+.4f}",
                f"tolerance {info.forgetting.get('tolerance', TOLERANCE):g} nats",
            )
        )
    losses = [loss for _, loss in points_of(content.log, "loss")]
    if not info.last and losses:
        first, last = (f"{loss:.4f}" if is_finite(loss) else "NaN or infinite" for loss in (losses[0], losses[-1]))
        tiles.append(("training loss", last, f"{first} at first, nats per token"))
    if seen := sum(entry.get("tokens", 0) for _, entry in seen_by_source(info)):
        tiles.append(("tokens seen", f"{seen:,}", ""))
    speeds = [speed for _, speed in points_of(content.log, "throughput/tokens_per_second") if speed]
    if speeds:
        tiles.append(("tokens per second", f"{statistics.median(speeds):,.0f}", "median of the log"))
    if content.result:
        tiles.append(("time", _duration(content.result.seconds), "of the last call"))
    cells = (
        f'<div class="tile"><dt>{text_of(name)}</dt><dd>{text_of(value)}<small>{text_of(more)}</small></dd></div>'
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>' if tiles else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


# ---- what was measured ----


def _forgetting(content: RunContent) -> Iterable[str]:
    info = content.info
    if not content.history:
        if not evaluation_curves(content):
            yield "<p>The run has no evaluation set: what it learned or forgot was not measured.</p>"
        return
    rules = [f"target {info.forgetting['target']}"] if info.forgetting.get("target") else []
    rules += [f"guarded {', '.join(guard)}"] if (guard := info.forgetting.get("guard")) else []
    rules += [f"{key} {info.forgetting[key]}" for key in ("tolerance", "action") if key in info.forgetting]
    yield f'<p class="soft">{text_of("; ".join(rules))}. Losses in nats per token.</p>' if rules else ""
    table = run_tables.forgetting_table(info)
    yield table_of(table) if table else "<p>Measured once so far.</p>"
    actions = [describe_action(action) for action in info.forgetting.get("actions", [])]
    yield "<p>What the guard did:</p>" + list_of(actions) if actions else ""
    if between := content.interpolation:
        where = "The model" if info.interpolation else "The model in best/"
        words = f"{where} is {between['alpha']:g} of the way from {between['base']} to {between['adapted']}."
        yield f"<p>{text_of(words)}</p>"
    names = list(content.history[-1]["sets"])
    rows = [
        (f"{entry['step']:,}", *(loss_and_change(entry["sets"].get(name)) for name in names))
        for entry in content.history[-_HISTORY_ROWS:]
    ]
    yield details(f"All {len(content.history)} measurements", table_of(Table(("step", *names), rows)))


def _coverage(content: RunContent) -> Iterable[str]:
    info = content.info
    table = run_tables.data_table(info)
    if not table.rows:
        return
    shown = Table(table.columns[:-1], [row[:-1] for row in table.rows])  # fingerprints: in Data
    yield table_of(shown)
    if lineage := run_tables.lineage_table(info):
        yield f"<p>Over all runs, {text_of(describe_runs(info.lineage))}:</p>{table_of(lineage)}"
        if base := info.lineage["base"]:
            yield f'<p class="soft">{text_of(f"What {base} was trained on is not known.")}</p>'


def _samples(samples: Samples | None, reason: str) -> Iterable[str]:
    if not samples or not samples["samples"]:
        yield f'<p class="soft">None: {text_of(reason)}.</p>' if reason else ""
        return
    how = f"temperature {samples['temperature']:g}, top-p {samples['top_p']:g}"
    yield f'<p class="soft">{text_of(f"Beginnings of held-out texts, continued by the model ({how}).")}</p>'
    yield '<div class="samples">'
    for sample in samples["samples"]:
        yield (
            f'<div class="sample"><h3>{text_of(sample["set"])}</h3><h4>beginning</h4>{block(sample["prompt"])}'
            f"<h4>the model</h4>{block(sample['text'])}<h4>the original</h4>{block(sample['original'])}</div>"
        )
    yield "</div>"


def _evaluation(content: RunContent) -> Iterable[str]:
    entries = content.info.evaluations
    losses = run_tables.losses_table(entries)
    yield table_of(losses)
    for kind in DEFINITIONS if losses.rows else ():
        if any(entry.get("definition") == kind for entry in entries):
            yield f'<p class="soft">{text_of(f"{kind}: {DEFINITIONS[kind]}.")}</p>'
    yield table_of(run_tables.metrics_table(entries))


def _events(content: RunContent) -> Iterable[str]:
    yield list_of([f"step {mark.x:,}: {mark.text}" for mark in content.events()])


# ---- what it was made of ----


def _settings(content: RunContent) -> Iterable[str]:
    changed = set(content.changed)
    groups = {True: [], False: []}
    for name, value in content.settings.items():
        groups[name in changed].append((name, _value(value)))
    yield table_of(Table(("model", ""), list(content.model.items())))
    yield f"<h3>Not the default</h3>{pairs_of(groups[True])}" if groups[True] else ""
    yield details(f"{len(groups[False])} defaults", pairs_of(groups[False]))
    yield details("recipe.yaml", block(content.info.recipe_text.strip())) if content.info.recipe_text else ""


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data(content: RunContent) -> Iterable[str]:
    rows = [
        (dataset["name"], ", ".join(dataset["uses"]), split, f"{part['tokens']:,}", Code(part["fingerprint"]))
        for dataset in content.info.environment.get("datasets", [])
        for split, part in dataset["splits"].items()
    ]
    if rows:
        yield table_of(Table(("dataset", "used for", "split", "tokens", "fingerprint"), rows))
        texts = dict.fromkeys(
            (text["name"], text["xxh3_128"] or "")
            for dataset in content.info.environment["datasets"]
            for text in dataset["texts"]
        )
        yield details("Texts", table_of(Table(("text", "xxh3-128"), [(name, Code(sum_)) for name, sum_ in texts])))
        return
    table = run_tables.data_table(content.info)
    yield table_of(Table(("data", "tokens", "fingerprint"), [(row[0], row[1], row[-1]) for row in table.rows]))


def _environment(content: RunContent) -> Iterable[str]:
    environment = content.info.environment
    for session in [environment, *environment.get("resumed", [])] if environment else []:
        if "step" in session:
            yield f"<p>Resumed at step {session['step']:,} on:</p>"
        yield table_of(Table(("", ""), list(_session_rows(session))))


def _session_rows(session: dict) -> Iterable[tuple[str, str]]:
    machine, packages = session.get("machine", {}), session.get("packages", {})
    yield "versions", ", ".join([f"Python {session.get('python')}", *(f"{name} {v}" for name, v in packages.items())])
    if machine.get("model"):
        memory = f", {machine['memory'] / 2**30:.0f} GiB" if machine.get("memory") else ""
        yield "device", f"{machine.get('device')}: {machine['model']}{memory}"
    if machine:
        yield "system", f"{machine.get('platform')}, {machine.get('cpus')} CPUs"
    if machine.get("processes", 1) > 1:
        yield "processes", f"{machine['processes']}"
    commits = session.get("git", {})
    for name, commit in commits.items():
        if commit and (name == "mypt" or commit != commits.get("mypt")):
            dirty = ", with changes that are not committed" if commit["dirty"] else ""
            yield f"git, {'mypt' if name == 'mypt' else 'working folder'}", f"{commit['commit']}{dirty}"


def _repeat(content: RunContent) -> Iterable[str]:
    if not content.info.environment or not content.info.recipe:
        return
    try:
        lines = [_without_places(line) for line in reproduce(content.run, compare=False)["commands"]]
    except MyPTError as error:  # the files of the run that it started from are damaged
        yield f"<p>{text_of(names_for_places(str(error), content.run))}</p>"
        return
    yield block("\n".join(lines))
    yield (
        '<p class="soft">With the run folder at hand, <code>mypt inspect RUN --reproduce</code> prints these commands '
        "and what differs on your machine.</p>"
    )


def _without_places(line: str) -> str:
    words = []
    for word in shlex.split(line):
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        path = Path(value)
        is_recipe = path.is_absolute() and path.name == RESOLVED_NAME
        words.append(f"{name}{equals}{f'{path.parent.name}/{path.name}' if is_recipe else without_places(value)}")
    return shlex.join(words)
