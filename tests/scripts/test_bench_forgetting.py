"""The experiment on forgetting: its prototypes compute their formulas, a finished run is not repeated."""

import argparse
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_forgetting.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_forgetting", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def stepped(callback, values: list[float], lr: float = 1.0) -> torch.nn.Module:
    """A model of one weight that starts at 1 and is set to each of the values by an update."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    args = SimpleNamespace(learning_rate=1.0)
    callback.on_train_begin(args, None, None, model=model)
    for value in values:
        model.weight.data.fill_(value)
        optimizer = SimpleNamespace(param_groups=[{"lr": lr}])
        callback.on_optimizer_step(args, None, None, model=model, optimizer=optimizer)
    return model


def test_an_average_begins_at_the_base_and_forgets_it_by_its_decay(bench):
    averages = bench.Averages((0.9, 0.5))
    stepped(averages, [2.0, 4.0])
    assert averages.of[0.9][0].item() == pytest.approx(0.81 * 1 + 0.09 * 2 + 0.1 * 4)
    assert averages.of[0.5][0].item() == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 4)


def test_the_pull_goes_a_part_of_the_way_back_and_follows_the_rate(bench):
    assert stepped(bench.Pull(0.25), [5.0]).weight.item() == pytest.approx(4.0)
    assert stepped(bench.Pull(0.25), [5.0], lr=0.5).weight.item() == pytest.approx(4.5)


def test_kl_is_zero_at_the_base_and_its_formula_elsewhere(bench, adapted_models):
    """Without a mean over windows: nats per token, from the base model to the adapted one."""
    from mypt.checkpoints.load import load_model

    ids = torch.arange(32).reshape(2, 16)
    base, adapted = (load_model(adapted_models / name) for name in ("base", "adapted"))

    def added(model) -> float:
        trainer = SimpleNamespace(args=SimpleNamespace(bf16=False))
        trainer.compute_loss = lambda model, inputs, **_: (torch.zeros(()), model(input_ids=inputs["input_ids"]))
        bench.add_kl(trainer, adapted_models / "base", 0.5)
        return trainer.compute_loss(model, {"input_ids": ids}).item()

    with torch.no_grad():
        old, new = (model(input_ids=ids).logits.double().softmax(-1) for model in (base, adapted))
        expected = (old * (old.log() - new.log())).sum(-1).mean().item()
        assert added(base) == pytest.approx(0, abs=1e-6) and added(adapted) == pytest.approx(expected / 2, rel=1e-4)


def test_man_pages_lose_their_macros(bench):
    page = '.\\" a comment\n.SH ÜBERSICHT\n\\fBls\\fP \\- zeigt\n.PP\nText.\n'
    assert bench.without_macros(page) == "ÜBERSICHT\nls - zeigt\n\nText.\n"


@pytest.mark.slow
def test_a_run_is_measured_before_and_after_and_not_run_twice(bench, tmp_path, capsys):
    texts = tmp_path / "own"
    texts.mkdir()
    for name, words in (
        ("general", "the {} of a model is the {} of its text"),
        ("domain", "def f{}(x): return x + {}"),
    ):
        documents = [{"text": "\n".join(words.format(i, j) for j in range(40))} for i in range(120)]
        (texts / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    args = argparse.Namespace(
        pairs=[str(texts)],
        seeds=1,
        methods=["full", "guard: warn, replay 10%"],
        quick=True,
        plot=tmp_path / "p.png",
        work=tmp_path,
    )
    args.work = tmp_path / "work"
    bench.main(args)
    rows = [json.loads(line) for line in (args.work / "own" / "results.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == args.methods
    for row in rows:
        final = row["models"]["final"]
        assert final["after"]["general"]["delta"] <= bench.TOLERANCE + 0.05 and 0 < final["alpha"] <= 1
        base, found = row["base"]["domain"][0], final["before"]["domain"]
        assert found["loss"] - base == pytest.approx(found["delta"], abs=1e-9)
    first = capsys.readouterr().out
    bench.main(args)
    assert capsys.readouterr().out == first and "| full, average 0.95 |" in first
    assert len(rows[1]["models"]["published"]["report"]["history"]) == 3
    assert len((args.work / "own" / "results.jsonl").read_text().splitlines()) == 2
    assert args.plot.stat().st_size > 1_000 and not [*(args.work / "own" / "runs").iterdir()]
