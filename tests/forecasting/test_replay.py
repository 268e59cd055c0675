"""Probes of `mypt plan --replay`: each is the run that `mypt train` would make of so many steps; what cannot be probed
is refused in one line."""

import json
import os
import tempfile
from pathlib import Path

import pytest
import yaml

from mypt.cli.main import main
from mypt.forecasting.replay import plan_probes
from mypt.planning.plan import PlannedRun
from mypt.recipe import load_recipe, parse_recipe


@pytest.fixture
def adaptation(corpora, finished_run, recipe_for, tmp_path):
    """adaptation(section={key: value}): the path of a recipe that adapts a tiny model to code and guards prose."""

    def write(**sections):
        domain, general = str(corpora / "domain"), str(corpora / "general")
        content = recipe_for(
            data={"train": domain, "eval": {"domain": domain, "general": general}},
            forgetting={"target": "domain", "guard": ["general"], "eval_windows": 10},
            optimizer={"schedule": "wsd"},
        )
        content["model"] = {"init_from": str(finished_run)}
        for name, values in sections.items():
            content[name] = content.get(name, {}) | values
        path = tmp_path / "adapt.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def advice(capsys):
    """advice(recipe, ...): what `mypt plan --replay --json` prints."""

    def run(*arguments):
        assert main(["plan", *arguments, "--replay", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["replay"]

    return run


def test_probes_are_the_runs_of_that_length(adaptation, advice, corpora, tmp_path, monkeypatch):
    """The end of each longest probe is that of `mypt train` of the same length and mixture, to the last bit; nothing
    is left behind, and the run's folder is not made."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    recipe = adaptation()
    found = advice(recipe, "--probe-steps", "4", "--replay-ratios", "0,25%")
    assert [(probe["ratio"], probe["steps"]) for probe in found["probes"]] == [
        (0, 1), (0, 2), (0, 4), (0.25, 1), (0.25, 2), (0.25, 4),
    ]  # fmt: skip
    assert not (tmp_path / "run").exists() and not os.listdir(scratch)
    assert [prediction["ratio"] for prediction in found["predictions"]] == sorted({0, 0.25, found["ratio"] or 0})
    assert 0 <= found["interpolated"]["alpha"] <= 1

    mixture = f"{{{corpora / 'domain'}: 0.75, {corpora / 'general'}: 0.25}}"
    changes = [f"--data.train={mixture}", "--training.max_steps=4", f"--training.output_dir={tmp_path / 'whole'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        assert main(["train", recipe, *changes]) in (0, 1)
    last = json.loads((tmp_path / "whole" / "forgetting.json").read_text())["history"][-1]
    assert found["probes"][-1]["sets"] == last["sets"]


def test_a_probe_keeps_the_shape_of_the_runs_schedule(adaptation):
    """What counts steps is shortened as the run is; what follows from the length is left to it."""
    from mypt.forecasting.replay import _recipe

    content = adaptation(
        training={"max_steps": 80, "warmup_steps": 20, "eval_delay": 3, "report_to": ["tensorboard"]},
        data={"curriculum": {"start_length": 8, "steps": 40}},
        safety={"early_stopping_patience": 2},
    )
    probes = _planned(content, steps=80, probe_steps=20)
    probe = _recipe(probes, 0.25, 20, Path("place"))
    assert probes.lengths == (5, 10, 20)
    assert probe.training["warmup_steps"] == 5 and probe.training["max_steps"] == 20
    assert probe.data.curriculum == {"start_length": 8, "steps": 10}
    assert probe.safety.early_stopping_patience is None and "eval_delay" not in probe.training
    assert probe.training["report_to"] == "none"
    assert "warmup_steps" not in _recipe(_planned(adaptation()), 0.25, 4, Path("place")).training


def test_the_option_is_the_mixture(adaptation, corpora):
    """A mixture that the recipe has keeps its proportions; the guard's own directory is what is replayed."""
    domain, general = str(corpora / "domain"), str(corpora / "general")
    probes = _planned(adaptation(data={"train": {domain: 6.0, general: 2.0}}))
    assert probes.now == 0.25 and probes.sources(0.05) == {domain: 0.95, general: 0.05}
    assert probes.sources(0.0) == {domain: 1.0}
    option = probes.option(0.05).replace("'", "")
    assert load_recipe(adaptation(), [option]).data.train == {domain: 0.95, general: 0.05}


def _planned(recipe, **options):
    run = PlannedRun(batch_size=4, block_size=32, steps=options.pop("steps", 12))
    return plan_probes(recipe, [], run, windows=10, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model.init_from="], "model.init_from"),
        (["--forgetting.guard=[]"], "forgetting.guard names no set"),
        (["--data.train=DOMAIN.txt"], "is text: mypt prepare"),
        (["--data.train=GENERAL"], "only what the guard would replay"),
        (["--forgetting.guard=[other]"], "forgetting names the set 'other'"),
        (["--replay-ratios=0"], "expected two or more"),
        (["--replay-ratios=0,0.0001"], "expected two or more"),
        (["--replay-ratios=0,95%"], "expected two or more"),
        (["--training.max_steps=3"], "expected 4 or more"),
        (["--model.init_from=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_line(adaptation, corpora, capsys, changes, message):
    named = [
        change.replace("DOMAIN", str(corpora / "domain")).replace("GENERAL", str(corpora / "general"))
        for change in changes
    ]
    assert main(["plan", adaptation(), "--replay", *named]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_only_recipes_have_probes(capsys):
    assert main(["plan", "modern-nano", "--tokens", "1M", "--replay"]) == 2
    assert "--replay runs probes of a recipe" in capsys.readouterr().err


def test_options_of_probes_need_them(capsys):
    assert main(["plan", "modern-nano", "--tokens", "1M", "--probe-steps", "8"]) == 2
    assert "are for --replay" in capsys.readouterr().err


def test_a_probe_that_diverges_is_named(adaptation, capsys):
    assert main(["plan", adaptation(), "--replay", "--probe-steps=4", "--training.learning_rate=1e30"]) in (1, 2)
    assert capsys.readouterr().err.strip().count("mypt plan:") == 1


def test_a_mapping_of_replay_sources(adaptation, corpora):
    """`forgetting.guard: {name: source}` replays what it names."""
    recipe = parse_recipe(yaml.safe_load(Path(adaptation()).read_text()))
    recipe.forgetting.guard = {"general": str(corpora / "domain")}
    from mypt.forecasting.replay import _split

    recipe.data.train = {str(corpora / "general"): 1.0}
    now, domain, replay, policy = _split(recipe)
    assert (now, [*domain], [*replay]) == (0, [str(corpora / "general")], [str(corpora / "domain")])
    assert [*policy.guard] == ["general"]
