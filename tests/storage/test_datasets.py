"""Datasets and text are read straight from a store: fetched once, verified, the same as here."""

import json
import shutil

import pytest
import torch

from mypt.cli.main import main
from mypt.errors import CheckpointError, DataError, MyPTError
from mypt.recipe import load_recipe, parse_recipe
from mypt.remote import cache, copies
from mypt.remote.cache import use_cache
from mypt.remote.copies import local_path
from mypt.remote.place import Place
from mypt.shards.format import read_manifest
from mypt.storage.datasets import local_dataset
from mypt.storage.uri import parse_uri
from mypt.training.run import train
from tests.stores import SECRET


@pytest.fixture(autouse=True)
def new_process(tmp_path, monkeypatch):
    """As in a process that has used no store yet, with a cache of its own."""
    monkeypatch.setattr(cache, "_held", {})
    use_cache(str(tmp_path / "cache"))
    start_again()
    yield
    use_cache(None)
    start_again()


def start_again() -> None:
    for lock in cache._held.values():
        lock.close()
    cache._held.clear()
    local_dataset.cache_clear()
    copies._copy.cache_clear()


@pytest.fixture
def stored(corpora, bucket):
    """{name: URI} of the two corpora in a bucket."""
    return upload(corpora, bucket)


@pytest.fixture
def s3_stored(corpora, s3):
    return upload(corpora, s3)


def upload(corpora, bucket: str) -> dict[str, str]:
    uris = {name: f"{bucket}/data/{name}" for name in ("domain", "general")}
    for name, uri in uris.items():
        store = parse_uri(uri)
        store.send(store.outgoing(corpora / name), progress=False)
    return uris


def test_a_run_on_data_in_a_store_is_the_run_on_the_same_data_here(recipe_for, s3_stored, whole_run, weights, tmp_path):
    content, stored = recipe_for(), s3_stored
    content["data"] |= {
        "train": {stored["domain"]: 0.75, stored["general"]: 0.25},
        "eval": dict(stored),
        "cache_dir": str(tmp_path / "cache"),
    }
    run = train(parse_recipe(content))
    here, there = weights(whole_run), weights(run)
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert load_recipe(run).data.train == content["data"]["train"] and load_recipe(run).data.eval == stored
    identities = [json.loads((folder / "environment.json").read_text())["run"] for folder in (run, whole_run)]
    assert identities[0] == identities[1]
    content["training"]["max_steps"] = 14
    start_again()
    shutil.rmtree(tmp_path / "cache")  # another machine
    train(parse_recipe(content), resume=True)


def test_a_dataset_is_fetched_once_and_later_only_what_is_new(corpora, stored, tmp_path):
    uri = stored["general"]
    first = local_dataset(uri)
    assert first.name == "general" and read_manifest(first).fingerprint("train")
    Place.parse(uri).remove(["train/shard_00000.bin"])
    start_again()
    assert local_dataset(uri) == first  # nothing is read there but the manifest
    grown = shutil.copytree(corpora / "general", tmp_path / "grown")
    (tmp_path / "more.txt").write_text("more text for the end\n" * 200)
    assert main(["append", str(grown), "--source", str(tmp_path / "more.txt")]) == 0
    use_cache(str(tmp_path / "cache"))
    store = parse_uri(uri)
    store.send(store.outgoing(grown), progress=False)
    Place.parse(uri).remove(["train/shard_00000.bin"])
    start_again()
    second = local_dataset(uri)  # the first shard comes from the earlier copy
    assert second != first and main(["verify", str(second)]) == 0
    assert (second / "train/shard_00000.bin").samefile(first / "train/shard_00000.bin")


def test_damage_on_the_way_is_refused_and_leaves_no_copy(stored, tmp_path):
    shard = "train/shard_00000.bin"
    place = Place.parse(stored["general"])
    data = place.read(shard)
    place.put(shard, data[:-2] + bytes([data[-2] ^ 1, data[-1]]))
    with pytest.raises(CheckpointError, match=r"general/train/shard_00000\.bin is not what was uploaded"):
        local_dataset(stored["general"])
    assert not list((tmp_path / "cache").glob("*/general"))
    place.put(shard, data)
    assert local_dataset(stored["general"])


