"""The private methods of HF's Trainer that are overridden: three, each with the signature that it is written for."""

import ast
import inspect
from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments

import mypt
from mypt.training.arguments import RunArguments
from mypt.training.trainer.trainer import MyPTTrainer

ROOT = Path(mypt.__file__).parent
PRIVATE = {
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
}
# Public methods whose moment in the loop, not only whose meaning, MyPTTrainer relies on.
PUBLIC = {
    "create_accelerator_and_postprocess": ["self"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "log": ["self", "logs", "start_time"],
}
ADVICE = (
    "transformers has changed a method that MyPTTrainer overrides: read its new version, adapt the override in "
    "mypt/training/trainer/trainer.py, run `pytest tests/training` and `pytest -m slow tests/training`, then this list"
)


@pytest.mark.parametrize(("name", "parameters"), (PRIVATE | PUBLIC).items())
def test_signatures_are_those_that_the_overrides_are_written_for(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters, ADVICE


def private_names(*kinds: type) -> set[str]:
    """Names of the kinds that begin with one underscore: of the class, and of what its code sets on an object."""
    names = set()
    for kind in kinds:
        names |= set(vars(kind))
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(kind)))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_no_other_private_name_is_overridden():
    kinds = {MyPTTrainer: Trainer, RunArguments: TrainingArguments}
    overridden = {name for own, base in kinds.items() for name in vars(own) if name in private_names(base)}
    assert {name for name in overridden if not name.startswith("__")} == set(PRIVATE)


def test_no_other_private_name_is_read_on_something_else_than_oneself():
    theirs = private_names(Trainer, TrainerCallback, TrainingArguments, Accelerator) - set(PRIVATE)
    read = []
    for path in sorted((ROOT / "training").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in theirs and node.attr not in own:
                read.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not read


def test_the_search_finds_what_it_is_for(tmp_path):
    names = private_names(Trainer, TrainingArguments)
    assert {"_save_checkpoint", "_tr_loss", "_globalstep_last_logged", "_get_grad_norm", "_n_gpu"} <= names
