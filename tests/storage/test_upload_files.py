"""Only a model and what tells about it is sent: no state, no pickle, no secret, no path of this machine."""

import json
import shutil
from pathlib import Path

import pytest

from mypt.errors import CheckpointError
from mypt.storage.upload_files import content_to_send, is_model_file, is_replaced, model_files, without_places
from mypt.yaml12 import load_yaml

MODEL = {
    "config.json", "configuration_mypt.py", "generation_config.json", "lineage.json", "model.safetensors",
    "modeling_mypt.py", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
ABOUT = {
    "coverage.json", "diagnosis.json", "forgetting.json", "forgetting.png", "loss.png", "metrics.jsonl", "recipe.yaml",
}  # fmt: skip
TOKEN = "hf_" + "aB3" * 12


def names(folder: Path) -> set[str]:
    return {path.name for path in model_files(folder)}


def test_a_run_is_its_model_and_what_tells_about_it(run_copy):
    junk = (
        "optimizer.pt", "training_args.bin", "pytorch_model.bin", "model.safetensors.tmp", ".env", "notes.txt",
        "train.py", "events.out.tfevents.1", "trainer_state.json", "rng_state.pth",
    )  # fmt: skip
    for name in junk:
        (run_copy / name).write_text("secret")
    assert names(run_copy) == MODEL | ABOUT
    (run_copy / "README.md").write_text("# Mine")
    assert names(run_copy) == MODEL | ABOUT | {"README.md"}


def test_a_checkpoint_and_the_best_model_bring_the_recipe_of_their_run(run_copy):
    assert names(run_copy / "checkpoint-2") == names(run_copy / "best") == MODEL | {"recipe.yaml"}


def test_a_run_that_has_not_finished_names_its_newest_checkpoint(run_copy, tmp_path):
    (run_copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has not finished, but there is .*checkpoint-4"):
        model_files(run_copy)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="holds no model"):
            model_files(folder)


def test_what_is_not_whole_is_refused(run_copy):
    weights = run_copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing or shorter"):
        model_files(run_copy)
    weights.unlink()
    (run_copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="weights are sent and loaded as safetensors"):
        model_files(run_copy)
    index = run_copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r'weight_map\.a: found "\.\./model\.safetensors"'):
        model_files(run_copy)
    index.unlink()
    weights.write_bytes(content)
    (run_copy / "configuration_mypt.py").unlink()
    with pytest.raises(CheckpointError, match=r"names the code configuration_mypt\.py, which is not there"):
        model_files(run_copy)


def test_a_link_that_leads_out_is_refused_and_one_within_is_not(run_copy, tmp_path):
    shutil.move(run_copy / "loss.png", run_copy / "drawn.png")
    (run_copy / "loss.png").symlink_to("drawn.png")
    assert "loss.png" in names(run_copy)
    outside = tmp_path / "id_rsa"
    outside.write_text("private")
    (run_copy / "README.md").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"README\.md is a link that leads out"):
        model_files(run_copy)


@pytest.mark.parametrize(
    "name", ["README.md", "recipe.yaml", "metrics.jsonl", "modeling_mypt.py", "config.json", "LICENSE"]
)
def test_a_token_stops_the_upload_and_is_not_repeated(run_copy, name):
    path = run_copy / name
    with open(path, "a") as file:
        file.write(f"# {TOKEN}\n")
    with pytest.raises(CheckpointError, match="holds an access token") as error:
        content_to_send(path)
    assert TOKEN not in str(error.value)
    path.write_text("# own-secret-of-another-form")
    with pytest.raises(CheckpointError, match="holds an access token"):
        content_to_send(path, "own-secret-of-another-form")


def test_no_path_of_this_machine_is_sent(run_copy, monkeypatch):
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps(config | {"_name_or_path": str(Path.home() / "secret" / "base")}))
    sent = {path.name: content_to_send(path) or path.read_bytes() for path in model_files(run_copy)}
    kept = {path.name for path in model_files(run_copy) if content_to_send(path) is None}
    assert {*sent} - kept == {"config.json", "coverage.json", "lineage.json", "recipe.yaml"}
    for name, content in sent.items():
        for place in (run_copy.parent, Path.home() / "secret", Path(load_recipe_paths(run_copy)[0]).parent):
            assert str(place).encode() not in content, name
    recipe = load_yaml(sent["recipe.yaml"].decode())
    assert recipe["data"]["train"] == {"domain": 0.75, "general": 0.25}
    assert recipe["training"]["output_dir"] == "run"
    assert json.loads(sent["config.json"]) == config | {"_name_or_path": "base"}


def load_recipe_paths(run: Path) -> list[str]:
    return [*load_yaml((run / "recipe.yaml").read_text())["data"]["train"]]


def test_paths_become_short_and_words_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {
        "inside": str(tmp_path / "data" / "law"), "home": "~/data/law", "windows": r"C:\Users\ann\law",
        "glob": "/mnt/team/*.txt", "list": ["/a/b", 3, None, True], "relative": "data/law", "hub": "hf://ann/law#train",
        "token": "</s>", "word": "/think", "text": "/first/line\nsecond", "url": "https://example.org/a/b",
        "several": "data/x, /home/ann/y.jsonl, hf://ann/law",
    }  # fmt: skip
    assert without_places(given) == given | {
        "inside": "data/law", "home": "law", "windows": "law", "glob": "*.txt", "list": ["b", 3, None, True],
        "several": "data/x, y.jsonl, hf://ann/law",
    }  # fmt: skip
    assert without_places({"/a/text": 1, "/b/text": 2, "/c/text": 3}) == {"text": 1, "text (2)": 2, "text (3)": 3}


def test_weights_of_an_earlier_upload_are_replaced_and_what_others_put_there_is_not():
    assert all(map(is_replaced, ["model-00001-of-00002.safetensors", "adapter_config.json", "vocab.json"]))
    assert not any(map(is_replaced, ["LICENSE", ".gitattributes", "onnx/model.onnx", "mine.safetensors", "a.py"]))
    assert not any(
        map(is_model_file, ["optimizer.safetensors", "pytorch_model.bin", "../config.json", "x/config.json"])
    )
