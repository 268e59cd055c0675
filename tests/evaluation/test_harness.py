"""lm-eval's own figures: its rolling log-likelihood is `--rolling`, and its tasks run on every model that MyPT loads.

lm-eval is not part of the dev extra, since transformers imports its scikit-learn; docs/evaluate.md has the command.
"""

import json
import math
import shutil

import pytest

from mypt.cli.main import main
from mypt.evaluation.compare import compare
from mypt.evaluation.sets import read_texts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def harness():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed (the metrics extra has it)")


@pytest.fixture(scope="session")
def models(corpora, tmp_path_factory):
    """Models with spread weights: of characters, of a BPE, and the latter as a stock Qwen3."""
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM
    from mypt.conversion.export import export_model
    from mypt.preparation.prepare import prepare_dataset
    from mypt.tokenization.load import load_tokenizer, save_tokenizer

    root, text = tmp_path_factory.mktemp("harness"), (corpora / "general.txt").read_text()[:12_000]
    blocks = [block for block in text.split("\n\n") if block]
    lines = (json.dumps({"text": "\n\n".join(blocks[at : at + 3])}) for at in range(0, len(blocks), 3))
    (root / "text.jsonl").write_text("\n".join(lines))
    for name, size in (("char", {}), ("bpe", {"vocab_size": 400})):
        prepare_dataset([str(root / "text.jsonl")], root / f"{name}_data", tokenizer=name, progress=False, **size)
        tokenizer = load_tokenizer(root / f"{name}_data")
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = MyPTConfig(
            vocab_size=-(-len(tokenizer) // 64) * 64, max_position_embeddings=48, initializer_range=0.2, **shape
        )
        MyPTForCausalLM(config).save_pretrained(root / name)
        save_tokenizer(tokenizer, root / name)
    export_model(str(root / "bpe"), root / "exported")
    shutil.copytree(root / "bpe", root / "with_bos")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    save_tokenizer(tokenizer, root / "with_bos")
    return root


@pytest.mark.parametrize("name", ["char", "bpe", "exported", "with_bos"])
def test_rolling_is_the_harness_s_rolling_loglikelihood(models, name):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, texts = str(models / name), list(read_texts(str(models / "text.jsonl")))
    model = AutoModelForCausalLM.from_pretrained(path)  # by transformers, as lm-eval loads it
    stock = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(path), batch_size=4)
    requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    total = -sum(stock.loglikelihood_rolling(requests, disable_tqdm=True))
    expected = total / math.log(2) / sum(len(text.encode()) for text in texts)

    (score,) = compare([path], {"text": texts}, definition="rolling")
    (other,) = compare([path], {"text": texts})
    print(f"{name}: lm-eval {expected:.6f}, --rolling {score.bits_per_byte:.6f}, windows {other.bits_per_byte:.6f}")
    assert score.bits_per_byte == pytest.approx(expected, abs=1e-4)
    assert abs(other.bits_per_byte - expected) > 1e-3, "the definitions differ"


def test_a_dataset_directory_gives_the_figure_of_its_text(models):
    """The val split by its shards, and by lm-eval's own task of the same documents."""
    from tests.datasets import texts

    data = models / "bpe_data"
    (shards,) = compare([str(models / "bpe")], {"val": str(data)}, definition="rolling")
    (text,) = compare([str(models / "bpe")], {"val": texts(data, "val")}, definition="rolling")
    assert shards.bits_per_byte == pytest.approx(text.bits_per_byte, abs=1e-9)


@pytest.fixture
def task(models, tmp_path):
    """A task of lm-eval in a file, with its data beside it: bits per byte of documents."""
    data = tmp_path / "documents.jsonl"
    data.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in list(read_texts(str(models / "text.jsonl")))[:5])
    )
    file = tmp_path / "prose.yaml"
    file.write_text(
        f"task: prose\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]\nmetadata: {version: 1.0}\n"
    )
    return file, data


def test_a_task_of_a_local_file_runs_offline_and_agrees(models, task, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file, data = task
    paths = [str(shutil.copytree(models / name, tmp_path / name)) for name in ("bpe", "exported")]
    command = ["evaluate", *paths, "--data", f"text={data}", "--rolling", "--tasks", str(file), "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert printed.err == ""
    losses = {row["model"]: row["bits_per_byte"] for row in rows if "loss" in row}
    tasks = {(row["model"], row["metric"]): row for row in rows if row.get("data") == "prose"}
    for path in paths:
        assert tasks[path, "bits_per_byte"]["value"] == pytest.approx(losses[path], abs=1e-4)
        assert tasks[path, "bits_per_byte"]["samples"] == 5
    assert tasks[paths[1], "bits_per_byte"]["delta"] == pytest.approx(0, abs=1e-4)
    saved = json.loads((tmp_path / "bpe" / "evaluation.json").read_text())["results"]
    assert {entry["data"] for entry in saved} == {"text", "prose"}


def test_choices_and_generated_answers(models, tmp_path, capsys):
    rows = [
        {"q": f"{a} and {b} are", "choices": ["one", "two", "three"], "right": a % 3} for a in range(4) for b in (1, 2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\ntest_split: test\n"
    )
    (tmp_path / "choose.yaml").write_text(
        f"task: choose\n{source}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_choice: choices\n"
        "doc_to_target: right\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "answer.yaml").write_text(
        f"task: answer\n{source}output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: one\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    files = [str(tmp_path / name) for name in ("choose.yaml", "answer.yaml")]
    out = ["--out", str(tmp_path / "out.json")]
    assert main(["evaluate", str(models / "bpe"), "--tasks", *files, *out]) == 0
    header, *printed = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "data", "metric", "value", "change"]
    found = {entry["metric"]: entry for entry in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert set(found) == {"acc", "exact_match"} and found["acc"]["samples"] == 8
    assert 0 <= found["acc"]["value"] <= 1 and found["acc"]["error"] > 0
    assert any("choose" in line and f"{found['acc']['value']:.4f}" in line for line in printed)


def test_an_adapter_runs_tasks(models, task, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models / "exported")
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "lora")
    shutil.copy(models / "exported" / "tokenizer.json", tmp_path / "lora")
    shutil.copy(models / "exported" / "tokenizer_config.json", tmp_path / "lora")
    assert main(["evaluate", str(models / "exported"), str(tmp_path / "lora"), "--tasks", str(task[0]), "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["metric"] == "bits_per_byte"]
    assert rows[1]["delta"] == pytest.approx(0, abs=1e-5), "an adapter that was not trained changes nothing"


def test_tasks_that_are_not_there(models, capsys, tmp_path):
    assert main(["evaluate", str(models / "bpe"), "--tasks", str(tmp_path / "nothing.yaml")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("task: broken\noutput_type: nothing\n")
    assert main(["evaluate", str(models / "bpe"), "--tasks", str(tmp_path / "broken.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
