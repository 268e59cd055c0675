"""A card says of a model what its folder's files say, in the form that the hub reads."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from mypt.errors import CheckpointError
from mypt.storage.card import card_of, describe_model, model_card
from mypt.terminal import one_line
from mypt.yaml12 import load_yaml


def test_metadata_that_the_hub_reads(finished_run):
    data = ModelCard(model_card(finished_run, "me/first", license="mit")).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "text-generation", "mit")
    assert data.tags == ["mypt"] and data.base_model is None and data.datasets is None
    last = json.loads((finished_run / "forgetting.json").read_text())["history"][-1]
    measured = {result.dataset_type: result.metric_value for result in data.eval_results}
    assert measured == {name: round(reading["loss"], 4) for name, reading in last["sets"].items()}


def rows(card: str, title: str) -> list[list[str]]:
    """The cells of the first table below a heading, its header left out."""
    lines = re.findall(r"^\| (.*) \|$", card.partition(f"## {title}\n")[2].partition("\n## ")[0], re.MULTILINE)
    return [line.split(" | ") for line in lines[2:]]


def test_tables_hold_the_numbers_of_the_files(finished_run):
    card = model_card(finished_run, "me/first")
    ledger = json.loads((finished_run / "coverage.json").read_text())
    for row, source, seen in zip(rows(card, "Training"), ledger["sources"], ledger["seen"], strict=True):
        assert row[0] == source["name"].rpartition("/")[2]
        assert [int(cell.replace(",", "")) for cell in row[1:3]] == [source["tokens"], seen["tokens"]]
        assert row[3:] == [f"{seen['epochs']:.2f}", f"`{source['fingerprint']}`"]
    assert "4 optimizer steps, 256 tokens." in card
    report = json.loads((finished_run / "forgetting.json").read_text())
    first, last = report["history"][0], report["history"][-1]
    for row, (name, reading) in zip(rows(card, "Evaluation and forgetting"), last["sets"].items(), strict=True):
        assert row[0].startswith(name) and row[-1] == reading["state"]
        assert [float(cell) for cell in row[1:3]] == [round(first["sets"][name]["loss"], 4), round(reading["loss"], 4)]
        assert float(row[3].partition(" ")[0]) == pytest.approx(float(row[2]) - float(row[1]), abs=2e-4)
    assert report["verdict"] in card and "![" in card


def test_a_card_names_the_parts_of_the_model(finished_run):
    from mypt.models.modeling_mypt import MyPTForCausalLM

    facts = describe_model(finished_run)
    count = MyPTForCausalLM.from_pretrained(finished_run).num_parameters()
    assert facts["parameters"].startswith(f"{count:,} (embedding ") and "norms" in facts["parameters"]
    assert facts["shape"] == "2 layers, 2 heads (1 for keys and values), width 32"
    assert facts["context"] == "64 tokens" and facts["tokenizer"].startswith("BPE, ")


def test_the_recipe_in_the_card_is_the_one_that_is_sent(finished_run):
    block = re.search(r"```yaml\n(.*?)```", model_card(finished_run, "me/first"), re.DOTALL)[1]
    recipe = load_yaml((finished_run / "recipe.yaml").read_text())
    assert load_yaml(block)["training"] == recipe["training"] | {"output_dir": "run"}
    assert load_yaml(block)["model"] == recipe["model"]


@pytest.mark.parametrize("folder", ["checkpoint-2", "best"])
def test_a_checkpoint_and_the_best_model_tell_of_their_own_step(finished_run, folder):
    state = json.loads((finished_run / "checkpoint-4" / "trainer_state.json").read_text())
    step = 2 if folder == "checkpoint-2" else state["best_global_step"]
    card = model_card(finished_run / folder, "me/first")
    history = json.loads((finished_run / "forgetting.json").read_text())["history"]
    losses = next(entry["sets"] for entry in history if entry["step"] == step)
    assert f"loss at step {step}" in card and f"{step} optimizer steps" in card
    assert [row[2] for row in rows(card, "Evaluation and forgetting")] == [f"{s['loss']:.4f}" for s in losses.values()]
    assert ("256 tokens" in card) == (step == 4), "what was seen is known for the run's last step"


def test_the_same_files_give_the_same_card_and_it_names_no_place(finished_run, run_copy):
    assert model_card(finished_run, "me/first") == model_card(run_copy, "me/first")
    assert str(finished_run.parent) not in model_card(finished_run, "me/first")
    assert 'from_pretrained("me/first", revision="v1")' in model_card(run_copy, "me/first", revision="v1")


def test_a_folder_of_weights_alone_has_a_card_without_what_nobody_knows(run_copy, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (run_copy / name).rename(bare / name)
    card = model_card(bare, "me/bare")
    assert "Nothing was measured" in card and "tokenizer** | none" in card
    assert not re.search("## (Training|Evaluation|Recipe|Environment)", card)
    assert "trained" not in card.partition("## Use")[0]
    assert ModelCard(card).data.eval_results is None


def test_a_readme_of_ones_own_wins_over_the_made_one_and_that_over_a_stub(run_copy):
    readme = run_copy / "README.md"
    readme.write_text("# All my own words")
    assert card_of(run_copy, "me/first") == "# All my own words"
    readme.write_text("")
    assert card_of(run_copy, "me/first") == ""
    readme.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"README\.md: byte 3 is not UTF-8; save it as UTF-8$"):
        card_of(run_copy, "me/first")
    readme.write_text("---\nbase_model: x\n---\n# Model Card for Model ID\n\n[More Information Needed]")
    assert card_of(run_copy, "me/first") == model_card(run_copy, "me/first")


def test_a_base_model_is_linked_if_it_came_from_the_hub(run_copy, logged_in):
    from huggingface_hub import hf_hub_download

    logged_in.models["me/base"] = {"main": {"config.json": b"{}"}}
    recipe = (run_copy / "recipe.yaml").read_text()
    for base, linked in {"me/base": True, "runs/base": False, str(run_copy / "base"): False}.items():
        (run_copy / "recipe.yaml").write_text(recipe.replace("init_from: null", f"init_from: {base}"))
        if linked:
            hf_hub_download(base, "config.json", endpoint=logged_in.url)
        card = model_card(run_copy, "me/first")
        assert ModelCard(card).data.base_model == (base if linked else None)
        assert ("](https://huggingface.co/me/base)" in card) == linked
        assert "trained from" in card and str(run_copy) not in card


def test_data_sets_of_the_hub_are_named(run_copy):
    ledger = (run_copy / "coverage.json").read_text()
    name = json.loads(ledger)["sources"][0]["name"]
    (run_copy / "coverage.json").write_text(ledger.replace(name, f"hf://ann/law:de@{'0' * 40}#train"))
    assert ModelCard(model_card(run_copy, "me/first")).data.datasets == ["ann/law"]


def test_sources_of_one_name_keep_their_own_numbers(run_copy):
    ledger = json.loads((run_copy / "coverage.json").read_text())
    for entries in (ledger["sources"], ledger["seen"]):
        for number, entry in enumerate(entries):
            entry["name"] = f"/data/{number}/text"
    (run_copy / "coverage.json").write_text(json.dumps(ledger))
    table = rows(model_card(run_copy, "me/first"), "Training")
    assert [row[0] for row in table] == ["text", "text"]
    assert [int(row[2]) for row in table] == [entry["tokens"] for entry in ledger["seen"]]


HOSTILE = (
    "a<script>alert(1)</script><img src=x onerror=alert(1)>|b`c`[d](http://e)**f**\n---\nlicense: evil\n# G\n"
    "\x1b]0;t\x07\x9b\u202eh\udce9 ``` www.i.org http://j @k ~~l~~"
)


def test_a_name_stays_a_name(run_copy):
    """Rendered as Markdown the card shows names letter by letter: no markup of theirs, no cell, no field of the head"""
    report, ledger = (json.loads((run_copy / name).read_text()) for name in ("forgetting.json", "coverage.json"))
    for entry in report["history"]:
        entry["sets"] = {HOSTILE: next(iter(entry["sets"].values()))}
    report |= {"verdict": f"healthy: {HOSTILE}", "target": HOSTILE, "guard": []}
    ledger["sources"][0]["name"] = HOSTILE
    for name, content in (("forgetting.json", report), ("coverage.json", ledger)):
        (run_copy / name).write_text(json.dumps(content))
    with (run_copy / "recipe.yaml").open("a") as file:
        file.write("# ```\n# <b>\n")
    card = model_card(run_copy, "me/first")
    card.encode()
    assert not re.search("[\x1b\x07\x9b\u202e]", card)
    data = ModelCard(card).data
    assert data.license is None and [result.dataset_type for result in data.eval_results] == [one_line(HOSTILE)]
    body = card.split("\n---\n", 1)[1]
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body)
    found = Rendered(page)
    own = "h1 h2 p table thead tbody tr th td strong code pre img ul li details summary"
    assert {*found.tags} <= {*own.split()}
    assert found.tags.count("img") == body.count("![") and not re.search("onerror|alert", " ".join(found.attributes))
    assert found.text.count(one_line(HOSTILE)) == 3  # source, the set, the verdict
    assert [len(row) for row in rows(card, "Evaluation and forgetting")] == [6]


def test_a_bar_is_escaped_in_tables_only(run_copy):
    recipe = load_yaml((run_copy / "recipe.yaml").read_text())
    ledger = json.loads((run_copy / "coverage.json").read_text())
    recipe["model"]["init_from"] = "/models/a|b"
    ledger["sources"][0]["name"] = "c|d"
    for name, content in (("recipe.yaml", recipe), ("coverage.json", ledger)):
        (run_copy / name).write_text(json.dumps(content))
    card = model_card(run_copy, "me/e|f")
    assert re.search(r"trained from `[^`\\]*a\|b`", card) and "\n# e|f\n" in card
    assert rows(card, "Training")[0][0] == r"c\|d"


class Rendered(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += map(str, attributes)

    def handle_data(self, data):
        self.text += data


def test_a_card_needs_no_torch(finished_run):
    code = (
        "import sys; from pathlib import Path; from mypt.storage.card import model_card\n"
        "model_card(Path(sys.argv[1]), 'me/first'); print({'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(finished_run)], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("name", ["config.json", "coverage.json", "forgetting.json", "environment.json", "recipe.yaml"])
@pytest.mark.parametrize("content", ['"words"', "5", "{"])
def test_a_file_that_says_nothing_is_named(run_copy, name, content):
    (run_copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        model_card(run_copy, "me/run")
    if name == "config.json":
        (run_copy / name).write_text("{}")
        with pytest.raises(CheckpointError, match="does not say what model this is"):
            model_card(run_copy, "me/run")
