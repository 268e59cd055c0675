"""The page tells what the files say, for runs of every kind, needs nothing else, and shows no text as markup."""

import base64
import hashlib
import json
import re
import shutil
from configparser import ConfigParser
from html import unescape
from pathlib import Path

import pytest
from transformers import TrainerCallback

import mypt
from mypt.errors import CheckpointError, Diverged
from mypt.preparation.prepare import prepare_dataset
from mypt.recipe import parse_recipe
from mypt.report.callback import ReportCallback
from mypt.report.content import read_content
from mypt.report.page import page
from mypt.report.write import write_report
from mypt.training.run import train
from tests.report.test_charts import Tags
from tests.training.test_safety import run as run_poisoned

EVIL = "<img src=x onerror=alert(1)>"


def html_of(run: Path) -> str:
    return page(read_content(run), None, "none were asked for")


def words(html: str) -> str:
    """The text of a page, without its style and scripts."""
    html = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def verdict(html: str) -> str:
    return words(re.search(r'<div class="verdict.*?</div>', html, re.DOTALL)[0])


def tone(html: str) -> str:
    return re.search(r'<div class="verdict (\w+)"', html)[1]


def curve(html: str, chart: str, name: str) -> dict:
    figure = re.search(rf'<figure class="chart" id="{chart}">.*?</figure>', html, re.DOTALL)[0]
    content = json.loads(re.search(r'<script type="application/json">(.*?)</script>', figure, re.DOTALL)[1])
    return next(one for one in content["curves"] if one["name"].startswith(name))


def entries(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_curves_are_the_logged_numbers(whole_run):
    html = html_of(whole_run)
    for chart, name, key in (
        ("loss", "training", "loss"),
        ("loss", "domain", "eval_domain_loss"),
        ("loss", "general", "eval_general_loss"),
        ("rate", "Learning rate", "learning_rate"),
        ("speed", "Throughput", "throughput/tokens_per_second"),
    ):
        logged = [(entry["step"], entry[key]) for entry in entries(whole_run) if key in entry]
        shown = curve(html, chart, name)
        assert shown["x"] == [step for step, _ in logged] and len(logged) > 3
        assert shown["y"] == pytest.approx([value for _, value in logged], rel=1e-5)
    history = json.loads((whole_run / "forgetting.json").read_text())["history"]
    shown = curve(html, "change", "general")
    assert shown["y"] == pytest.approx([entry["sets"]["general"]["delta"] for entry in history], abs=1e-5)
    assert shown["error"] == pytest.approx([2 * e["sets"]["general"]["delta_error"] for e in history], rel=1e-3)


def test_tables_hold_the_numbers_of_the_files(whole_run):
    text = words(html_of(whole_run))
    ledger = json.loads((whole_run / "coverage.json").read_text())
    for source, seen in zip(ledger["sources"], ledger["seen"], strict=True):
        assert f"{source['tokens']:,}" in text and f"{seen['tokens']:,}" in text and source["fingerprint"] in text
    report = json.loads((whole_run / "forgetting.json").read_text())
    for reading in report["history"][-1]["sets"].values():
        assert f"{reading['loss']:.4f}" in text and f"{reading['delta']:+.4f}" in text
    assert report["verdict"] in text and "tolerance 0.05" in text
    environment = json.loads((whole_run / "environment.json").read_text())
    assert environment["packages"]["torch"] in text and environment["machine"]["model"] in text
    assert "Completed" in verdict(html_of(whole_run)) and "12 of 12" in text
    assert "mypt train run/recipe.yaml" in text and "training.learning_rate" in text


def test_a_page_needs_nothing_else(whole_run):
    html = html_of(whole_run)
    for tag, attributes in Tags(html).found:
        assert tag not in ("img", "iframe", "object", "embed", "base", "audio", "video", "form")
        assert attributes.get("src") is None
        assert attributes.get("href", "#").startswith("#") or attributes["href"] == "data:,"
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for t, a in Tags(html).found if a.get("http-equiv") == "Content-Security-Policy")
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_its_style_and_script_are_installed_with_the_package():
    root, setup = Path(mypt.__file__).parent, ConfigParser()
    setup.read(root.parent / "setup.cfg")
    for path in root.rglob("*.[!p]*"):
        if "__pycache__" not in path.parts:
            package = ".".join(path.relative_to(root.parent).parts[:-1])
            patterns = setup["options.package_data"][package].split(", ")
            assert any(path.match(pattern) for pattern in patterns), path


