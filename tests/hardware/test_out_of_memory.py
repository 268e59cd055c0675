"""A real refusal of the allocator becomes one error with settings that fit; anything else stays what it is."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from mypt.errors import MyPTError
from mypt.hardware.batch import room
from mypt.hardware.out_of_memory import advice, explain_out_of_memory_at_start, is_out_of_memory
from mypt.models.presets import preset_dimensions
from mypt.planning.memory import training_memory
from mypt.planning.step import Step
from tests.processes import Command

# Trains in a process that may have no more than so many MiB beyond what it has when training begins; if these are too
# few, once more with the settings that the error names.
LIMITED = """
import gc, re, resource, sys
from mypt.errors import MyPTError
from mypt.recipe import load_recipe
from mypt.training.build import build_trainer

def run(options):
    trainer = build_trainer(load_recipe(sys.argv[1], options), resume=True)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))
    try:
        trainer.train(resume_from_checkpoint=trainer.checkpoint)
    except MyPTError as error:
        return str(error)

refused = run([])
print(refused)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
gc.collect()
print("again:", run(re.findall(r"--training.[a-z_]+=[0-9]+", refused)[:2]))
"""


def advised(words: str) -> tuple[int, int]:
    found = re.search(r"per_device_train_batch_size=(\d+) --training.gradient_accumulation_steps=(\d+)", words)
    return int(found[1]), int(found[2])


def test_a_run_out_of_memory_says_what_would_fit_and_goes_on_with_it(recipe_for, tmp_path):
    content = recipe_for(model=recipe_for()["model"] | {"vocab_size": 8_192})  # logits are most of what it needs
    content["training"] |= {"max_steps": 1, "per_device_train_batch_size": 128, "save_steps": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "limited.py").write_text(LIMITED)
    process = Command([path, "350"], script=tmp_path / "limited.py")
    assert process.wait() == 0, process.output()
    printed = process.output()
    message = next(line for line in printed.splitlines() if line.startswith("out of memory at step 0; a step needs"))
    assert message.endswith("and run the same command with --resume to continue")
    size, passes = advised(message)
    assert size * passes == 128 and size < 128
    assert "again: None" in printed
    assert Path(content["training"]["output_dir"], "checkpoint-1").is_dir()


def test_advice_is_less_than_what_failed_even_if_the_estimate_was_too_low():
    dimensions = preset_dimensions("modern-tiny")
    step = Step(micro_batch_size=16, accumulation=2, block_size=1024, optimizer="muon")
    needed = training_memory(dimensions, step)["total"]
    for free in (None, 100 * needed, needed // 2):
        size, passes = map(
            int, re.search(r"batch_size=(\d+) --training.\w+=(\d+)", advice(dimensions, step, free)).groups()
        )
        assert size * passes == 32
        smaller = Step(micro_batch_size=size, accumulation=passes, block_size=1024, optimizer="muon")
        assert training_memory(dimensions, smaller)["total"] <= room(min(needed, free or needed))


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_which_errors_are_a_lack_of_memory(error, is_it):
    assert is_out_of_memory(error) == is_it


def test_a_model_that_cannot_even_be_built_is_no_traceback():
    with (
        pytest.raises(MyPTError, match=r"before the first step.*mypt estimate"),
        explain_out_of_memory_at_start(),
    ):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory_at_start():
        torch.ones(2, 3) @ torch.ones(2, 3)
