"""The space of a search is checked by the recipe's own names and rules."""

import optuna
import pytest

from mypt.errors import RecipeError
from mypt.recipe import parse_recipe
from mypt.sweeps.space import DEFAULT_SPACE, PREDEFINED, read_space


def parse(values):
    sections = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return parse_recipe(sections)


def test_intervals_and_choices_are_drawn_in_their_bounds():
    space = read_space(
        {
            "training.learning_rate": {"log": [1e-4, 1e-2]},
            "model.num_hidden_layers": {"range": [2, 9], "step": 3},
            "training.weight_decay": {"range": [0.0, 1]},
            "optimizer.schedule": ["wsd", "cosine"],
            "data.eval": [{"a": "x"}, {"b": "y"}],
            "data.curriculum": [None, {"start_length": 8, "steps": 4}],
        },
        parse,
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [space.suggest(study.ask()) for _ in range(200)]
    assert {values["model.num_hidden_layers"] for values in drawn} == {2, 5, 8}
    assert {values["optimizer.schedule"] for values in drawn} == {"wsd", "cosine"}
    assert all(values["data.eval"] in ({"a": "x"}, {"b": "y"}) for values in drawn)
    assert any(values["data.curriculum"] is None for values in drawn)
    rates = sorted(values["training.learning_rate"] for values in drawn)
    assert rates[0] >= 1e-4 and rates[-1] <= 1e-2
    assert 5e-4 < rates[100] < 2e-3  # the middle of the logarithms is 1e-3
    assert all(isinstance(values["training.weight_decay"], float) for values in drawn)
    for values in drawn[:5]:
        parse(values)


@pytest.mark.parametrize(
    ("key", "form", "words"),
    [
        ("training.learning_rat", {"log": [1e-4, 1e-2]}, "did you mean 'learning_rate'"),
        ("trainin.learning_rate", {"log": [1e-4, 1e-2]}, "did you mean 'training'"),
        ("learning_rate", {"log": [1e-4, 1e-2]}, "expected section.key"),
        ("training.learning_rate", {"log": [1e-2, 1e-4]}, "the lower one first"),
        ("training.learning_rate", {"log": [0, 1]}, "expected a number above 0"),
        ("training.learning_rate", {"range": [0.0, float("nan")]}, "expected two numbers"),
        ("training.learning_rate", {"lin": [0, 1]}, "expected a list of choices"),
        ("training.learning_rate", {"range": [0, 1], "log": [1, 2]}, "expected a list of choices"),
        ("training.learning_rate", 3e-4, "expected a list of choices"),
        ("training.learning_rate", [], "one at least"),
        ("training.learning_rate", [1e-3, 1e-3], "different choices"),
        ("training.adam_beta1", {"range": [0.5, 1.5]}, "training.adam_beta1 is 1.5, expected 0 or more, and below 1"),
        ("optimizer.cooldown", {"range": [0.1, 0.5], "step": 0.1}, "whole number beside a range of whole numbers"),
        ("optimizer.schedule", ["wsd", "cosin"], "expected one of"),
        ("optimizer.name", ["adamw", "adamv"], "did you mean"),
        ("training.output_dir", ["a", "b"], "a folder of its own"),
        ("training.label_smoothing_factor", [0.0, 0.1], "is refused"),
        ("sweep.trials", [1, 2], "leave it out"),
        ("upload.uri", ["hf://a/b"], "leave it out"),
    ],
)
def test_what_a_recipe_does_not_take_is_refused_in_one_line(key, form, words):
    with pytest.raises(RecipeError) as error:
        read_space({key: form}, parse)
    assert words in str(error.value) and key in str(error.value) and "\n" not in str(error.value)


def test_the_default_space_is_one_of_any_recipe():
    assert read_space(DEFAULT_SPACE, parse).distributions.keys() == DEFAULT_SPACE.keys()


def test_the_predefined_configurations_have_the_figures_of_the_owner():
    figures = {name: (one.full_steps, one.steps, one.full_warmup, one.warmup) for name, one in PREDEFINED.items()}
    assert figures == {
        "small_fast": (50_000, 25_000, 5_000, 2_500),
        "medium_rigorous": (100_000, 40_000, 10_000, 4_000),
        "large_quality": (200_000, 50_000, 15_000, 5_000),
        "high_lr_experiment": (75_000, 30_000, 5_000, 2_000),
        "curriculum_focus": (150_000, 45_000, 10_000, 3_000),
    }
    recipe = parse_recipe({"data": {"train": "x"}, "training": {"learning_rate": 1e-3}})
    given = {name: one.overrides(recipe, 1024) for name, one in PREDEFINED.items()}
    assert given["small_fast"] == {
        "training.max_steps": 25_000, "training.warmup_steps": 2_500, "model.preset": "modern-nano",
    }  # fmt: skip
    assert given["curriculum_focus"]["data.curriculum"] == {"start_length": 256, "steps": 15_000}
    assert given["high_lr_experiment"]["training.learning_rate"] == pytest.approx(3e-3)
    for values in given.values():
        parse(values)
    adapted = parse_recipe({"model": {"init_from": "base"}, "data": {"train": "x"}})
    assert "model.preset" not in PREDEFINED["large_quality"].overrides(adapted, 1024)
