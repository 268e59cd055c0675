"""Two small corpora of one tokenizer, a recipe for a tiny model on them, a finished run and copies of it to spoil."""

import argparse
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from filelock import FileLock


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make(folder)` fills, of one name and only to read, for all processes of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():  # a name that is there is a whole folder: whoever fails leaves no folder
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> Path:
    """A folder with the dataset directories `general` (prose) and `domain` (code), character level."""
    return made_once(tmp_path_factory, "corpora", write_corpora)


def write_corpora(root: Path) -> None:
    from mypt.preparation.prepare import prepare_dataset

    prose = "\n\n".join(text for _, text in sorted(topics.items()))[:60_000]
    (root / "general.txt").write_text(prose, encoding="utf-8")
    (root / "domain.txt").write_text(inspect.getsource(argparse)[:60_000], encoding="utf-8")
    options = {"val_split": "tail", "progress": False}
    prepare_dataset([str(root / "general.txt")], root / "general", tokenizer="char", **options)
    prepare_dataset([str(root / "domain.txt")], root / "domain", tokenizer=str(root / "general"), **options)


@pytest.fixture(scope="session")
def tiny_recipe(corpora):
    """tiny_recipe(output_dir, section={key: value}): as `recipe_for`, into any folder."""

    def build(output_dir: Path, **sections) -> dict:
        content = {
            "model": {
                "preset": "modern-nano",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "intermediate_size": 64,
                "max_position_embeddings": 64,
                "hidden_dropout": 0.1,
            },
            "data": {
                "train": {str(corpora / "domain"): 0.75, str(corpora / "general"): 0.25},
                "eval": {"domain": str(corpora / "domain"), "general": str(corpora / "general")},
                "block_size": 32,
            },
            "coverage": {"confirm": False},
            "forgetting": {"eval_windows": 20},
            "optimizer": {"schedule": "constant"},
            "training": {
                "output_dir": str(output_dir),
                "max_steps": 12,
                "per_device_train_batch_size": 4,
                "eval_steps": 4,
                "save_steps": 4,
                "save_total_limit": None,
                "logging_steps": 2,
                "learning_rate": 3e-3,
                "bf16": False,
            },
        }
        for name, values in sections.items():
            content[name] = content.get(name, {}) | values
        return content

    return build


@pytest.fixture
def recipe_for(tiny_recipe, tmp_path):
    """recipe_for(section={key: value}): the content of a recipe whose run takes a few seconds."""
    return lambda **sections: tiny_recipe(tmp_path / "run", **sections)


@pytest.fixture(scope="session")
def whole_run(tiny_recipe, tmp_path_factory) -> Path:
    """The folder of the finished run of `recipe_for()`: 12 steps, saved and evaluated at each fourth; only to read."""
    from mypt.recipe import parse_recipe
    from mypt.training.run import train

    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "matplotlib.figure", None)
            train(parse_recipe(tiny_recipe(root / "run")))

    return made_once(tmp_path_factory, "whole", make) / "run"


@pytest.fixture
def whole_copy(whole_run, tmp_path) -> Path:
    """A copy of `whole_run` where `recipe_for()` has its run."""
    return shutil.copytree(whole_run, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(corpora, tmp_path_factory) -> Path:
    """The folder of a run of 4 steps, saved and evaluated at each second one."""
    from mypt.recipe import parse_recipe
    from mypt.training.run import train

    sources = {name: str(corpora / name) for name in ("domain", "general")}
    dimensions = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    dimensions |= {"head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 64}
    steps = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "bf16": False}
    content = {
        "model": {"preset": "modern-nano"} | dimensions,
        "data": {"train": {sources["domain"]: 0.75, sources["general"]: 0.25}, "eval": sources, "block_size": 32},
        "coverage": {"confirm": False},
        "forgetting": {"eval_windows": 10},
        "training": {"learning_rate": 3e-3} | steps,
    }

    def make(root: Path) -> None:
        content["training"]["output_dir"] = str(root / "run")
        train(parse_recipe(content))

    return made_once(tmp_path_factory, "finished", make) / "run"


@pytest.fixture
def run_copy(finished_run, tmp_path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def weights():
    """weights(folder): the tensors of a saved model by name."""
    from safetensors.torch import load_file

    return lambda folder: load_file(Path(folder) / "model.safetensors")


@pytest.fixture
def rewind():
    """rewind(run, target, step): a copy of a run folder as it was right after the save at `step`."""

    def copy(run: Path, target: Path, step: int) -> Path:
        shutil.copytree(run, target)
        for path in target.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)
        for name in ("model.safetensors", "checksums.json", "coverage.json", "forgetting.json"):
            (target / name).unlink(missing_ok=True)
        return target

    return copy


@pytest.fixture(scope="session")
def adapted_models(corpora, tmp_path_factory) -> Path:
    """A folder with the model `base`, trained on prose, and `adapted`, trained further on code, by a bare loop."""
    return made_once(tmp_path_factory, "models", lambda root: train_bare(root, corpora))


def train_bare(root: Path, corpora: Path) -> None:
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM, ShardStream
    from mypt.tokenization.load import load_tokenizer, save_tokenizer

    tokenizer = load_tokenizer(corpora / "general")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    vocabulary = -(-len(tokenizer) // 64) * 64
    model = MyPTForCausalLM(MyPTConfig(vocab_size=vocabulary, max_position_embeddings=32, **sizes))
    for source, name, steps, rate in (("general", "base", 200, 1e-2), ("domain", "adapted", 60, 5e-3)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        batches = iter(ShardStream(corpora / source, block_size=32, micro_batch_size=16))
        model.train()
        for _ in range(steps):
            model(**next(batches)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(root / name)
        save_tokenizer(tokenizer, root / name)


@pytest.fixture(scope="session")
def untrained_models(corpora, tmp_path_factory) -> Path:
    """A folder with the models `first` and `second`, of other random weights each, and the tokenizer of `corpora`."""
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM
    from mypt.tokenization.load import load_tokenizer, save_tokenizer

    root, tokenizer = tmp_path_factory.mktemp("untrained"), load_tokenizer(corpora / "general")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        vocabulary = -(-len(tokenizer) // 64) * 64
        config = MyPTConfig(vocab_size=vocabulary, max_position_embeddings=32, initializer_range=0.3, **sizes)
        MyPTForCausalLM(config).save_pretrained(root / name)
        save_tokenizer(tokenizer, root / name)
    return root
