"""Every architecture goes through every command, or is refused with a reason."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import zoo


@pytest.mark.slow
def test_two_architectures_and_a_mistake(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pytest.importorskip("peft")
    steps = ("train", "4x1 = 1x4", "evaluate", "export")
    monkeypatch.setattr(zoo, "STEPS_OF", {step: zoo.STEPS_OF[step] for step in steps})
    assert zoo.main([str(tmp_path / "zoo"), "--only", "gpt2", "mixtral", "bert"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert rows["gpt2"] == ["ok"] * 4 + ["(gpt2)"]
    assert rows["mixtral"] == ["ok"] * 3 + ["refused"]
    assert rows["bert"] == ["refused"] * 2  # train, evaluate


def test_a_fault_is_a_failed_cell(tmp_path, capsys, monkeypatch):
    """The table can tell: a model that is accepted by mistake, a command that ends in a traceback, a false number."""
    monkeypatch.setitem(zoo.MISTAKES, "llama_base", ("LlamaForCausalLM", "Llama", zoo.GROUPED))
    monkeypatch.setattr(zoo, "MISTAKEN", ("evaluate",))
    monkeypatch.setattr(
        zoo, "STEPS_OF", {"plan": lambda *_: 1 / 0, "estimate": lambda _, folder: zoo._counted(folder, 1)}
    )
    monkeypatch.setattr(zoo, "stock", lambda folder: zoo.AutoModelForCausalLM.from_pretrained(folder / "model"))
    world = zoo.World(tmp_path / "zoo")
    assert zoo.visit(world, "llama_base") == {"evaluate": "FAILED: accepted"}
    row = zoo.visit(world, "llama")
    assert row["plan"] == "FAILED: ZeroDivisionError: division by zero"
    assert row["estimate"].startswith("FAILED: 1 parameters, the model has")


@pytest.mark.slow
def test_nothing_fails(tmp_path):
    pytest.importorskip("peft")
    assert zoo.main([str(tmp_path / "zoo")]) == 0
