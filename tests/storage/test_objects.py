"""Folders go up to object stores and come back byte for byte, or are refused: S3 by a real server, and file://."""

import json
import shutil
import time
from html import escape
from pathlib import Path

import pytest

from mypt.checkpoints.adapter import weights_fingerprint
from mypt.cli.main import main
from mypt.errors import CheckFailed, CheckpointError, DataError, MyPTError
from mypt.remote.place import Place
from mypt.storage.manifest import MANIFEST_NAME, read_manifest
from mypt.storage.objects import ObjectStore
from mypt.storage.run_files import report_page
from mypt.storage.uri import parse_uri
from tests.hub import TOKEN
from tests.processes import Command
from tests.stores import SECRET


def upload(folder: Path, uri: str, **options):
    store = parse_uri(uri)
    return store.send(store.outgoing(folder), progress=False, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_comes_back_as_it_was_sent(finished_run, bucket, tmp_path, capsys):
    uri = f"{bucket}/runs/first"
    assert main(["upload", str(finished_run / "best"), uri]) == 0
    printed = capsys.readouterr().out
    assert "files sent" in printed and "manifest " in printed and "private" not in printed
    assert main(["download", uri, str(tmp_path / "copy")]) == 0
    printed = capsys.readouterr().out
    assert "architecture  MyPTForCausalLM (mypt)" in printed and "manifest      " in printed
    copy, sent = content(tmp_path / "copy"), content(finished_run / "best")
    assert all(copy[name] == sent[name] for name in ("model.safetensors", "tokenizer.json", "modeling_mypt.py"))
    assert b'from_pretrained("first")' in copy["README.md"] and MANIFEST_NAME not in copy
    assert not list(tmp_path.glob(".copy*"))
    assert main(["generate", str(tmp_path / "copy"), "--prompt", "The", "--max-new-tokens", "2"]) == 0


def test_a_run_is_its_model_its_best_and_its_newest_checkpoint(finished_run, bucket, tmp_path, capsys):
    assert main(["upload", str(finished_run), f"{bucket}/run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"model.safetensors", "best/model.safetensors", "checkpoint-4/optimizer.pt"} <= {*report["files"]}
    assert {*report["sent"]} == {*report["files"]} and "checkpoint-4/run/environment.json" in report["sent"]
    parse_uri(f"{bucket}/run/checkpoint-4").download(tmp_path / "checkpoint-4")
    copy = content(tmp_path / "checkpoint-4")
    assert copy.pop("run/recipe.yaml") == (finished_run / "recipe.yaml").read_bytes()
    assert copy.pop("run/environment.json") == (finished_run / "environment.json").read_bytes()
    assert copy.pop("run/forgetting_baseline.safetensors")
    assert copy == content(finished_run / "checkpoint-4")
    received = parse_uri(f"{bucket}/run").download(tmp_path / "model")
    assert "checkpoint-4/optimizer.pt" in received.left_out and (tmp_path / "model" / "loss.png").is_file()
    assert main(["upload", str(finished_run), f"{bucket}/run", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["sent"] == again["removed"] == [] and {*again["unchanged"]} == {*report["files"]}


def test_the_report_of_a_run_goes_up_with_its_secrets_masked(run_copy, bucket, logged_in, monkeypatch, tmp_path):
    """Also one that an earlier version wrote, and what is a secret by the environment alone."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", f"{SECRET}&<x>")
    assert main(["report", str(run_copy), "--samples", "0"]) == 0
    page = (run_copy / "report.html").read_text()
    leaks = f"<p>https://ann:hunter2@host/x {SECRET}&amp;&lt;x&gt; hf_{'a' * 32} AccountKey={SECRET};</p></body>"
    (run_copy / "report.html").write_text(page.replace("</body>", leaks))
    upload(run_copy, f"{bucket}/run")
    parse_uri(f"{bucket}/run").download(tmp_path / "copy")
    copy = (tmp_path / "copy" / "report.html").read_text()
    assert copy == page.replace("</body>", "<p>https://***@host/x *** *** AccountKey=***;</p></body>")
    assert "report.html" not in {file.name for file in parse_uri("hf://me/run").outgoing(run_copy)}
    (run_copy / "report.html").write_text("<html>my own</html>")
    assert "report.html" in upload(run_copy, f"{bucket}/run").removed


def test_the_markup_of_a_report_stays_whatever_its_texts_end_in(run_copy):
    """An address that ends in "?" is followed by an end tag, one in quotation marks by an entity."""
    texts = {"prompt": "Is it https://a.example/page?", "text": 'yes "https://a.example/b?" &c', "original": "<b>?</b>"}
    samples = {"weights": weights_fingerprint(str(run_copy)), "temperature": 0.8, "top_p": 0.95, "each": 1}
    (run_copy / "samples.json").write_text(json.dumps(samples | {"samples": [{"set": "domain", **texts}]}))
    assert main(["report", str(run_copy), "--samples", "1"]) == 0
    page = (run_copy / "report.html").read_text()
    assert all(escape(text) in page for text in texts.values())
    assert report_page(run_copy).content == page.encode()
    leak = "<p>See &quot;https://ann:hunter2@host/x?key=1&amp;b&quot; and https://host/y?</p>"
    (run_copy / "report.html").write_text(page.replace("</body>", f"{leak}</body>"))
    shown = "<p>See &quot;https://***@host/x?***&quot; and https://host/y?</p>"
    assert report_page(run_copy).content.decode() == page.replace("</body>", f"{shown}</body>")


def test_the_environment_of_a_run_without_checkpoints_is_checked(run_copy, tmp_path, monkeypatch):
    for checkpoint in run_copy.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    store, path = parse_uri(f"file://{tmp_path}/store"), run_copy / "environment.json"
    assert "environment.json" in {file.name for file in store.outgoing(run_copy)}
    content = path.read_text()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    path.write_text(json.dumps(json.loads(content) | {"note": SECRET}))
    with pytest.raises(CheckpointError, match=r"environment\.json holds an access token"):
        store.outgoing(run_copy)
    (tmp_path / "elsewhere.json").write_text(content)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match=r"environment\.json is a link that leads out of"):
        store.outgoing(run_copy)


def test_only_changes_are_sent_and_what_is_gone_is_removed(run_copy, bucket):
    uri = f"{bucket}/model"
    upload(run_copy, uri)
    (run_copy / "metrics.jsonl").write_text("{}\n")
    (run_copy / "loss.png").unlink()
    done = upload(run_copy, uri)
    assert {"metrics.jsonl"} <= {*done.sent} <= {"metrics.jsonl", "README.md"} and done.removed == ["loss.png"]
    assert "loss.png" not in Place.parse(uri).files()
    assert upload(run_copy, uri).sent == []


def test_a_manifest_is_the_last_file_of_an_upload(finished_run, s3):
    upload(finished_run / "best", f"{s3}/model")
    found = Place.parse(f"{s3}/model").find()
    times = {name: one.written for name, one in found.items()}
    assert times.pop(MANIFEST_NAME) >= max(times.values())


def test_a_server_that_dies_in_the_middle_leaves_nothing_that_counts(finished_run, s3, s3_wire, tmp_path, capsys):
    uri, model = f"{s3}/model", str(finished_run / "checkpoint-4")
    s3_wire.cut = 200_000
    assert main(["upload", model, uri]) == 1
    error = capsys.readouterr().err
    assert f"{uri}: the store fails or cannot be reached" in error and error.count("\n") == 1 and SECRET not in error
    s3_wire.cut = None
    assert 0 < len(Place.parse(uri).files()) < 12
    assert main(["download", uri, str(tmp_path / "copy")]) == 2
    error = capsys.readouterr().err
    assert f"no {MANIFEST_NAME}: its upload is under way, was interrupted" in error and error.count("\n") == 1
    assert not (tmp_path / "copy").exists()
    assert main(["upload", model, uri]) == 0
    assert main(["download", uri, str(tmp_path / "copy")]) == 0


def test_a_killed_upload_is_not_taken_for_whole(finished_run, s3, s3_wire, tmp_path, capsys):
    uri, checkpoint = f"{s3}/checkpoint-4", finished_run / "checkpoint-4"
    s3_wire.hold = 200_000
    process = Command(["upload", checkpoint, uri])
    assert s3_wire.reached.wait(60)
    process.kill()
    s3_wire.release.set()
    s3_wire.hold = None
    assert Place.parse(uri).files() and read_manifest(Place.parse(uri)) is None
    assert main(["download", uri, str(tmp_path / "copy")]) == 2
    assert "nothing was downloaded" in capsys.readouterr().err and not (tmp_path / "copy").exists()
    assert main(["upload", str(checkpoint), uri]) == 0  # the same command again
    assert main(["download", uri, str(tmp_path / "copy")]) == 0


def test_a_killed_replacement_is_neither_the_old_model_nor_the_new(finished_run, s3, s3_wire, tmp_path):
    upload(finished_run / "checkpoint-2", f"{s3}/model")
    s3_wire.hold = s3_wire.bytes + 150_000
    process = Command(["upload", finished_run / "checkpoint-4", f"{s3}/model"])
    assert s3_wire.reached.wait(60)
    process.kill()
    s3_wire.release.set()
    s3_wire.hold = None
    with pytest.raises(CheckpointError, match="upload is under way, was interrupted"):
        parse_uri(f"{s3}/model").download(tmp_path / "copy")


def test_a_killed_download_continues(finished_run, s3, s3_wire, tmp_path):
    uri = f"{s3}/checkpoint-4"
    upload(finished_run / "checkpoint-4", uri)
    wire, before = s3_wire, content(finished_run / "checkpoint-4")
    process = Command(["download", uri, tmp_path / "copy"])
    part = tmp_path / ".copy.download"
    while not (part / "model.safetensors").is_file() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    there = content(part) if part.is_dir() else {}
    sent = wire.bytes
    parse_uri(uri).download(tmp_path / "copy")
    assert before.items() <= content(tmp_path / "copy").items() and not part.exists()
    print(f"{len(there)} files were there, {wire.bytes - sent} bytes of requests for the rest")


@pytest.mark.parametrize("damage", ["changed", "short", "missing"])
def test_a_file_that_is_not_what_was_sent_is_refused_by_name(finished_run, bucket, tmp_path, damage):
    uri = f"{bucket}/model"
    upload(finished_run / "best", uri)
    weights = (finished_run / "best" / "model.safetensors").read_bytes()
    place = Place.parse(uri)
    if damage == "missing":
        place.remove(["model.safetensors"])
    else:
        place.put("model.safetensors", weights[:-1] + (b"" if damage == "short" else bytes([weights[-1] ^ 1])))
    with pytest.raises(MyPTError, match=r"model/model\.safetensors is (not what was uploaded|not in the store)"):
        parse_uri(uri).download(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_upload_replaces_a_damaged_manifest(run_copy, bucket, tmp_path):
    uri = f"{bucket}/model"
    upload(run_copy, uri)
    place = Place.parse(uri)
    place.put(MANIFEST_NAME, place.read(MANIFEST_NAME)[:40])
    assert main(["upload", str(run_copy), uri]) == 0
    assert parse_uri(uri).download(tmp_path / "copy").files["model.safetensors"]


def test_a_file_of_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    from mypt.remote.clients import file_system

    place = Place.parse(f"file://{tmp_path}/store")
    place.put("a.json", b"before")
    client = type(file_system(place.uri))

    def killed(self, path, value, **options):
        Path(path).write_bytes(value[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "pipe_file", killed)
    with pytest.raises(KeyboardInterrupt):
        place.put("a.json", b"after it")
    assert place.read("a.json") == b"before"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:evil", "a\\evil"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(finished_run, tmp_path, name):
    uri = f"file://{tmp_path / 'store'}"
    upload(finished_run / "best", uri)
    path = tmp_path / "store" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["config.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="the path of a file in this folder"):
        parse_uri(uri).download(tmp_path / "deep" / "copy")
    assert not (tmp_path / "deep").exists() and not (tmp_path / "evil").exists()


def test_pickles_of_a_model_are_not_downloaded(finished_run, tmp_path):
    uri = f"file://{tmp_path / 'store'}"
    upload(finished_run / "best", uri)
    path = tmp_path / "store" / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    manifest["files"]["pytorch_model.bin"] = manifest["files"]["config.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"lists pytorch_model\.bin, which is no file of a model"):
        parse_uri(uri).download(tmp_path / "copy")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://", "is not of the form s3://bucket/path"),
        ("s3://bucket/a//b", "is not of the form"),
        ("gs://bucket/../other", "is not of the form"),
        ("file://relative/path", "is not of the form"),
        ("ftp://host/path", "is no place for models"),
        (f"az://c/model?sv=2024&sig={SECRET}", "holds a secret"),
        (f"s3://me:{SECRET}@bucket/model", "holds a secret"),
    ],
)
def test_uris_that_cannot_be_used_are_refused_without_repeating_a_secret(uri, words):
    with pytest.raises(MyPTError, match=words) as error:
        parse_uri(uri)
    assert SECRET not in str(error.value)


def test_no_secret_of_the_environment_is_sent(run_copy, bucket, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?sv=2024&sig={SECRET}x")
    store = parse_uri(f"{bucket}/model")
    (run_copy / "NOTICE").write_text(f"made with {SECRET}x\n")
    with pytest.raises(CheckpointError, match="NOTICE holds an access token") as error:
        store.outgoing(run_copy)
    assert SECRET not in str(error.value)
    (run_copy / "NOTICE").unlink()
    state = run_copy / "checkpoint-4" / "trainer_state.json"
    recipe = run_copy / "recipe.yaml"
    for path, words in ((state, f'{{"a": "{SECRET}x", '), (recipe, "# postgresql://me:hunter22@host/db\n")):
        before = path.read_text()
        path.write_text(before.replace("{", words, 1) if path is state else words + before)
        with pytest.raises(CheckpointError, match=r"holds an (access token|address with a password)") as error:
            store.outgoing(run_copy / "checkpoint-4")
        assert SECRET not in str(error.value) and "hunter22" not in str(error.value)
        path.write_text(before)
    store.send(store.outgoing(run_copy), progress=False)


def test_access_and_buckets_that_are_not_there(finished_run, s3, monkeypatch, capsys):
    from tests.stores import forget_clients

    assert main(["upload", str(finished_run), "s3://no-such-bucket-here/model"]) == 2
    assert "there is no such bucket" in capsys.readouterr().err
    assert main(["download", f"{s3}/nothing", "copy"]) == 2
    assert f"{s3}/nothing holds nothing; check the name" in capsys.readouterr().err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    forget_clients()
    assert main(["upload", str(finished_run), f"{s3}/model"]) == 2
    error = capsys.readouterr().err
    assert "you may not read or write there" in error and "AWS_PROFILE" in error and error.count("\n") == 1


def test_a_region_a_profile_and_an_endpoint_come_from_the_usual_environment(s3, tmp_path, monkeypatch):
    import os

    from mypt.remote.clients import file_system
    from tests.stores import forget_clients

    config, keys = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile work]\nregion = us-west-2\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n")
    keys.write_text(f"[work]\naws_access_key_id = of-work\naws_secret_access_key = {SECRET}\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    for name, value in (("AWS_PROFILE", "work"), ("AWS_CONFIG_FILE", config), ("AWS_SHARED_CREDENTIALS_FILE", keys)):
        monkeypatch.setenv(name, str(value))
    forget_clients()
    Place.parse(f"{s3}/a").put("b", b"content")
    assert Place.parse(f"{s3}/a").read("b") == b"content"
    client = file_system(f"{s3}/a").s3
    assert client.meta.region_name == "us-west-2"
    assert client._request_signer._credentials.access_key == "of-work"


def test_only_the_newest_checkpoints_and_the_best_stay(finished_run, bucket):
    store = ObjectStore.parse(f"{bucket}/run")
    for step in (2, 4, 6, 8, 10):
        files = store.outgoing(finished_run / "checkpoint-4")
        store.below(f"checkpoint-{step}").send(files, progress=False)
    (store.place / "checkpoint-7").put("optimizer.pt", b"half of an upload")
    (store.place / "checkpoint-12").put("optimizer.pt", b"under way elsewhere")
    removed = store.prune(2, "checkpoint-4")
    assert removed == ["checkpoint-2", "checkpoint-6", "checkpoint-7"]
    assert {name.split("/")[0] for name in store.place.files()} == {f"checkpoint-{n}" for n in (4, 8, 10, 12)}
    assert store.prune(2, "checkpoint-4") == []
    assert store.prune(1, "checkpoint-8") == ["checkpoint-4"]  # 8 was just sent, the other one is of other steps


def test_visibility_and_compression_belong_to_one_kind_of_store(finished_run, bucket, logged_in, capsys):
    assert main(["upload", str(finished_run), f"{bucket}/model", "--public"]) == 2
    assert "the rules of its bucket decide whether it is public" in capsys.readouterr().err
    assert main(["upload", str(finished_run), "hf://me/packed", "--compress", "zstd"]) == 2
    error = capsys.readouterr().err
    assert "leave out --compress" in error and TOKEN not in error
    assert "me/packed" not in logged_in.models  # no repository was made


def test_a_dataset_travels_packed_and_is_verified(corpora, bucket, tmp_path, capsys):
    pytest.importorskip("zstandard", reason="zstandard is not installed (the extra zstd)")
    for options in ([], ["--compress", "zstd"], []):
        assert main(["upload", str(corpora / "general"), f"{bucket}/general", *options]) == 0
        printed = capsys.readouterr().out
        names = Place.parse(f"{bucket}/general").files()
        assert ("train/shard_00000.bin.zst" in names) == ("train/shard_00000.bin" not in names) == bool(options)
        if options:
            assert " to 1)" in printed
        assert main(["download", f"{bucket}/general", str(tmp_path / "general")]) == 0
        assert "train         " in capsys.readouterr().out
        kept = {
            name: data for name, data in content(corpora / "general").items() if name in content(tmp_path / "general")
        }
        assert content(tmp_path / "general") == kept and "train/shard_00000.bin" in kept
        assert main(["verify", str(tmp_path / "general")]) == 0
        shutil.rmtree(tmp_path / "general")
    damaged = shutil.copytree(corpora / "general", tmp_path / "damaged")
    shard = damaged / "train" / "shard_00000.bin"
    shard.write_bytes(b"\0\0" + shard.read_bytes()[2:])
    with pytest.raises(DataError, match=r"shard_00000\.bin was changed: its checksum differs"):
        parse_uri(f"{bucket}/damaged").outgoing(damaged)


def test_what_is_packed_cannot_unpack_to_more_than_it_was(corpora, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    uri = f"file://{tmp_path / 'store'}"
    upload(corpora / "general", uri, compress=True)
    path = tmp_path / "store" / "train" / "shard_00000.bin.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(10_000_000)))
    with pytest.raises(CheckpointError, match=r"train/shard_00000\.bin does not unpack to [\d,]+ bytes"):
        parse_uri(uri).download(tmp_path / "copy")
    path.write_bytes(b"no zstd")
    with pytest.raises(CheckpointError, match="cannot be unpacked"):
        parse_uri(uri).download(tmp_path / "copy")


def test_a_missing_package_is_one_line(monkeypatch, finished_run, capsys):
    import sys

    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert main(["upload", str(finished_run), "gs://bucket/model"]) == 2
    assert 'gs:// needs the package gcsfs: pip install "mypt[gcs]"' in capsys.readouterr().err


def test_an_unreachable_store_is_tried_again_and_then_exit_1(finished_run, s3, s3_wire, capsys):
    s3_wire.cut = 0
    assert main(["upload", str(finished_run), f"{s3}/model"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    s3_wire.cut = None
    with pytest.raises(CheckFailed):
        s3_wire.cut = s3_wire.bytes
        Place.parse(f"{s3}/model").files()


@pytest.mark.slow
def test_azure_by_a_signed_token_that_nobody_sees(finished_run, az, az_server, monkeypatch, tmp_path, capsys):
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    from tests.stores import AZURE_KEY, azure_endpoint, forget_clients

    container, expiry = az.removeprefix("az://"), datetime.now(UTC) + timedelta(hours=1)
    for permission, code in (("rwdl", 0), ("rl", 2)):
        permissions = ContainerSasPermissions.from_string(permission)
        token = generate_container_sas("devstoreaccount1", container, AZURE_KEY, None, permissions, expiry)
        connection = f"{azure_endpoint(az_server)}SharedAccessSignature={token}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
        forget_clients()
        assert main(["upload", str(finished_run / "best"), f"abfs://{container}/model"]) == code
        printed = "".join(capsys.readouterr())
        signature = token.partition("sig=")[2].partition("&")[0]
        assert signature not in printed and AZURE_KEY not in printed
    assert "you may not read or write there" in printed
    assert main(["download", f"az://{container}/model", str(tmp_path / "copy")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sas", "?sas", "key", "read only", "wrong key"])
def test_an_azure_account_by_its_name_and_the_secret_of_the_environment(finished_run, azure_account, kind, tmp_path):
    """As it is with Azure itself, but for the server: the account's own host name, TLS, credentials by variables."""
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    from tests.stores import AZURE_ACCOUNT, AZURE_KEY

    container, environment, tunnel = azure_account
    permissions = ContainerSasPermissions.from_string("rl" if kind == "read only" else "rwdl")
    expiry = datetime.now(UTC) + timedelta(hours=1)
    token = generate_container_sas(AZURE_ACCOUNT, container, AZURE_KEY, None, permissions, expiry)
    secret = {
        "sas": {"AZURE_STORAGE_SAS_TOKEN": token},
        "?sas": {"AZURE_STORAGE_SAS_TOKEN": f"?{token}"},
        "key": {"AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY},
        "read only": {"AZURE_STORAGE_SAS_TOKEN": token},
        "wrong key": {"AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY[::-1].strip("=") + "=="},
    }[kind]
    uri, host = f"az://{container}/model", f"{AZURE_ACCOUNT}.blob.core.windows.net"
    upload = Command(["upload", finished_run / "best", uri], env=environment | secret, fresh=True)
    code = upload.wait()
    printed = upload.output()
    assert {*tunnel.asked} == {f"{host}:443"}
    if kind in ("sas", "?sas", "key"):
        assert code == 0, printed
        named = f"abfs://{container}@{AZURE_ACCOUNT}.dfs.core.windows.net/model"
        environment.pop("AZURE_STORAGE_ACCOUNT_NAME")
        download = Command(["download", named, tmp_path / "copy"], env=environment | secret, fresh=True)
        assert download.wait() == 0, download.output()
        printed += download.output()
        copy, sent = content(tmp_path / "copy"), content(finished_run / "best")
        assert copy["model.safetensors"] == sent["model.safetensors"]
    else:
        assert code == 2 and printed.count("\n") == 1 and "you may not read or write there" in printed, printed
    signature = token.partition("sig=")[2].partition("&")[0]
    assert signature not in printed and not any(value in printed for value in secret.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gs", "az"])
def test_other_servers_may_die_too(finished_run, kind, request, monkeypatch, capsys, tmp_path):
    """Their clients try for about a minute each time."""
    from tests.stores import AZURE_KEY, Wire, azure_endpoint, forget_clients

    bucket, port = request.getfixturevalue(kind), request.getfixturevalue(f"{kind}_server")
    wire = Wire(port)
    if kind == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{wire.port}")
    else:
        connection = f"AccountKey={AZURE_KEY};{azure_endpoint(wire.port)}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    forget_clients()
    wire.cut = 150_000
    assert main(["upload", str(finished_run / "checkpoint-4"), f"{bucket}/model"]) == 1
    error = capsys.readouterr().err
    assert "the store fails or cannot be reached" in error and error.count("\n") == 1 and AZURE_KEY not in error
    wire.cut = None
    assert main(["download", f"{bucket}/model", str(tmp_path / "copy")]) == 2
    assert main(["upload", str(finished_run / "checkpoint-4"), f"{bucket}/model"]) == 0
    assert main(["download", f"{bucket}/model", str(tmp_path / "copy")]) == 0
    wire.close()