def test_the_same_files_give_the_same_page_which_names_no_place(whole_run, whole_copy, tmp_path):
    html = html_of(whole_run)
    assert html_of(whole_copy) == html
    moved = shutil.move(whole_copy, tmp_path / "elsewhere" / "run")
    assert html_of(Path(moved)) == html
    assert str(tmp_path.parents[1]) not in html and str(whole_run.parents[1]) not in html


def test_what_could_not_be_read_is_named_without_its_place(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "home" / "ann" / "run")
    (run / "samples.json").unlink(missing_ok=True)
    (run / "tokenizer.json").unlink()
    html = write_report(run, samples=2).read_text()
    assert "None: the tokenizer in run cannot be read" in words(html) and "home/ann" not in html
    (run / "model.safetensors").write_bytes(b"cut")
    html = write_report(run, samples=2).read_text()
    assert "cannot be described: run/model.safetensors" in words(html) and "home/ann" not in html


def test_text_of_a_run_is_no_markup(whole_copy):
    """In the names of sets, sources and settings, messages, the log, the recipe and the samples."""
    for file in ("coverage.json", "forgetting.json", "result.json", "metrics.jsonl", "environment.json", "recipe.yaml"):
        path = whole_copy / file
        text = path.read_text().replace("general", EVIL)
        path.write_text(text.replace("trained to step", EVIL).replace("modern-nano", EVIL))
    samples = {"temperature": 0.8, "top_p": 0.95, "samples": [
        {"set": EVIL, "prompt": f"</pre>{EVIL}", "text": "</script><script>alert(1)</script>", "original": "a & b"}
    ]}  # fmt: skip
    html = page(read_content(whole_copy), samples)
    found = Tags(html).found
    assert not any(tag == "img" or any(key.startswith("on") for key in a) for tag, a in found)
    assert html.count("<script>") == 1
    assert EVIL in words(html) and "</script><script>alert(1)</script>" in words(html) and "a & b" in words(html)


def test_secrets_are_not_shown(whole_copy):
    path, url = whole_copy / "recipe.yaml", "https://ann:s3cret@example.org/a.txt?sig=abcdef"
    result = json.loads((whole_copy / "result.json").read_text())
    ended = {"state": "failed", "reason": "diverged", "exit_code": 2, "message": f"nan in {url}"}
    (whole_copy / "result.json").write_text(json.dumps(result | ended))
    html = html_of(whole_copy)
    assert (
        "nan in https://***" in html
        and "s3cret" not in html
        and "abcdef" not in html
        and "https://***@example.org/a.txt?***" in words(html)
    )
    recipe = path.read_text()
    for secret, message in ((url, "an address with a password"), ("hf_" + 34 * "a", "access token")):
        path.write_text(recipe.replace("report_to: none", f"report_to: none\n  run_name: {secret}"))
        with pytest.raises(CheckpointError, match=message):
            html_of(whole_copy)


def test_a_run_under_way(whole_run, rewind, tmp_path):
    """As it is after a kill between two saves: no result, a later log, half a line."""
    run = rewind(whole_run, tmp_path / "run", 4)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 6]
    (run / "metrics.jsonl").write_text("".join(kept) + '{"loss": 5.1, "le')
    for name in ("config.json", "lineage.json", "diagnosis.json"):
        (run / name).unlink()
    html = html_of(run)  # result.json is of the call before
    assert "Not finished: step 6 of 12" in verdict(html) and "checkpoint-4" in verdict(html) and tone(html) == "warning"
    assert "1 lines of metrics.jsonl could not be read" in words(html)
    assert curve(html, "loss", "training")["x"][-1] == 6 and "parameters" in words(html)
    shutil.rmtree(run / "checkpoint-4")
    (run / "result.json").unlink()
    assert "nothing yet" in verdict(html_of(run))
    (run / "metrics.jsonl").write_text("")
    assert "Nothing was logged yet" in words(html_of(run))


