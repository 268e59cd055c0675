"""Exports that hold no safetensors go up with the files that export.json names, and come back as they were checked."""

import json
import shutil
from pathlib import Path

import pytest

from mypt.cli.main import main
from mypt.conversion.export import export_model
from mypt.errors import CheckpointError
from mypt.files import xxh3_128
from mypt.remote.place import Place
from mypt.storage.export_files import export_files, is_export, is_export_file
from mypt.storage.manifest import MANIFEST_NAME
from tests.conversion.models import bpe_tokenizer, save_model
from tests.hub import TOKEN
from tests.runs import made_once
from tests.stores import SECRET

PACKAGES = {"gguf": ("gguf", "xllamacpp"), "onnx": ("onnx", "onnxscript", "onnxruntime")}


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """exports(format): the folder of an export, only to read."""

    def of(format: str) -> Path:
        for package in PACKAGES.get(format, ()):
            pytest.importorskip(package)

        def make(root: Path) -> None:
            model = save_model(root / "model", bpe_tokenizer(), "modern-nano")
            export_model(model, root / "export", format=format)

        return made_once(tmp_path_factory, f"export-{format}", make) / "export"

    return of


@pytest.fixture
def gguf(exports, tmp_path) -> Path:
    return shutil.copytree(exports("gguf"), tmp_path / "gguf")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["gguf", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compress", [False, True])
def test_an_export_comes_back_as_it_was_checked(exports, s3, tmp_path, capsys, format, compress):
    folder, uri = exports(format), f"{s3}/exports/{format}"
    report = json.loads((folder / "export.json").read_text())
    assert {*content(folder)} == {*report["files"], "export.json"}
    assert main(["upload", str(folder), uri, *(["--compress", "zstd"] if compress else [])]) == 0
    assert "files sent" in capsys.readouterr().out
    assert main(["download", uri, str(tmp_path / "copy"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["export"]["format"] == f"{format} float32" and printed["export"]["architecture"] == report["to"]
    copy, sent = content(tmp_path / "copy"), content(folder)
    card, told = copy.pop("README.md").decode(), json.loads(copy.pop("export.json"))
    assert f"# {format}\n" in card and report["to"] in card
    assert copy == {name: data for name, data in sent.items() if name != "export.json"}
    assert told == report | {"model": "model", "out": Path(report["out"]).name}  # places of this machine are short
    assert main(["upload", str(tmp_path / "copy"), uri, *(["--compress", "zstd"] if compress else [])]) == 0
    assert "0 of " in capsys.readouterr().out


def test_a_file_of_ones_own_is_not_sent_and_a_card_and_a_license_are(gguf):
    (gguf / "diary.txt").write_text("mine")
    (gguf / "LICENSE").write_text("MIT")
    (gguf / "README.md").write_text("my words")
    files = {file.name: file.content for file in export_files(gguf, "name", None)}
    assert {*files} == {"model.gguf", "Modelfile", "export.json", "LICENSE", "README.md"}
    assert files["README.md"] == b"my words"


def test_a_card_that_is_a_link_out_of_the_folder_is_refused(gguf, tmp_path):
    (tmp_path / "private.md").write_text("# notes of another folder")
    (gguf / "README.md").symlink_to(tmp_path / "private.md")
    with pytest.raises(CheckpointError, match=r"README\.md is a link that leads out of"):
        export_files(gguf, "name", None)


def test_an_empty_card_is_sent_and_one_that_is_not_utf_8_is_refused(gguf):
    (gguf / "README.md").touch()
    assert {file.name: file.content for file in export_files(gguf, "name", None)}["README.md"] == b""
    (gguf / "README.md").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"README\.md: byte 3 is not UTF-8; save it as UTF-8$"):
        export_files(gguf, "name", None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"differences": {}}, "at differences: found an object of 0, expected an object of one or more"),
        ({"result": {"bits_per_byte": "x"}}, 'at result.bits_per_byte: found "x", expected a finite number or null'),
    ],
)
def test_a_report_without_its_figures_is_refused_before_a_folder_is_made(gguf, tmp_path, capsys, change, words):
    """Whoever sends it, and whatever sent it: no card and no description can be made of it."""
    store = tmp_path / "store"
    assert main(["upload", str(gguf), f"file://{store}"]) == 0
    changed = json.dumps(json.loads((gguf / "export.json").read_text()) | change).encode()
    (gguf / "export.json").write_bytes(changed)
    assert main(["upload", str(gguf), f"file://{store}"]) == 2
    assert words in capsys.readouterr().err
    (store / "export.json").write_bytes(changed)
    manifest = json.loads((store / MANIFEST_NAME).read_text())
    manifest["files"]["export.json"] = {"bytes": len(changed), "xxh3_128": xxh3_128(gguf / "export.json")}
    (store / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert main(["download", f"file://{store}", str(tmp_path / "copy")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_an_export_with_several_chat_templates_comes_back(tmp_path):
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    export_model(save_model(tmp_path / "model", tokenizer, "modern-nano"), tmp_path / "onnx", format="onnx")
    assert main(["upload", str(tmp_path / "onnx"), f"file://{tmp_path}/store"]) == 0
    assert main(["download", f"file://{tmp_path}/store", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


@pytest.mark.parametrize("name", ["tool_use.jinja", "../tool_use.jinja", "a/b.jinja", "tool_use.py", "a.b.jinja"])
def test_of_the_folder_of_chat_templates_only_these_belong_to_an_export(name):
    assert is_export_file(f"additional_chat_templates/{name}") == (name == "tool_use.jinja")


def test_what_is_not_as_it_was_checked_is_refused(gguf, exports):
    report = json.loads((gguf / "export.json").read_text())

    def refused(words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            export_files(gguf, "name", None)

    weights = gguf / "model.gguf"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("model.gguf is not the file that mypt export wrote and checked; export the model again")
    weights.unlink()
    refused("model.gguf is missing")
    weights.symlink_to(exports("gguf") / "model.gguf")
    refused("is a link that leads out")
    weights.unlink()
    weights.write_bytes(data)
    (gguf / "Modelfile").write_text("FROM ./other.gguf\n")
    refused("Modelfile is not the file")
    (gguf / "Modelfile").write_text("FROM ./model.gguf\n")
    for files, words in (
        ({"pickle.bin": report["files"]["model.gguf"]}, "names 'pickle.bin', which is no file of an export"),
        ({"Modelfile": report["files"]["Modelfile"]}, "names no weights"),
    ):
        (gguf / "export.json").write_text(json.dumps(report | {"files": files}))
        refused(words)
    del report["files"]
    (gguf / "export.json").write_text(json.dumps(report))
    refused("export.json does not name the files of the export; export the model again")


def test_no_secret_is_sent(gguf, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for text in (f"hf_{'a' * 32}", SECRET):
        (gguf / "README.md").write_text(f"my key is {text}")
        with pytest.raises(CheckpointError, match="holds an access token") as caught:
            export_files(gguf, "name", None)
        assert text not in str(caught.value)


def test_a_model_and_its_export_do_not_replace_each_other(gguf, finished_run, tmp_path, capsys):
    uri = f"file://{tmp_path / 'store'}"
    assert main(["upload", str(finished_run / "best"), uri]) == 0
    before = Place.parse(uri).files()
    assert main(["upload", str(gguf), uri]) == 2
    assert "holds a model, which an export does not replace; choose another place" in capsys.readouterr().err
    assert Place.parse(uri).files() == before
    assert main(["upload", str(gguf), f"{uri}/gguf"]) == 0
    assert main(["upload", str(finished_run / "best"), f"{uri}/gguf"]) == 2
    assert main(["train", str(recipe_on(f"{uri}/gguf", tmp_path))]) == 2
    assert "/gguf is an export, not a dataset" in capsys.readouterr().err


def test_what_an_interrupted_upload_left_is_told_by_its_weights(gguf, finished_run, tmp_path, capsys):
    """Its manifest is gone; the same upload goes on, whatever part of it is there."""
    for first, second in ((finished_run / "best", gguf), (gguf, finished_run / "best")):
        store = tmp_path / f"{first.name}-first"
        assert main(["upload", str(first), f"file://{store}"]) == 0
        (store / MANIFEST_NAME).unlink()
        before = content(store)
        capsys.readouterr()
        assert main(["upload", str(second), f"file://{store}"]) == 2
        words = "a model, which an export" if second == gguf else "an export, which a model"
        assert f"holds {words} does not replace; choose another place" in capsys.readouterr().err
        assert content(store) == before
        assert main(["upload", str(first), f"file://{store}"]) == 0


def test_an_interrupted_upload_of_an_export_of_safetensors_goes_on(exports, tmp_path):
    store = tmp_path / "store"
    assert main(["upload", str(exports("safetensors")), f"file://{store}"]) == 0
    (store / MANIFEST_NAME).unlink()
    shutil.copyfile(exports("safetensors") / "export.json", store / "export.json")
    (store / "model.safetensors").unlink()
    assert main(["upload", str(exports("safetensors")), f"file://{store}"]) == 0


def recipe_on(uri: str, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"data": {"train": uri}, "training": {"output_dir": str(folder / "run")}}))
    return path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.py", "onnx/evil.so"])
def test_other_files_are_not_downloaded(gguf, tmp_path, capsys, name):
    store = tmp_path / "store"
    assert main(["upload", str(gguf), f"file://{store}"]) == 0
    manifest = json.loads((store / MANIFEST_NAME).read_text())
    manifest["files"][name] = manifest["files"]["Modelfile"]
    (store / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert main(["download", f"file://{store}", str(tmp_path / "copy")]) == 2
    assert f"lists {name}, which is no file of an export; nothing was downloaded" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_an_export_of_safetensors_is_a_model(exports):
    folder = exports("safetensors")
    assert (folder / "export.json").is_file() and not is_export(folder)


def test_the_hub_takes_an_export_too(gguf, finished_run, logged_in, tmp_path, capsys):
    assert main(["upload", str(gguf), "hf://me/gguf"]) == 0
    there = logged_in.models["me/gguf"]["main"]
    assert {"model.gguf", "Modelfile", "export.json", "README.md"} <= {*there} and TOKEN.encode() not in there[
        "README.md"
    ]
    assert main(["download", "hf://me/gguf", str(tmp_path / "copy")]) == 0
    assert "format        gguf float32" in capsys.readouterr().out
    assert (tmp_path / "copy" / "model.gguf").read_bytes() == (gguf / "model.gguf").read_bytes()
    there["model.gguf"] = there["model.gguf"][:-1] + b"\xff"
    assert main(["download", "hf://me/gguf", str(tmp_path / "damaged")]) == 2
    assert "hf://me/gguf/model.gguf is not the file that mypt export wrote" in capsys.readouterr().err
    assert main(["upload", str(finished_run / "best"), "hf://me/model"]) == 0
    assert main(["upload", str(gguf), "hf://me/model"]) == 2
    assert "holds a model (model.safetensors), which an export does not replace" in capsys.readouterr().err
    before = dict(logged_in.models["me/gguf"]["main"])
    assert main(["upload", str(finished_run / "best"), "hf://me/gguf"]) == 2
    assert "hf://me/gguf holds an export, which a model does not replace" in capsys.readouterr().err
    assert logged_in.models["me/gguf"]["main"] == before


def test_a_download_of_an_export_leaves_out_what_a_killed_one_left(gguf, logged_in, tmp_path):
    """Also in folders of its own, such as onnx/, which exports have; the library's notes stay until the end."""
    assert main(["upload", str(gguf), "hf://me/gguf"]) == 0
    left = tmp_path / ".copy.download"
    for name in (".cache/huggingface/notes", "onnx/model.onnx_data", "onnx/deep/er", "config.json", "Modelfile"):
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_text("of another model")
    assert main(["download", "hf://me/gguf", str(tmp_path / "copy")]) == 0
    names = sorted(path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*"))
    assert names == ["Modelfile", "README.md", "export.json", "model.gguf"]
