"""The space of a recipe in Trainer.hyperparameter_search, with MyPT's own Trainer (docs/fidelity.md has HF's)."""

import optuna
import pytest
import yaml
from transformers import TrainerCallback

from mypt.errors import RecipeError
from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.recipe import load_recipe
from mypt.sweeps.space import TRAINER_KEYS, hp_space
from mypt.training.build import build_trainer

RANGES = {
    "learning_rate": {"log": [1e-4, 1e-1]}, "weight_decay": {"range": [0.1, 0.3]}, "adam_beta1": {"range": [0.5, 0.8]},
    "adam_beta2": {"range": [0.6, 0.7]}, "adam_epsilon": {"log": [1e-9, 1e-7]}, "max_grad_norm": {"range": [0.5, 2.0]},
    "warmup_steps": [1, 2],
}  # fmt: skip


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    def write(space: dict, **sections):
        content = tiny_recipe(tmp_path / "run", **sections) | {"sweep": {"space": space}}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_names_are_those_of_training_arguments_and_values_those_of_the_space(recipe_file):
    space = hp_space(recipe_file({f"training.{name}": form for name, form in RANGES.items()}))
    assert set(RANGES) == set(TRAINER_KEYS)
    chosen = space(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
    assert chosen.keys() == set(TRAINER_KEYS) and 1e-4 <= chosen["learning_rate"] <= 1e-1
    assert chosen["warmup_steps"] in (1, 2)


def test_what_that_search_does_not_reach_is_refused(recipe_file):
    for key, form in {"model.hidden_size": [32, 64], "training.per_device_train_batch_size": [4, 8],
                      "optimizer.cooldown": {"range": [0.1, 0.5]}, "training.max_steps": [4, 8]}.items():  # fmt: skip
        with pytest.raises(RecipeError, match=f"sweep.space {key}: .*`mypt sweep` searches every key"):
            hp_space(recipe_file({key: form}))
    with pytest.raises(RecipeError, match="has no sweep"):
        hp_space(recipe_file({}))
    with pytest.raises(RecipeError, match="learning_rate"):
        hp_space(recipe_file({"training.learning_rat": [1e-3]}))


class Seen(TrainerCallback):
    """What each trial trained with."""

    def __init__(self):
        self.settings = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        optimizer = getattr(optimizer, "optimizer", optimizer)
        decayed = max(optimizer.param_groups, key=lambda group: group["weight_decay"])
        adam = next(group for group in optimizer.param_groups if not group.get("muon"))
        self.settings.append(
            {"learning_rate": decayed["initial_lr"], "weight_decay": decayed["weight_decay"],
             "adam_beta1": adam["betas"][0], "adam_beta2": adam["betas"][1], "adam_epsilon": adam["eps"],
             "max_grad_norm": args.max_grad_norm, "warmup_steps": args.warmup_steps}
        )  # fmt: skip


def test_the_optimizer_of_a_trial_follows_its_arguments(recipe_file):
    trainer = build_trainer(load_recipe(recipe_file({}, training={"learning_rate": 3e-3, "weight_decay": 0.1})))
    trainer.hp_search_backend = "optuna"
    args = trainer.args
    args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2, args.adam_epsilon = 0.5, 0.4, 0.3, 0.2, 0.1
    groups = trainer.create_optimizer().param_groups
    assert {group["lr"] for group in groups} == {0.5} and {group["weight_decay"] for group in groups} == {0.4, 0.0}
    adam = next(group for group in groups if not group.get("muon"))
    assert adam["betas"] == (0.3, 0.2) and adam["eps"] == 0.1
    trainer.give_back()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw_torch"])
def test_each_trial_of_our_trainer_trains_with_its_own_values(recipe_file, optimizer):
    steps = {"max_steps": 3, "eval_steps": 3, "save_steps": 3}
    path = recipe_file(
        {f"training.{name}": form for name, form in RANGES.items()}, training=steps, optimizer={"name": optimizer}
    )
    seen = Seen()
    trainer = build_trainer(load_recipe(path), callbacks=[seen])
    config = trainer.model.config
    trainer.model_init = lambda trial: MyPTForCausalLM(config)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    values = []
    best = trainer.hyperparameter_search(
        hp_space=hp_space(path),
        backend="optuna",
        direction="minimize",
        n_trials=2,
        compute_objective=lambda metrics: values.append(metrics["eval_constrained_loss"]) or values[-1],
        sampler=optuna.samplers.RandomSampler(seed=1),
    )
    trainer.give_back()
    assert len(seen.settings) == 2 and len({round(value, 6) for value in values}) == 2
    chosen = seen.settings[int(best.run_id)]
    assert {f"training.{name}": value for name, value in chosen.items()} == pytest.approx(best.hyperparameters)
    assert best.objective == min(values)