def test_a_report_is_written_while_a_run_trains_and_never_ends_it(recipe_for, monkeypatch, capsys):
    monkeypatch.setattr("mypt.report.callback.PAUSE", 0)
    monkeypatch.setattr("mypt.report.callback.SHARE", 0)
    path, seen = Path(recipe_for()["training"]["output_dir"]) / "report.html", []

    class Reader(TrainerCallback):
        """Puts a folder in the way of the report of step 8."""

        def on_save(self, args, state, control, **kwargs):
            if path.is_dir():
                path.rmdir()
                return
            seen.append(verdict(path.read_text()))
            path.unlink()
            if state.global_step == 4:
                path.mkdir()

    train(parse_recipe(recipe_for()), [ReportCallback(), Reader()])
    assert "Not finished: step 4 of 12" in seen[0] and "checkpoint-4" in seen[0] and len(seen) == 2
    assert capsys.readouterr().err.count("no report.html: ") == 1


def test_a_run_that_diverged(recipe_for):
    content = recipe_for(training={"logging_steps": 1})
    with pytest.raises(Diverged) as error:
        run_poisoned(content, 22)  # of step 6
    html = html_of(Path(content["training"]["output_dir"]))
    assert "Diverged after step 5" in verdict(html) and "became nan in step 6" in verdict(html) and tone(html) == "bad"
    assert "sample 22" in str(error.value) and "sample 22" in verdict(html)
    assert '<path class="mark bad"' in html and "step 6: the training loss became nan" in words(html)


def test_a_nan_that_was_skipped_is_shown(recipe_for):
    content = recipe_for(training={"logging_steps": 1}, safety={"on_nan": "skip"})
    _, run = run_poisoned(content, 22)
    html = html_of(run)
    assert "Completed" in verdict(html) and "step 6: no update: loss nan" in words(html)
    lost = [entry["step"] for entry in entries(run) if "learning_rate" in entry and entry.get("loss") is None]
    shown = curve(html, "loss", "training")
    assert [x for x, y in zip(shown["x"], shown["y"], strict=True) if y is None] == lost or lost == []


def test_nan_and_infinite_numbers_of_the_log_are_crosses(whole_copy):
    """As early versions and other trainers write them: null, or a word that is no JSON."""
    lines = entries(whole_copy)
    numbers = [index for index, entry in enumerate(lines) if "loss" in entry]
    for index, value in zip(numbers, ("NaN", "Infinity", "null"), strict=False):
        lines[index]["loss"] = value
    text = "".join(re.sub(r'"(NaN|Infinity|null)"', r"\1", json.dumps(entry)) + "\n" for entry in lines)
    (whole_copy / "metrics.jsonl").write_text(text)
    html = html_of(whole_copy)
    assert curve(html, "loss", "training")["y"][:3] == [None] * 3 and html.count('class="cross s0"') == 3
    assert "3 logged training losses NaN or infinite" in words(html)


def test_a_run_that_was_resumed_with_other_settings(recipe_for, whole_copy):
    content = recipe_for(training={"max_steps": 16, "learning_rate": 1e-3})
    environment = json.loads((whole_copy / "environment.json").read_text())
    (whole_copy / "environment.json").write_text(json.dumps(environment | {"python": "3.0.0"}))
    run = train(parse_recipe(content), resume=True)
    assert "Python 3.0.0" in words(html_of(run)) and "Resumed at step 12 on:" in words(html_of(run))
    html = html_of(run)
    assert "Completed" in verdict(html) and "16 of 16" in words(html)
    assert "step 12: changed: " in words(html) and "max_steps 12 -> 16" in words(html)
    steps = curve(html, "loss", "training")["x"]
    assert steps == sorted(set(steps)) and steps[-1] == 16


def test_a_run_without_evaluation_sets(recipe_for, corpora, tmp_path):
    text, data = str(corpora / "general.txt"), tmp_path / "data"
    prepare_dataset([text], data, tokenizer="char", val_fraction=0.0, progress=False)
    content = recipe_for()
    content["data"] = {"train": str(data), "block_size": 32}
    content["training"] |= {"eval_steps": None, "max_steps": 4}
    content.pop("forgetting")
    html = html_of(train(parse_recipe(content)))
    assert "Completed" in verdict(html) and "no evaluation set" in words(html)
    assert "training loss" in words(html) and 'id="change"' not in html


