"""Our defaults of TrainingArguments, where they are arithmetic."""

import pytest

from mypt.errors import RecipeError
from mypt.recipe import parse_recipe
from mypt.training.arguments import build_arguments, default_arguments, unused_settings


@pytest.mark.parametrize(
    ("sections", "rate"),
    [
        ({"optimizer": {"name": "adamw"}}, 0.001312),  # 0.003239 - 0.0001395 ln 1,000,000
        ({"optimizer": {"name": "muon"}}, 0.002624),
        ({"optimizer": {"name": "muon"}, "model": {"init_from": "runs/first"}}, 0.001312),
        ({"optimizer": {"name": "adamw"}, "lora": {"r": 8}, "model": {"init_from": "runs/first"}}, 0.002624),
    ],
)
def test_the_default_rate_is_kaplans_or_twice_that(sections, rate):
    assert default_arguments(parse_recipe(sections), 10**6, 100)["learning_rate"] == pytest.approx(rate, abs=2e-6)
    assert default_arguments(parse_recipe(sections), 10**11, 100)["learning_rate"] >= 1e-4


def test_the_default_warm_up_ends_before_the_run():
    warmups = [default_arguments(parse_recipe({}), 10**6, steps)["warmup_steps"] for steps in (1, 2, 19, 20, 30_000)]
    assert warmups == [0, 1, 1, 2, 2_000]


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"lr_scheduler_kwargs": {"min_lr_ratio": 0.1}}, "of optimizer.schedule wsd the settings are"),
        ({"optim_args": "rank=8"}, "optim_args is for HF's optimizers, and optimizer.name is muon"),
    ],
)
def test_what_would_be_left_unused_is_refused(training, words):
    recipe = parse_recipe({"optimizer": {"name": "muon"}, "training": {"output_dir": "runs/x"} | training})
    with pytest.raises(RecipeError, match=words):
        build_arguments(recipe, parameters=1_000, steps=10)


@pytest.mark.parametrize(
    ("optimizer", "training", "unused"),
    [
        ({"name": "muon", "momentum": 0.9, "ns_steps": 5, "cooldown": 0.3}, {}, []),
        ({"name": "adamw", "momentum": 0.9, "schedule": "linear"}, {}, ["optimizer.momentum 0.9"]),
        ({"name": "muon", "cooldown": 0.3, "schedule": "linear", "floor": 0.1}, {}, ["optimizer.cooldown 0.3"]),
        (
            {"name": "muon", "schedule": "linear", "floor": 0.1},
            {"lr_scheduler_type": "cosine"},
            ["optimizer.schedule linear", "optimizer.floor 0.1"],
        ),
    ],
)
def test_what_has_no_effect_is_said(optimizer, training, unused):
    assert unused_settings(parse_recipe({"optimizer": optimizer, "training": training})) == unused


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"deepspeed": "nope.json"}, "training: deepspeed 'nope.json' is refused by TrainingArguments"),
        ({"accelerator_config": "nope.json"}, "training: accelerator_config 'nope.json' is refused"),
        ({"ddp_backend": "pigeon"}, "training: ddp_backend 'pigeon' is refused"),
        ({"lr_scheduler_type": "cosin"}, "training: lr_scheduler_type 'cosin' is refused"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate should be set"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}, "type polynomial with .*'x'"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 9}}, "smaller than initial lr"),
        ({"lr_scheduler_type": "polynomial", "warmup_steps": 10}, "10 of 10 steps of warm-up does not work"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 1}}, "unexpected keyword argument 'cycles'"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": -9}}, "leads to a learning rate of -"),
    ],
)
def test_what_hf_refuses_is_an_error_of_the_recipe_that_names_the_key(training, words):
    recipe = parse_recipe({"optimizer": {"name": "adamw"}, "training": {"output_dir": "runs/x"} | training})
    with pytest.raises(RecipeError, match=words) as refused:
        build_arguments(recipe, parameters=1_000, steps=10)
    assert len(str(refused.value).splitlines()) == 1


def test_arguments_that_nothing_reads_are_said():
    training = {"do_train": True, "fsdp_config": {"a": 1}, "label_names": ["x"]}
    unused = unused_settings(parse_recipe({"optimizer": {"name": "muon"}, "training": training}))
    assert unused == ["training.label_names ['x']", "training.do_train True", "training.fsdp_config {'a': 1}"]
