"""The optimizer that a run takes where its recipe leaves it open: chosen once, printed once, kept by a resume."""

import pytest

from mypt.errors import RecipeError
from mypt.hardware.machine import machine_of
from mypt.models.presets import preset_dimensions
from mypt.recipe import load_recipe, parse_recipe, save_recipe
from mypt.training.build import build_trainer
from mypt.training.launch import refuse_zero
from mypt.training.recipe_settings import choose_run_optimizer
from mypt.training.run import train
from mypt.training.target import read_target

FEW, MANY = 1, 64  # sequences of 8 tokens in a step


@pytest.fixture
def small_steps(recipe_for):
    def build(sequences: int, **optimizer) -> dict:
        content = recipe_for(data={"block_size": 8}, optimizer=optimizer, forgetting={"eval_windows": 2})
        sizes = {"per_device_train_batch_size": sequences, "max_steps": 2, "save_steps": 1}
        content["training"] = {**content["training"], **sizes}
        return content

    return build


def lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("optimizer: ")]


def test_auto_is_chosen_once_and_a_resume_keeps_it(small_steps, capsys):
    run = train(parse_recipe(small_steps(FEW)))
    (line,) = lines(capsys.readouterr().out)
    assert line.startswith("optimizer: adamw (auto: Muon's Newton-Schulz products would be ")
    assert "of a step of 8 tokens; bound" in line
    assert load_recipe(run).optimizer.name == "adamw"

    content = small_steps(MANY)  # a new run would take Muon
    content["training"]["max_steps"] = 3
    train(parse_recipe(content), resume=True)
    assert lines(capsys.readouterr().out) == ["optimizer: adamw (as when the run began)"]
    assert load_recipe(run).optimizer.name == "adamw"


@pytest.mark.parametrize(("sequences", "name"), [(FEW, "adamw"), (MANY, "muon")])
def test_a_plan_chooses_as_the_run_does(small_steps, capsys, tmp_path, sequences, name):
    content = small_steps(sequences)
    trainer = build_trainer(parse_recipe(content))
    (line,) = lines(capsys.readouterr().out)
    trainer.create_optimizer()
    assert any(group["muon"] for group in trainer.optimizer.param_groups) == (name == "muon")
    save_recipe(parse_recipe(content), tmp_path / "planned.yaml")
    planned = read_target(str(tmp_path / "planned.yaml"), [], machine_of(trainer.args.device)).choices["optimizer"]
    assert line == f"optimizer: {planned.value} ({planned.reason})"
    assert planned.value == name


@pytest.mark.parametrize(
    ("section", "training", "expected"),
    [
        ({"name": "muon"}, {}, "muon (as the recipe says)"),
        ({"name": "adafactor"}, {}, "adafactor (as the recipe says)"),
        ({}, {"optim": "adamw_torch"}, "adamw_torch (as the recipe says)"),
        ({"name": None}, {}, "adamw (auto: "),
    ],
)
def test_what_is_given_wins(small_steps, capsys, section, training, expected):
    content = small_steps(FEW, **section)
    content["training"] |= training
    build_trainer(parse_recipe(content))
    (line,) = lines(capsys.readouterr().out)
    assert line.startswith(f"optimizer: {expected}")


ZERO_2, ZERO_3 = ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in "23")
# sections of a recipe, the launch's environment, processes that share the weights: what `auto` takes, and why
AUTO = {
    "alone": ({}, {}, 1, "muon", "Newton-Schulz"),
    "FSDP2": ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, 2, "muon", "Newton-Schulz"),
    "ZeRO-2": ({}, ZERO_2, 2, "adamw", "ZeRO-2 cuts matrices up"),
    "ZeRO-3": ({}, ZERO_3, 2, "adamw", "ZeRO-3 cuts matrices up"),
    "DeepSpeed without ZeRO": ({}, ZERO_2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, 1, "muon", "Newton-Schulz"),
    "DeepSpeed by the recipe": ({"training": {"deepspeed": "zero.json"}}, {}, 1, "adamw", "ZeRO-2 cuts matrices up"),
    "adapters": ({"model": {"init_from": "base"}, "lora": {}}, ZERO_2, 2, "adamw", "adapters"),
    "4 bits": ({"model": {"init_from": "base"}, "lora": {"load_in_4bit": True}}, {}, 1, "adamw", "adapters"),
    "frozen layers": ({"model": {"freeze_layers": 2, "freeze_embeddings": True}}, {}, 1, "muon", "Newton-Schulz"),
    "fp16": ({"training": {"fp16": True}}, {}, 1, "muon", "Newton-Schulz"),
    "rollback": ({"safety": {"on_nan": "rollback"}}, {}, 1, "muon", "Newton-Schulz"),
    "tokens per step": ({"data": {"tokens_per_step": 8}}, {}, 1, "adamw", "a step of 8 tokens"),
    "another architecture": (None, {}, 1, "adamw", "not MyPT's own class"),
}


@pytest.mark.parametrize("case", AUTO)
def test_auto_takes_what_can_run(case, monkeypatch):
    """What a launch or a recipe refuses of Muon is in `refuse_zero` and in the parsing of the recipe."""
    sections, environment, fsdp, name, reason = AUTO[case]
    for variable in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    recipe = parse_recipe(sections or {})
    dimensions = preset_dimensions("modern-nano") if sections is not None else None
    chosen = choose_run_optimizer(recipe, dimensions, 256, processes=fsdp, fsdp=fsdp)
    assert chosen.value == name and chosen.reason.startswith("auto: ") and reason in chosen.reason
    refuse_zero(chosen.value, recipe.training)
    parse_recipe((sections or {}) | {"optimizer": {"name": chosen.value}})


@pytest.mark.parametrize(("environment", "words"), [(ZERO_2, "ZeRO-2 .* optimizer.name: adamw"), ({}, None)])
def test_muon_that_is_asked_for_is_refused_where_matrices_are_cut_up(environment, words, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    refuse_zero("adamw", {})
    if words:
        with pytest.raises(RecipeError, match=words):
            refuse_zero("muon", {})
    else:
        refuse_zero("muon", {})
        with pytest.raises(RecipeError, match="ZeRO-2"):
            refuse_zero("muon", {"deepspeed": "zero.json"})
