"""A checkpoint of the original MyPT is described as what it becomes."""

import pytest
import torch

from mypt.conversion.original_checkpoint import convert_checkpoint
from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.inspection.describe import describe
from mypt.inspection.original import inspect_original
from tests.checkpoints.original_mypt import OriginalModel, write_bundle, write_single
from tests.processes import bare_python


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True, "pos_encoding": "rope", "mlp_type": "swiglu"}])
def test_parameters_by_part_are_those_of_the_converted_model(tmp_path, changes):
    old = write_bundle(tmp_path / "old", OriginalModel(**changes))
    convert_checkpoint(old, tmp_path / "new")
    before, after = inspect_original(old), inspect_checkpoint(tmp_path / "new")
    assert before["parameters"] == after["parameters"] and before["problems"] == after["problems"] == []
    for name in ("layers", "heads", "width", "context", "vocabulary"):
        assert before["model"][name] == after["model"][name]
    assert (before["progress"], before["settings"]) == (
        {"step": 7, "max_steps": 9},
        {"max_iters": 9, "learning_rate": 0.1},
    )
    assert after["converted_from"]["step"] == 7


def test_a_single_file_and_its_dtypes(tmp_path):
    file = write_single(tmp_path / "old.pt", OriginalModel(per_head=True).bfloat16())
    report = inspect_original(file)
    assert (report["form"], report["era"], report["has_optimizer"]) == ("single file", "per-head", True)
    assert report["weights"]["dtypes"] == {"bfloat16": report["parameters"]["total"]}
    assert report["files"] == [{"name": "old.pt", "bytes": file.stat().st_size}]
    assert any("per-head attention" in block for block in describe(report) if isinstance(block, str))


def test_what_could_not_be_converted_is_a_problem(tmp_path):
    model = OriginalModel()
    old = write_bundle(tmp_path / "old", model, config=model.config | {"n_layer": 5})
    (problem,) = inspect_original(old)["problems"]
    assert "n_layer 5 but the weights mean 2" in problem
    assert inspect_original(old)["weights"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_tensors_are_mapped_and_not_read(tmp_path):
    model = OriginalModel()
    old = write_bundle(tmp_path / "old", model)
    torch.save(dict(model.state_dict()) | {"unknown": torch.zeros(40_000_000)}, old / "model.pt")  # 160 MB
    program = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from mypt.inspection.original import inspect_original\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before = peak(); report = inspect_original(Path({str(old)!r}))\n"
        "print(report['weights']['parameters'] > 40_000_000, (peak() - before) / 1000)"
    )
    done = bare_python(program)
    assert done.returncode == 0, done.stderr
    found, megabytes = done.stdout.split()
    assert found == "True" and float(megabytes) < 60