def test_a_dataset_beyond_the_limit_is_refused_in_the_words_of_a_recipe(recipe_for, stored, tmp_path):
    content = recipe_for()
    content["data"] |= {"train": {stored["domain"]: 1}, "eval": {}, "cache_limit": 1e-6}
    content["data"]["cache_dir"] = str(tmp_path / "cache")
    with pytest.raises(DataError, match=r"the cache may hold 1e-06 GB; raise data\.cache_limit, or .* data\.cache_dir"):
        train(parse_recipe(content))


def test_a_plan_reads_the_store_too(stored, tmp_path, capsys):
    options = [f"--data.train={stored['domain']}", f"--data.cache_dir={tmp_path / 'cache'}", "--json"]
    (tmp_path / "recipe.yaml").write_text("training: {output_dir: runs/x, max_steps: 10}\n")
    assert main(["plan", str(tmp_path / "recipe.yaml"), *options]) == 0
    assert f"{54_000:d}" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["text/one.txt", "text", "text/**/*.jsonl", "text/*.jsonl"])
def test_text_is_prepared_from_a_store_as_from_here(bucket, source, tmp_path, capsys):
    place, here = Place.parse(f"{bucket}/text"), tmp_path / "text"
    (here / "deep").mkdir(parents=True)
    texts = {
        name: "".join(json.dumps({"text": f"{name} {n} words in a row"}) + "\n" for n in range(30)) for name in "ab"
    }
    for name, text in {"a.jsonl": texts["a"], "deep/b.jsonl": texts["b"]}.items():
        (here / name).write_text(text)
        place.put(name, text.encode())
    if source == "text/one.txt":
        (here / "one.txt").write_text("only text\n\nin one file\n" * 20)
        place.put("one.txt", (here / "one.txt").read_bytes())
    options = ["--tokenizer", "char", "--workers", "1"]
    prepared = {}
    for name, start in (("here", str(tmp_path)), ("there", bucket)):
        command = ["prepare", "--source", f"{start}/{source}", "--out", str(tmp_path / name), *options]
        if name == "there":
            command += ["--cache-dir", str(tmp_path / "cache")]
        assert main(command) == 0
        prepared[name] = read_manifest(tmp_path / name)
    assert prepared["here"].fingerprint("train") == prepared["there"].fingerprint("train")
    assert prepared["there"].sources[0]["name"] == f"{bucket}/{source}"
    place.remove(place.files())
    start_again()
    assert main([*command[:4], str(tmp_path / "again"), *command[5:]]) == 2  # it has changed: nothing is there
    assert "matches no file in the store" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["{here}/evil.txt", "../../../evil.txt"])
def test_names_of_objects_that_lead_out_of_the_cache_are_refused(s3, tmp_path, name):
    from mypt.remote.clients import file_system

    client, bucket = file_system(s3), s3.removeprefix("s3://")
    Place.parse(f"{s3}/text").put("a.txt", b"text")
    client.call_s3("put_object", Bucket=bucket, Key=f"text/{name.format(here=tmp_path)}", Body=b"evil")
    client.invalidate_cache()
    with pytest.raises(DataError, match=r"evil\.txt', which is no path below it"):
        local_path(f"{s3}/text")
    assert not list(tmp_path.rglob("evil.txt"))
    assert local_path(f"{s3}/text/a*").endswith("/text/a*")


def test_a_signed_address_of_text_is_refused_and_not_repeated(recipe_for, tmp_path):
    source = f"file://{tmp_path}/text.jsonl?X-Amz-Signature={SECRET}"
    content = recipe_for(data={"train": source})
    for action in (lambda: local_path(source), lambda: train(parse_recipe(content))):
        with pytest.raises(MyPTError, match=r"holds a secret, .*docs/stores\.md") as error:
            action()
        assert SECRET not in str(error.value)


@pytest.mark.parametrize("glob", ["domain.txt", "dom?in.*"])
def test_a_run_trains_on_text_in_a_store(recipe_for, s3, corpora, tmp_path, glob):
    Place.parse(s3).put("domain.txt", corpora / "domain.txt")
    content = recipe_for(tokenizer={"name": "char"})
    content["data"] = {"train": f"{s3}/{glob}", "block_size": 32, "cache_dir": str(tmp_path / "cache")}
    content["training"]["max_steps"] = 4
    run = train(parse_recipe(content))
    assert load_recipe(run).data.train == {f"{s3}/{glob}": 1.0}
    content["training"]["max_steps"] = 6
    start_again()
    train(parse_recipe(content), resume=True)
