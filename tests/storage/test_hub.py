"""Models go to a hub on the loopback and come back: whole, once, without secrets, and as others load them."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mypt.checkpoints.lineage import find_lineage
from mypt.checkpoints.load import load_model
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.storage import hub
from mypt.storage.uri import parse_uri
from tests.hub import TOKEN
from tests.processes import bare_python

TEXT = "the same words"
SECRET = "hf_" + "aB3" * 12
# A process that has never seen these models. argv: with|without mypt, code that loads a model, and others as
# name@revision or base+adapter. It prints the logits of all; with mypt it then sends the first one on by transformers'
# own means.
ELSEWHERE = f"""
import sys, json
with_mypt = sys.argv[1] == "with"
if with_mypt:
    import mypt
else:
    sys.modules["mypt"] = None  # any import of it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
exec(sys.argv[2])
models = [model]
for word in sys.argv[3:]:
    name, _, adapter = word.partition("+")
    name, _, revision = name.partition("@")
    options = {{"revision": revision or "main"}} | ({{}} if with_mypt else {{"trust_remote_code": True}})
    model = AutoModelForCausalLM.from_pretrained(name, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    models.append(model)
ids = tokenizer({TEXT!r}, return_tensors="pt").input_ids
with torch.no_grad():
    print(json.dumps([model.eval()(ids).logits.double().flatten().tolist() for model in models]))
if with_mypt:
    models[0].push_to_hub("me/pushed")
    tokenizer.push_to_hub("me/pushed")
"""


def upload(folder, uri, *, private=None, **options):
    store = parse_uri(uri)
    files = store.outgoing(folder)
    store.connect(private=private)
    return store.send(files, progress=False, **options)


def connect(uri, **options) -> bool:
    return parse_uri(uri).connect(**options)


def download(uri, folder):
    return parse_uri(uri).download(folder)


def elsewhere(hub, home, mode, *words) -> list[list[float]]:
    done = bare_python(ELSEWHERE, mode, *words, cwd=home, env=os.environ | hub.environment(home))
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))


def logits(folder, model=None) -> list[float]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = model or AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(ids).logits.double().flatten().tolist()


@pytest.mark.slow
def test_others_load_what_was_uploaded_with_mypt_and_without(finished_run, logged_in, tmp_path):
    """A run by the code of its card, a checkpoint on a branch, an adapter, and what push_to_hub made of the first."""
    upload(finished_run, "hf://me/run")
    upload(finished_run / "checkpoint-2", "hf://me/run@early")
    adapted = save_adapter(finished_run, tmp_path / "adapter")
    upload(tmp_path / "adapter", "hf://me/adapter")
    card = logged_in.models["me/run"]["main"]["README.md"].decode()
    with_mypt, without = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = ["me/run@early", "me/run+me/adapter"]
    expected = [logits(finished_run), logits(finished_run / "checkpoint-2"), logits(finished_run, adapted)]
    assert expected[0] != expected[1] and expected[0] != expected[2]
    assert elsewhere(logged_in, tmp_path, "with", with_mypt, *names) == expected
    assert elsewhere(logged_in, tmp_path, "without", without, *names, "me/pushed") == [*expected, expected[0]]


def save_adapter(base: Path, folder: Path):
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(folder)
    return adapted


def test_an_adapter_is_sent_with_a_card_in_place_of_peft_s_stub(finished_run, logged_in, tmp_path):
    save_adapter(finished_run, tmp_path / "adapter")
    assert "# Model Card for Model ID" in (tmp_path / "adapter" / "README.md").read_text()
    sent = upload(tmp_path / "adapter", "hf://me/small").sent
    assert sent == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    there = logged_in.models["me/small"]["main"]
    card = there["README.md"].decode()
    assert "library_name: peft" in card and 'PeftModel.from_pretrained(base, "me/small")' in card
    assert "[More Information Needed]" not in card
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == finished_run.name
    download("hf://me/small", tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {*sent}


def test_one_commit_with_all_files_then_only_what_changed(run_copy, logged_in):
    first = upload(run_copy, "hf://me/again", message="First")
    assert logged_in.commits.pop() == ("me/again", "main", "First", first.sent)
    logged_in.requests.clear()
    second = upload(run_copy, "hf://me/again")
    assert (second.sent, second.unchanged, second.commit) == ([], first.sent, first.commit)
    assert not any(method == "PUT" or "/commit/" in path for method, path in logged_in.requests)
    weights = load_file(run_copy / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, run_copy / "model.safetensors")
    assert upload(run_copy, "hf://me/again").sent == ["model.safetensors"]
    assert [method for method, _ in logged_in.requests].count("PUT") == 1


def test_weights_of_another_shape_are_removed_in_the_same_commit(run_copy, logged_in):
    from transformers import AutoModelForCausalLM

    upload(run_copy, "hf://me/shapes")
    logged_in.models["me/shapes"]["main"] |= {"LICENSE": b"mine", "onnx/model.onnx": b"theirs"}
    AutoModelForCausalLM.from_pretrained(run_copy).save_pretrained(run_copy / "split", max_shard_size="60KB")
    done = upload(run_copy / "split", "hf://me/shapes")
    there = logged_in.models["me/shapes"]["main"]
    assert "model.safetensors" in done.removed and "model.safetensors" not in there
    assert {"LICENSE", "onnx/model.onnx", "model.safetensors.index.json"} <= {*there}
    assert len([commit for commit in logged_in.commits if commit[0] == "me/shapes"]) == 2


def test_a_server_error_and_a_lost_connection_are_tried_again(finished_run, logged_in, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    logged_in.objects.clear()  # so that the weights are sent, whatever other tests have sent
    logged_in.failing, logged_in.drops = 2, 1
    done = upload(finished_run, "hf://me/stumbles")
    assert logged_in.failing == logged_in.drops == 0
    assert (
        logged_in.models["me/stumbles"]["main"]["model.safetensors"]
        == (finished_run / "model.safetensors").read_bytes()
    )
    assert [commit[3] for commit in logged_in.commits if commit[0] == "me/stumbles"] == [done.sent]


def test_a_hub_that_keeps_failing_is_a_failed_check(finished_run, logged_in, monkeypatch):
    connect("hf://me/down")
    logged_in.failing = len(hub.WAITS) + 1
    with pytest.raises(CheckFailed, match=r"hf://me/down: the hub fails with status 500 .*try again later"):
        upload(finished_run, "hf://me/down")
    assert logged_in.failing == 0 and not any(commit[0] == "me/down" for commit in logged_in.commits)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckFailed, match=r"the hub at http://127\.0\.0\.1:9 can't be reached"):
        connect("hf://me/down")


def test_whoever_may_not_write_learns_it_in_one_line(logged_in, monkeypatch):
    with pytest.raises(MyPTError, match="hf://you/model: your token may not write there"):
        connect("hf://you/model")
    monkeypatch.setattr(logged_in, "role", "read")
    with pytest.raises(MyPTError, match="may only read"):
        connect("hf://me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_anotherOne")
    with pytest.raises(MyPTError, match="the hub refuses the token") as error:
        connect("hf://me/model")
    assert "hf_anotherOne" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(MyPTError, match="run `hf auth login`, or set HF_TOKEN"):
        connect("hf://me/model")
    assert "me/model" not in logged_in.models


def test_a_repository_is_private_unless_asked_and_never_changes_unasked(logged_in):
    assert connect("hf://me/closed") and connect("hf://me/closed", private=True)
    assert not connect("hf://me/shown", private=False)
    assert not connect("hf://me/shown"), "what is there is taken as it is"
    assert "me/closed" in logged_in.private and "me/shown" not in logged_in.private
    with pytest.raises(MyPTError, match="hf://me/shown is public already, not private"):
        connect("hf://me/shown", private=True)
    with pytest.raises(MyPTError, match="hf://me/closed is private already, not public"):
        connect("hf://me/closed", private=False)


def test_metadata_that_the_hub_refuses_stops_the_upload_before_any_file(run_copy, logged_in):
    (run_copy / "README.md").write_text("---\nbase_model: /home/ann/base\n---\n# Mine\n")
    logged_in.requests.clear()
    with pytest.raises(MyPTError, match=r"metadata on top of README\.md is not valid.*/home/ann/base"):
        upload(run_copy, "hf://me/invalid")
    assert not any(method == "PUT" or "/commit/" in path for method, path in logged_in.requests)


def test_the_token_is_in_no_file_that_the_hub_has(finished_run, logged_in, capfd):
    upload(finished_run, "hf://me/secrets")
    contents = [*logged_in.models["me/secrets"]["main"].values(), *logged_in.objects.values()]
    assert not any(TOKEN.encode() in content for content in contents)
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "uri", ["me/model", "ftp://host/x", "hf://model", "hf://me/../you", "hf://me/a/b", "hf://a/b@", "hf://a/b@/c"]
)
def test_other_places_are_refused_with_the_form_that_works(uri):
    with pytest.raises(MyPTError, match="hf://user/name or hf://user/name@branch"):
        parse_uri(uri)


@pytest.mark.parametrize("uri", [f"https://me:{SECRET}@huggingface.co/me/x", f"hf://{SECRET}@me/x", f"me:{SECRET}"])
def test_a_token_in_an_address_is_refused_and_not_repeated(uri):
    with pytest.raises(MyPTError) as error:
        parse_uri(uri)
    assert SECRET not in str(error.value)


def test_a_repository_of_somebody_else_is_refused_before_the_work(logged_in):
    logged_in.models["you/shown"] = {"main": {".gitattributes": b""}}
    with pytest.raises(MyPTError, match="hf://you/shown: your token may not write there"):
        connect("hf://you/shown", private=False)


def test_a_hub_that_tells_neither_who_one_is_nor_what_is_private_will_do(finished_run, logged_in, monkeypatch):
    monkeypatch.setattr(logged_in, "unknown", ("whoami-v2", "auth-check", "private"))
    assert connect("hf://me/plain", private=True)
    assert "me/plain" in logged_in.private and upload(finished_run, "hf://me/plain", private=True).sent


# ---- download ----


@pytest.fixture
def stored(finished_run, logged_in) -> str:
    """A model on the hub, put there without the code under test."""
    files = {path.name: path.read_bytes() for path in finished_run.iterdir() if path.is_file()}
    logged_in.models["me/stored"] = {"main": files | {"onnx/model.onnx": b"onnx", "pytorch_model.bin": b"pickle"}}
    return "hf://me/stored"


def test_a_download_is_what_the_hub_has_but_pickles_and_folders(stored, finished_run, logged_in, monkeypatch, tmp_path):
    received = download(stored, tmp_path / "new" / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "new" / "model").iterdir()}
    assert {*files} == {*received.files} and {"onnx/model.onnx", "pytorch_model.bin"} <= {*received.left_out}
    assert all(content == (finished_run / name).read_bytes() for name, content in files.items())
    assert {"model.safetensors", "modeling_mypt.py", "tokenizer.json", "recipe.yaml", "lineage.json"} <= {*files}
    assert received.commit == logged_in.commit("me/stored", "main")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"], "nothing is left beside it"
    with pytest.raises(MyPTError, match="is not empty"):
        download(stored, tmp_path / "new" / "model")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(MyPTError, match="or is the current folder"):
        download(stored, ".")


def test_a_model_of_the_hub_that_is_loaded_brings_its_lineage(stored, finished_run, logged_in):
    assert find_lineage("me/stored") is None
    load_model("me/stored")
    assert find_lineage("me/stored") == find_lineage(finished_run) is not None
    del logged_in.models["me/stored"]["main"]["lineage.json"]
    logged_in.models["me/bare"] = logged_in.models.pop("me/stored")
    load_model("me/bare")
    assert find_lineage("me/bare") is None


def test_a_revision_a_private_model_and_one_that_is_not_there(stored, logged_in, monkeypatch, tmp_path):
    files = logged_in.models["me/stored"]["main"]
    logged_in.models["me/stored"]["v1"] = files | {"recipe.yaml": b"old: {}\n"}
    download(f"{stored}@v1", tmp_path / "v1")
    assert (tmp_path / "v1" / "recipe.yaml").read_text() == "old: {}\n"
    download(f"{stored}@{logged_in.commit('me/stored', 'v1')}", tmp_path / "commit")
    with pytest.raises(MyPTError, match="hf://me/stored@v9: there is no such revision"):
        download(f"{stored}@v9", tmp_path / "v9")
    logged_in.private.add("me/stored")
    download(stored, tmp_path / "private")
    monkeypatch.setenv("HF_TOKEN", "hf_anotherOne")
    with pytest.raises(MyPTError, match="no such model that you may read"):
        download(stored, tmp_path / "refused")
    logged_in.private.clear()
    assert not any((tmp_path / name).exists() for name in ("v9", "refused"))


@pytest.mark.parametrize("name", ["../evil.json", "a/../../evil", "/etc/evil", "..\\evil", "C:\\evil"])
def test_names_never_lead_out_of_the_folder(stored, logged_in, tmp_path, name):
    logged_in.models["me/evil"] = {"main": logged_in.models["me/stored"]["main"] | {name: b"evil"}}
    (tmp_path / "inner").mkdir()
    with pytest.raises(CheckpointError, match="would leave the folder; nothing was written"):
        download("hf://me/evil", tmp_path / "inner" / "model")
    assert not list(tmp_path.rglob("*evil*")) and not [*(tmp_path / "inner").iterdir()]


def test_pickles_alone_and_damaged_weights_are_refused(stored, logged_in, tmp_path):
    files = logged_in.models["me/stored"]["main"]
    without = {name: data for name, data in files.items() if name != "model.safetensors"}
    cut = files["model.safetensors"][:-4]
    cases = {
        r"no weights in safetensors \(only pytorch_model\.bin\), and pickles are not loaded": without,
        r"is no model that transformers or peft loads": {"model.safetensors": b""},
        r"^hf://me/bad2/model\.safetensors is missing or shorter": files | {"model.safetensors": cut},
    }
    for number, (words, content) in enumerate(cases.items()):
        logged_in.models[f"me/bad{number}"] = {"main": content}
        with pytest.raises(CheckpointError, match=words):
            download(f"hf://me/bad{number}", tmp_path / "bad")
        assert not [*tmp_path.glob("*bad*")]


def test_sizes_are_those_of_what_came_whatever_the_hub_lists(stored, logged_in, monkeypatch, tmp_path):
    monkeypatch.setattr(logged_in, "sizes", {"config.json": [None]})
    received = download("hf://me/stored", tmp_path / "copy")
    assert received.files == {path.name: path.stat().st_size for path in (tmp_path / "copy").iterdir()}


def test_a_download_that_was_broken_off_goes_on_where_it_stopped(
    stored, finished_run, logged_in, monkeypatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    logged_in.breaks["recipe.yaml"] = [True] * 100
    with pytest.raises(CheckFailed, match="can't be reached"):
        download(stored, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    logged_in.breaks.clear()
    (tmp_path / ".model.download" / "of_another_model.py").write_text("")
    logged_in.requests.clear()
    download(stored, tmp_path / "model")
    assert (tmp_path / "model" / "recipe.yaml").read_bytes() == (finished_run / "recipe.yaml").read_bytes()
    assert not (tmp_path / "model" / "of_another_model.py").exists()
    fetched = [
        path.rpartition("/")[2] for method, path in logged_in.requests if method == "GET" and "/resolve/" in path
    ]
    assert "model.safetensors" not in fetched and "recipe.yaml" in fetched
