"""The data of a sweep: made once, the same everywhere, every source with its share, the full data only read."""

import json
from pathlib import Path

import pytest

from mypt.errors import DataError
from mypt.hardware.machine import Machine
from mypt.preparation.prepare import prepare_dataset
from mypt.recipe import parse_recipe
from mypt.shards.open_dataset import open_dataset
from mypt.sweeps.lengths import Lengths
from mypt.sweeps.sweep_data import prepare_data
from mypt.yaml12 import dump_yaml


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    """Two dataset directories of one tokenizer, of 90 and 30 documents with a tenth of each in val."""
    found, tokenizer = {}, "char"
    for name, count in (("prose", 100), ("code", 34)):
        text = tmp_path / f"{name}.jsonl"
        lines = [
            json.dumps({"text": f"{name} {number} " + "abcdefghijklmnopqrstuvwxyz 0123456789 " * 9})
            for number in range(count)
        ]
        text.write_text("\n".join(lines), encoding="utf-8")
        prepare_dataset(
            [str(text)], tmp_path / name, tokenizer, val_fraction=0.1, val_split="tail", dedup=False, progress=False
        )
        found[name] = tokenizer = str(tmp_path / name)
    return found


def test_a_subset_keeps_shares_and_repetition_and_is_made_once(sources, tmp_path, capsys):
    model = {"preset": "modern-nano", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64}  # fmt: skip
    content = {
        "model": model,
        "data": {"train": {sources["prose"]: 0.75, sources["code"]: 0.25}, "block_size": 32},
        "training": {"max_steps": 1000, "warmup_steps": 0.1, "per_device_train_batch_size": 4},
    }
    recipe, before = parse_recipe(content), stamps(tmp_path)
    data = prepare_data(recipe, tmp_path / "cache", samples=24, seed=42)
    counts = [open_dataset(directory).splits["train"].documents for directory in data.full]
    assert capsys.readouterr().out.count(f"Limiting dataset from {sum(counts)} to 24 samples") == 1
    kept = [open_dataset(directory).splits["train"].documents for directory in data.train]
    assert kept == [round(24 * count / sum(counts)) for count in counts] and data.samples == sum(kept)
    assert [*data.train.values()] == [0.75, 0.25] and [*data.eval] == ["prose", "code"]
    for name, directory in data.eval.items():  # which stay whole
        fingerprints = {open_dataset(place).fingerprint("val") for place in (directory, sources[name])}
        assert len(fingerprints) == 1
    assert before == {path: stamp for path, stamp in stamps(tmp_path).items() if path in before}
    made = stamps(tmp_path / "cache")
    assert prepare_data(recipe, tmp_path / "cache", samples=24, seed=42) == data
    assert stamps(tmp_path / "cache") == made
    elsewhere = prepare_data(recipe, tmp_path / "other", samples=24, seed=42)
    assert elsewhere.identity == data.identity
    assert prepare_data(recipe, tmp_path / "other", samples=24, seed=43).identity != data.identity

    trial = tmp_path / "trial.yaml"
    trial.write_text(dump_yaml(recipe.to_dict() | {"data": recipe.to_dict()["data"] | {"train": data.train}}))
    lengths = Lengths(trial, data, Machine("cpu", None, "float32"))
    one_step = lengths.base.tokens_per_step / lengths.base.tokens
    assert 0 <= lengths.base.passes - lengths.full.passes <= one_step
    given = lengths.overrides({"training.learning_rate": 1e-3})
    assert given["training.max_steps"] == lengths.base.steps < 300
    assert "training.warmup_steps" not in given  # a share of the steps scales by itself
    longer = lengths.overrides({"training.max_steps": 2000, "training.warmup_steps": 200})
    assert longer["training.max_steps"] in range(2 * lengths.base.steps - 1, 2 * lengths.base.steps + 1)
    assert abs(longer["training.warmup_steps"] - 0.1 * longer["training.max_steps"]) <= 1
    by_passes = lengths.overrides(
        {"training.max_steps": -1, "coverage.target": 2.0, "training.per_device_train_batch_size": 8}
    )
    half = lengths.overrides({"training.max_steps": -1, "coverage.target": 2.0})
    assert abs(half["training.max_steps"] - 2 * by_passes["training.max_steps"]) <= 2


def test_small_data_is_used_as_it_is(sources, tmp_path, capsys):
    recipe = parse_recipe({"data": {"train": sources["code"], "block_size": 32}})
    data = prepare_data(recipe, tmp_path / "cache", samples=10_000, seed=42)
    assert data.train == data.full == {sources["code"]: 1.0}
    assert "all of it is used" in capsys.readouterr().out and not (tmp_path / "cache").exists()


def test_a_sweep_needs_something_to_compare_by(sources, tmp_path):
    text = tmp_path / "prose.jsonl"
    training = {"output_dir": str(tmp_path / "run")}
    data = {"train": str(text), "val_fraction": 0}
    recipe = parse_recipe({"data": data, "tokenizer": {"name": "char"}, "training": training})
    with pytest.raises(DataError, match=r"name data\.eval"):
        prepare_data(recipe, tmp_path / "cache", samples=10, seed=42)
