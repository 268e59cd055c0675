"""What of HF's Trainer is private and used all the same: three methods, each with the signature it is written for."""

import ast
import inspect
from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainingArguments

import mypt

ROOT = Path(mypt.__file__).parent
PRIVATE = {
    # The weights are loaded inside `train`, by it alone: FSDP2's from whole files, GPT-NeoX's from other names.
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    # The recipe's settings win over the saved ones, and a damaged file is one clear error.
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    # Under FSDP2 Trainer would write a folder of shards that only the same number of processes can read.
    "_save_optimizer_and_scheduler": ["self", "output_dir"],
}
# Public methods of which MyPTTrainer needs the moment in the loop, not only the meaning.
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
    "transformers or accelerate changed a method that MyPTTrainer relies on: read its new version, adapt "
    "mypt/training/trainer/trainer.py, run `pytest tests/training` and `pytest -m slow tests/training`, then this list"
)
KINDS = (Trainer, TrainerCallback, TrainingArguments, Accelerator)


@pytest.mark.parametrize(("name", "parameters"), (PRIVATE | PUBLIC).items())
def test_signatures_are_those_that_the_overrides_are_written_for(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters, ADVICE


def test_the_gradient_norm_passes_where_it_is_kept():
    assert list(inspect.signature(Accelerator.clip_grad_norm_).parameters)[:3] == ["self", "parameters", "max_norm"]
    for method in (Trainer._clip_grad_norm, Trainer._get_grad_norm):
        assert "self.accelerator.clip_grad_norm_(" in inspect.getsource(method), ADVICE


def test_a_checkpoint_begins_with_the_model_and_ends_with_on_save():
    """Between the two `CompleteSave` marks the folder as unfinished."""
    begin = inspect.getsource(Trainer._save_checkpoint)
    first = min(begin.index(call) for call in ("save_model(", "_save_optimizer_and_scheduler(", "_save_rng_state("))
    assert begin.index("self.save_model(output_dir, _internal_call=True)") == first - len("self."), ADVICE
    after = inspect.getsource(Trainer._maybe_log_save_evaluate).split("self._save_checkpoint(")[1]
    assert "callback_handler.on_save(" in after, ADVICE


def private_names(kind: type) -> set[str]:
    """Names that begin with one underscore: of the class, and of what its own code sets on an object."""
    tree = ast.parse(inspect.getsource(kind))
    names = {node.attr for node in ast.walk(tree) if _is_of(node, "self")} | set(vars(kind))
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _is_of(node: ast.AST, *owners: str) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners


def used(tree: ast.AST, kinds: dict[str, set[str]]) -> set[tuple[str, int]]:
    """(name, line) of each private name of the kinds that a module overrides, sets or reads.

    kinds: {name of the class: its private names}; a class of the module that is derived from one is one, too.
    """
    found, kinds = set(), dict(kinds)
    every = set().union(*kinds.values())
    own = set()  # `self._name` in a class that has nothing to do with the kinds
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [kinds[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in kinds]
        theirs = kinds[node.name] = set().union(*bases)
        defined = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        found |= {(part.name, part.lineno) for part in defined if part.name in theirs}
        own |= {part for part in ast.walk(node) if _is_of(part, "self", "cls") and part.attr not in theirs}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in every and node not in own:
            found.add((node.attr, node.lineno))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            names = [value.value for value in node.args if isinstance(value, ast.Constant) and value.value in every]
            found |= {(name, node.lineno) for name in names}
    return found


def test_no_other_private_name_is_overridden_or_read():
    kinds = {kind.__name__: private_names(kind) for kind in KINDS}
    kinds |= {"MyPTTrainer": kinds["Trainer"], "RunArguments": kinds["TrainingArguments"]}
    seen = set()
    for path in sorted(ROOT.rglob("*.py")):
        for name, line in used(ast.parse(path.read_text(encoding="utf-8")), kinds):
            assert name in PRIVATE, f"{path}:{line} uses {name}, which is private to transformers or accelerate"
            seen.add(name)
    assert seen == set(PRIVATE) and len(PRIVATE) <= 3


def test_the_search_finds_what_it_is_for():
    kinds = {kind.__name__: private_names(kind) for kind in KINDS}
    assert {"_save_checkpoint", "_tr_loss", "_globalstep_last_logged", "_get_grad_norm"} <= kinds["Trainer"]
    assert "_n_gpu" in kinds["TrainingArguments"]
    module = ast.parse(
        "class Mine(Trainer):\n def _save(self): super()._save_rng_state('x')\n"
        " def f(self): self._tr_loss = 0; self._mine = 1\n"
        "class Third(Mine):\n def g(self): return self._total_loss_scalar\n"
        "class Other:\n def _save(self): self._tr_loss = 1\n"
        "def f(trainer, args): return trainer._get_grad_norm, setattr(args, '_n_gpu', 1), hasattr(trainer, 'model')\n"
    )
    assert {name for name, _ in used(module, kinds)} == {
        *("_save", "_save_rng_state", "_tr_loss", "_total_loss_scalar", "_get_grad_norm", "_n_gpu"),
    }
    assert ("_tr_loss", 7) not in used(module, kinds), "of a class of one's own"
