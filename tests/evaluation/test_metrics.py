"""BLEU and chrF are those of sacrebleu's own command on the same texts."""

import json
import subprocess
import sys

import pytest

from mypt.checkpoints.load import load_model
from mypt.cli.main import main
from mypt.errors import MyPTError
from mypt.evaluation.metrics import corpus_scores, read_references
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.load import load_tokenizer

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (the metrics extra has it)")


PROMPTS = ["The first", "A second one", "and", "What is", "1 + 1 ="]


@pytest.fixture
def pairs(tmp_path, untrained_models):
    """A file of prompts and references: for every second prompt what `first` writes, else its beginning."""
    model, tokenizer = load_model(untrained_models / "first"), load_tokenizer(untrained_models / "first")
    settings = GenerationSettings(greedy=True, max_new_tokens=12, stop=("\n",))
    texts = [found.text.strip() for found in Engine(model, tokenizer).complete_batch(PROMPTS, settings)]
    references = [text if number % 2 else text[: len(text) // 2] + " other" for number, text in enumerate(texts)]
    records = [{"prompt": one, "reference": other} for one, other in zip(PROMPTS, references, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "pairs.jsonl"


def command(folder, texts: list[str], *references: list[str]) -> dict[str, float]:
    """{name: score} by the `sacrebleu` command."""
    for name, lines in (("texts", texts), *((f"ref{n}", lines) for n, lines in enumerate(references))):
        (folder / name).write_text("".join(line + "\n" for line in lines))
    names = [f"ref{number}" for number in range(len(references))]
    line = [sys.executable, "-m", "sacrebleu", *names, "-i", "texts", "-m", "bleu", "chrf", "-w", "8"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    return {found["name"]: found["score"] for found in json.loads(done.stdout)}


def test_the_command_gives_the_figures_of_sacrebleu(pairs, untrained_models, tmp_path, capsys):
    base, adapted, texts = str(untrained_models / "first"), str(untrained_models / "second"), tmp_path / "texts.jsonl"
    words = ["--references", f"pairs={pairs}", "--max-new-tokens", "12", "--texts", str(texts)]
    assert main(["evaluate", base, adapted, *words, "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    records = [json.loads(line) for line in texts.read_text().splitlines()]
    saved = json.loads((tmp_path / "out.json").read_text())["results"]
    for model in (base, adapted):
        mine = [record for record in records if record["model"] == model]
        assert len(mine) == 5 and all("\n" not in record["text"] for record in mine)
        expected = command(tmp_path, [r["text"] for r in mine], [r["reference"][0] for r in mine])
        found = {entry["metric"]: entry["value"] for entry in saved if entry["model"] == model}
        assert found == pytest.approx(expected, abs=1e-6)
        assert all(f"{value:.4f}" in printed for value in found.values())
        assert (found["chrF2"] > 20) == (model == base), "the references are what it wrote"
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in printed
    changes = {entry["metric"]: entry["delta"] for entry in saved if entry["model"] == adapted}
    values = {(entry["model"], entry["metric"]): entry["value"] for entry in saved}
    assert changes == {name: values[adapted, name] - values[base, name] for name in changes}


def test_several_references(tmp_path):
    texts = ["the cat sat on the mat today", "a dog barked at the tall tree"]
    first, second = (
        ["the cat sat on a mat", "the dog barked at a tree"],
        ["a cat was on the mat today", "a dog barks at trees"],
    )
    found = {name: value for name, value, _ in corpus_scores(texts, [*map(list, zip(first, second, strict=True))])}
    assert found == pytest.approx(command(tmp_path, texts, first, second), abs=1e-6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', r"record 1 has no text or list of texts"),
        ('{"prompt": "a", "reference": []}', r"record 1 has no text or list of texts"),
        ('{"prompt": "a", "reference": [1]}', r"record 1 has no text or list of texts"),
        ('{"reference": "a"}', r'line 1 has no text "prompt"'),
        ("a", "damaged"),
    ],
)
def test_lines_that_are_no_pairs(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(MyPTError, match=message):
        read_references(str(tmp_path / "x.jsonl"))


def test_texts_of_several_lines_where_a_reference_has_them(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "reference": "b\\nc"}\n')
    assert read_references(str(tmp_path / "x.jsonl")).stop == ()


@pytest.mark.parametrize(("package", "option"), [("sacrebleu", "--references"), ("lm_eval", "--tasks")])
def test_a_missing_extra_is_one_line(package, option, tmp_path, untrained_models, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    for module in ("metrics", "tasks"):
        monkeypatch.setattr(f"mypt.evaluation.{module}.find_spec", lambda name: None if name == package else find(name))
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "reference": "b"}\n')
    value = f"x={tmp_path / 'x.jsonl'}" if package == "sacrebleu" else "arc_easy"
    assert main(["evaluate", str(untrained_models / "first"), option, value]) == 2
    assert capsys.readouterr().err.endswith("pip install mypt[metrics]\n")