def test_an_adapter_with_a_guard_that_acted_and_an_interpolated_best(recipe_for, adapted_models, corpora):
    pytest.importorskip("peft")
    sources = recipe_for()["data"] | {"train": str(corpora / "domain")}
    forgetting = {"action": "reduce_lr", "tolerance": 0.001, "eval_windows": 64}
    content = recipe_for(data=sources, forgetting=forgetting, lora={"r": 4})
    content["model"] = {"init_from": str(adapted_models / "base")}
    content["training"] |= {"learning_rate": 2e-2}
    run = train(parse_recipe(content))
    html, text = html_of(run), words(html_of(run))
    assert "an adapter on base" in text and "LORA adapter" in text
    assert "reduce_lr (general" in text and "What the guard did" in text and '<path class="mark event"' in html
    assert "is interpolated" in verdict(html) and 'id="interpolation"' in html
    alpha = json.loads((run / "best" / "interpolation.json").read_text())["alpha"]
    assert f"The model in best/ is {alpha:g} of the way" in text and tone(html) == "warning"


def test_a_curriculum_and_an_evaluation(recipe_for, corpora):
    from mypt.cli.main import main

    content = recipe_for(data={"curriculum": {"start_length": 8, "steps": 8}})
    run = train(parse_recipe(content))
    data = f"general={corpora / 'general'}"
    assert main(["evaluate", str(run), "--data", data, "--out", str(run / "evaluation.json")]) == 0
    text = words(html_of(run))
    assert "step 0: sequences of 8 tokens" in text and "step 4: sequences of 16 tokens" in text
    assert "step 8: sequences of 32 tokens" in text
    [entry] = json.loads((run / "evaluation.json").read_text())["results"]
    assert f"{entry['loss']:.4f}" in text and f"{entry['bits_per_byte']:.4f}" in text


def test_a_run_of_a_stock_trainer_with_the_callbacks(whole_copy):
    """It has their files and its checkpoints, and no recipe."""
    for name in ("recipe.yaml", "environment.json", "result.json", "diagnosis.json"):
        (whole_copy / name).unlink()
    html = html_of(whole_copy)
    assert tone(html) == "plain" and "Trained to step 12 of 12" in verdict(html)
    assert "not recorded" in verdict(html) and "tolerance" in words(html) and "kept: " in verdict(html)
    (whole_copy / "metrics.jsonl").unlink()
    assert curve(html_of(whole_copy), "loss", "training") == curve(html, "loss", "training"), "from trainer_state.json"


def test_what_is_no_run_is_refused(whole_run, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "nothing", "there is no folder"),
        (tmp_path / "empty", "is no run folder"),
        (whole_run / "best", f"mypt report {whole_run}"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            write_report(folder, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


ENDINGS = [
    ("completed", "infeasible", 1, "bad", "no saved step kept every guarded set"),
    ("completed", "upload", 1, "warning", "Completed, but not uploaded"),
    ("stopped", "forgetting", 0, "warning", "Stopped by the forgetting guard at step 12"),
    ("stopped", "early_stopping", 0, "warning", "Stopped early at step 12"),
    ("interrupted", "SIGTERM", 143, "warning", "Interrupted by SIGTERM at step 12 of 12"),
    ("failed", "error", 1, "bad", "Failed after step 12"),
    ("failed", "diverged", 2, "bad", "Diverged after step 12"),
    ("another", "one", 3, "warning", "another: one"),
]


@pytest.mark.parametrize(("state", "reason", "code", "color", "title"), ENDINGS)
def test_how_a_run_ended_is_said_in_words_and_color(whole_copy, state, reason, code, color, title):
    result = json.loads((whole_copy / "result.json").read_text())
    ended = {"state": state, "reason": reason, "exit_code": code, "message": "what it printed last"}
    (whole_copy / "result.json").write_text(json.dumps(result | ended))
    html = html_of(whole_copy)
    assert tone(html) == color and title in verdict(html)
    assert ("what it printed last" in verdict(html)) == (code > 0)
