"""A recipe: checked names, types and ranges, overrides on top, and a resolved copy that gives the same recipe."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mypt.errors import RecipeError
from mypt.recipe import (
    REFUSED_TRAINING_KEYS,
    LoraSection,
    Recipe,
    SweepSection,
    UploadSection,
    load_recipe,
    parse_recipe,
    save_recipe,
)
from mypt.yaml12 import load_yaml

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

FULL = """
model:
  {preset: modern-nano, num_hidden_layers: 2, norm_eps: 1e-5, rope_parameters: {rope_type: default, rope_theta: 5e5}}
tokenizer: {name: "010", vocab_size: 8000}
data:
  train: {"data/no: yes": 0.9, data/general: 1}
  eval: {domain: data/domain, "on": "~"}
  block_size: 128
  curriculum: {start_length: 32, steps: 100}
coverage: {target: 2}
forgetting: {target: domain, guard: [general], eval_windows: all}
optimizer: {name: adamw, schedule: cosine}
training:
  {output_dir: runs/x, learning_rate: 3e-4, eval_strategy: no, save_steps: 0.1, lr_scheduler_kwargs: {min_lr: 1e-5}}
"""


@pytest.fixture
def recipe(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, list(overrides))

    return load


def test_absent_sections_are_defaults(recipe):
    assert recipe("") == Recipe() == parse_recipe({}) == recipe("model:\ndata: {}\n")


def test_values_have_the_types_of_yaml_1_2(recipe):
    full = recipe(FULL)
    assert full.model.config == {
        "num_hidden_layers": 2,
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    assert full.tokenizer.name == "010"
    assert full.data.train == {"data/no: yes": 0.9, "data/general": 1}
    assert full.data.eval["on"] == "~"
    assert full.coverage.target == 2.0 and isinstance(full.coverage.target, float)
    assert full.training["learning_rate"] == 3e-4
    assert full.training["eval_strategy"] == "no"


@pytest.mark.parametrize("text", ["", FULL, *(path.read_text(encoding="utf-8") for path in RECIPES)])
def test_what_is_saved_is_the_same_recipe(recipe, tmp_path, text):
    original = recipe(text)
    run = tmp_path / "run"
    run.mkdir()
    save_recipe(original, run / "recipe.yaml")
    assert load_recipe(run / "recipe.yaml") == original
    # A run folder stands for its resolved recipe, wherever it was moved.
    original.training["output_dir"] = str(run)
    assert load_recipe(run) == original


def test_every_shipped_recipe_is_there():
    assert {"quickstart_general.yaml", "quickstart_domain.yaml", "pretrain.yaml"} <= {path.name for path in RECIPES}


def test_one_source_is_a_mixture_of_one(recipe):
    assert recipe("data: {train: data/x}").data.train == {"data/x": 1.0}
    assert recipe("data: {train: {a: 1}}", "--data.train=data/y").data.train == {"data/y": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {}", "unknown recipe section 'modle'; did you mean 'model'"),
        ("model: {preste: tiny}", "did you mean 'preset'"),
        ("model: {num_hidden_layer: 2}", "did you mean 'num_hidden_layers'"),
        ("model: {config: {vocab_size: 3}}", "unknown key in recipe section 'model': 'config'"),
        ("model: {keys_to_ignore_at_inference: []}", "unknown key"),
        ("data: {trian: x}", "did you mean 'train'"),
        ("training: {learning_rat: 1}", "did you mean 'learning_rate'"),
        ("training: {warmup_ratio: 0.1}", "did you mean 'warmup_steps'"),
        ("7: {}", "unknown recipe section 7"),
        ("training: {7: 1}", "unknown key in recipe section 'training': 7"),
        ("model: tiny", "section 'model' is 'tiny', expected keys"),
        ("model: []", "expected keys"),
        ("training: 0", "expected keys"),
        ("- a", "holds list"),
        ("just words", "holds str"),
        ("a: [", "not valid YAML"),
        ("model: {preset: a, preset: b}", "comes twice"),
        ("model: {preset: 3}", "model.preset is 3, expected text"),
        ("model: {num_hidden_layers: four}", "model.num_hidden_layers is 'four', expected a whole number"),
        ("model: {tie_word_embeddings: no}", "model.tie_word_embeddings is 'no', expected true or false"),
        ("model: {dtype: float33}", "float32, bfloat16, float16"),
        ("tokenizer: {vocab_size: atuo}", "expected one of: auto"),
        ("tokenizer: {train_examples: true}", "expected a whole number"),
        ("data: {train: [a, b]}", "data.train is ['a', 'b'], expected a mapping"),
        ("data: {train: {1: 1}}", "data.train names the source 1"),
        ("data: {eval: data/x}", "data.eval is 'data/x', expected a mapping"),
        ("data: {eval: {a: null}}", "data.eval holds 'a': None"),
        ("data: {block_size: 128.0}", "expected a whole number or null"),
        ("data: {block_size: 0}", "data.block_size is 0, expected 1 or more"),
        ("data: {val_split: head}", "hash, tail"),
        ("data: {order: sorted}", "expected one of: full, blocks"),
        ("data: {reading: mmap}", "expected one of: auto, ram, readahead, pread"),
        ("data: {dtype: int16}", "expected one of: uint16, uint32"),
        ("data: {curriculum: 64}", "data.curriculum is 64, expected a mapping or null"),
        ("data: {curriculum: {start_len: 64}}", "data.curriculum: 'start_len'; did you mean 'start_length'"),
        ("data: {curriculum: {start_length: 64}}", "data.curriculum lacks steps"),
        ("data: {curriculum: {start_length: 64.0, steps: 3}}", "start_length is 64.0, expected a whole number"),
        ("data: {curriculum: {start_length: 64, steps: 0}}", "steps is 0, expected 1 or more"),
        ("coverage: {confirm: yes}", "coverage.confirm is 'yes', expected true or false"),
        ("forgetting: {guard: general}", "expected a list or a mapping or null"),
        ("forgetting: {guard: {general: 1}}", "expected a list of names"),
        ("forgetting: {action: reduce}", "warn, stop, reduce_lr, raise_replay, rollback"),
        ("forgetting: {act_at: 0}", "expected 1e-06 or more"),
        ("forgetting: {eval_windows: some}", "expected one of: all"),
        ("forgetting: {eval_windows: 0}", "expected 1 or more"),
        ("forgetting: {tolerance: -0.1}", "expected a number above 0, such as 0.05"),
        ("forgetting: {tolerance: 0}", "expected a number above 0, such as 0.05"),
        ("forgetting: {tolerance: .nan}", "forgetting.tolerance is nan"),
        ("optimizer: {cooldown: 2}", "expected a number from 0 to 1"),
        ("optimizer: {ns_steps: 4294967296}", "expected a number from 1 to 100"),
        ("training: {adam_beta1: 1}", "adam_beta1 is 1.0, expected 0 or more, and below 1"),
        ("training: {eval_steps: -1}", "eval_steps is -1.0, expected 0 or more"),
        ("optimizer: {schedule: step}", "wsd, linear, cosine, constant"),
        ("training: {bf16: no}", "training.bf16 is 'no', expected true or false"),
        ("training: {learning_rate: fast}", "training.learning_rate is 'fast', expected a number"),
        ("training: {max_steps: 1e3}", "training.max_steps is 1000.0, expected a whole number"),
        ("training: {output_dir: 5}", "training.output_dir is 5, expected text"),
        ("training: {eval_strategy: epoch}", "use steps"),
        ("training: {save_strategy: epoch}", "use steps"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(recipe, text, message):
    with pytest.raises(RecipeError) as caught:
        recipe(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_are_allowed(recipe):
    assert recipe("forgetting: {tolerance: 1e-9, eval_windows: 1, time_budget: 0}").forgetting.tolerance == 1e-9
    assert recipe("optimizer: {cooldown: 1}\ndata: {block_size: 1}").optimizer.cooldown == 1.0


def test_values_that_mean_without_a_limit_or_never_are_taken(recipe):
    given = recipe("training: {max_grad_norm: .inf, eval_delay: .inf}\nforgetting: {tolerance: .inf}")
    assert given.training["max_grad_norm"] == given.training["eval_delay"] == given.forgetting.tolerance == 1e300
    for key in ("eval_steps", "save_steps", "logging_steps", "ddp_timeout"):
        assert recipe(f"training: {{{key}: 0}}").training[key] == 0
    for kind in ("default", "linear", "proportional", "longrope"):
        recipe(f"model: {{rope_parameters: {{rope_type: {kind}, factor: 2}}}}")
    recipe("model: {rope_parameters: {attention_factor: null, mscale: 0, mscale_all_dim: 0.0}}")
    for text in ("training: {max_grad_norm: .nan}", "training: {max_grad_norm: -.inf}",
                 "training: {weight_decay: .inf}", "model: {rope_parameters: {mscale: .nan}}",
                 "model: {rope_parameters: {factor: 0}}",
                 "model: {rope_parameters: {mscale: false}}"):  # fmt: skip
        with pytest.raises(RecipeError):
            recipe(text)


def test_the_recipe_of_a_larger_machine_can_be_read(recipe):
    assert recipe("training: {dataloader_num_workers: 20000}").training["dataloader_num_workers"] == 20_000


def test_a_wrong_value_in_a_run_folder_is_named_with_its_file_and_one_of_an_override_is_not(tmp_path):
    (tmp_path / "recipe.yaml").write_text("training: {weight_decay: -1}")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path, ["--training.max_steps=3"])
    assert str(caught.value) == f"{tmp_path / 'recipe.yaml'}: training.weight_decay is -1.0, expected 0 or more"
    with pytest.raises(RecipeError, match=r"^training.weight_decay is -2.0"):
        load_recipe(tmp_path, ["--training.weight_decay=-2"])
    assert load_recipe(tmp_path, ["--training.weight_decay=0"]).training["weight_decay"] == 0


@pytest.mark.parametrize("weight", ["0", "-1", ".inf", ".nan", "true", "much", "null", "[1]"])
def test_weights_are_positive_numbers(recipe, weight):
    with pytest.raises(RecipeError, match="weight of 'b'"):
        recipe(f"data: {{train: {{a: 1, b: {weight}}}}}")


@pytest.mark.parametrize("key", REFUSED_TRAINING_KEYS)
def test_refused_keys_say_why(recipe, key):
    with pytest.raises(RecipeError) as caught:
        recipe(f"training: {{{key}: true}}")
    assert str(caught.value) == f"training.{key} is refused: {REFUSED_TRAINING_KEYS[key]}"


def test_names_and_types_of_training_are_those_of_hf():
    from transformers import TrainingArguments

    names = [field.name for field in fields(TrainingArguments) if field.init]
    assert set(REFUSED_TRAINING_KEYS) <= set(names)
    for name in set(names) - set(REFUSED_TRAINING_KEYS):
        default = TrainingArguments.__dataclass_fields__[name].default
        if isinstance(default, bool | int | float):
            assert parse_recipe({"training": {name: default}}).training == {name: default}


def test_overrides_win_and_are_yaml(recipe):
    changed = recipe(
        FULL,
        "--training.learning_rate=1e-3",
        "--training.max_steps=010",
        "--model.preset=no",
        "--forgetting.guard=[a, b]",
        "--data.eval={x: data/x}",
        "--data.block_size=",
        "--tokenizer.retrain=true",
        "--training.output_dir=runs/a=b",
    )
    assert changed.training["learning_rate"] == 1e-3
    assert changed.training["max_steps"] == 10
    assert changed.training["output_dir"] == "runs/a=b"
    assert changed.model.preset == "no"
    assert changed.model.config["num_hidden_layers"] == 2, "the other keys of a section stay"
    assert changed.forgetting.guard == ["a", "b"]
    assert changed.data.eval == {"x": "data/x"}
    assert changed.data.block_size is None
    assert changed.tokenizer.retrain is True
    assert recipe("", "--model.qk_norm=false").model.config == {"qk_norm": False}
    assert recipe("", "--coverage.target=1", "--coverage.target=2").coverage.target == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.max_steps", "expected --section.key=value"),
        ("training.max_steps=3", "expected --section.key=value"),
        ("--max_steps=3", "expected --section.key=value"),
        ("--training.=3", "expected --section.key=value"),
        ("--trainin.max_steps=3", "did you mean 'training'"),
        ("--training.max_step=3", "did you mean 'max_steps'"),
        ("--model.rope_parameters.rope_theta=3", "did you mean 'rope_parameters'"),
        ("--data.train=[1", "not valid YAML"),
        ("--training.max_steps=many", "expected a whole number"),
    ],
)
def test_an_override_is_checked_like_the_file(recipe, override, message):
    with pytest.raises(RecipeError) as caught:
        recipe(FULL, override)
    assert message in str(caught.value)


def test_an_override_of_a_section_without_keys(recipe):
    with pytest.raises(RecipeError, match="'model' holds no keys"):
        recipe("model: tiny", "--model.preset=small")


def test_a_missing_or_unreadable_file(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere.yaml does not exist"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path)  # a folder without a resolved recipe
    (tmp_path / "latin.yaml").write_bytes(b"model: {preset: \xe9}")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "latin.yaml")
    if Path("/proc/self/mem").exists():  # a read that fails, as on a broken disk
        with pytest.raises(RecipeError, match=r"recipe /proc/self/mem cannot be read: Input/output error"):
            load_recipe("/proc/self/mem")


def test_reading_a_recipe_imports_no_framework(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(FULL)
    code = (
        "import sys; from mypt.recipe import load_recipe; load_recipe(sys.argv[1]);"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_the_resolved_file_shows_every_default(tmp_path):
    save_recipe(Recipe(), tmp_path / "recipe.yaml")
    content = load_yaml((tmp_path / "recipe.yaml").read_text())
    assert list(content) == [field.name for field in fields(Recipe) if field.name not in OPTIONAL]
    assert content["forgetting"]["tolerance"] == 0.05
    assert content["optimizer"]["cooldown"] == 0.2


# Sections that are off unless a recipe names them, with the keys that they must be given.
OPTIONAL = {"lora": LoraSection(), "upload": UploadSection(uri="hf://name/repository"), "sweep": SweepSection()}
PAGE = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8")


def table_after(heading: str) -> dict[str, list[str]]:
    """The first table of a section of docs/recipe.md: {first cell without backticks: the other cells}."""
    section = PAGE.split(f"\n### {heading}\n")[1].split("\n### ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


@pytest.mark.parametrize("section", [field.name for field in fields(Recipe) if field.name != "training"])
def test_the_page_lists_every_key_with_its_default(section):
    defaults = vars(OPTIONAL[section] if section in OPTIONAL else getattr(Recipe(), section))
    table = table_after(section)
    assert list(table) == [key for key in defaults if (section, key) != ("model", "config")]
    for key, (default, *_) in table.items():
        assert load_yaml(default.strip("`")) == defaults[key], f"{section}.{key}"


def test_the_page_lists_changed_defaults_and_refused_keys():
    from transformers import TrainingArguments

    from mypt.training.arguments import default_arguments

    table = table_after("training")
    hf = TrainingArguments.__dataclass_fields__
    ours = default_arguments(parse_recipe({"data": {"eval": {"a": "a"}}}), 10**6, 1_000)
    changed = {key for key in ours if ours[key] != hf[key].default or key in ("use_cpu", "bf16")}
    assert changed <= set(table)
    named = {name.strip("` ") for cell in table for name in cell.split(",")}
    assert set(REFUSED_TRAINING_KEYS) <= named
    assert not set(REFUSED_TRAINING_KEYS) & set(ours)


@pytest.mark.parametrize(
    "name", ["a: b", "a #1", "[x]", "{y}", "*z", "&q", "'s'", '"d"', "1e3", "true", "null", "- m", "%p"]
)
def test_an_override_takes_a_path_that_exists_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    Path("r.yaml").write_text("data: {train: x}")
    recipe = load_recipe("r.yaml", [f"--data.train={name}", "--training.output_dir=runs/a #1: b"])
    assert (recipe.data.train, recipe.training["output_dir"]) == ({name: 1.0}, "runs/a #1: b")
    save_recipe(recipe, "saved.yaml")
    assert load_recipe("saved.yaml") == recipe
    assert load_recipe("r.yaml", ["--data.train=*.none", "--model.init_from=null"]).data.train == {"*.none": 1.0}
    assert load_recipe("r.yaml", ["--data.train={a: 1, 'b: c': 2}"]).data.train == {"a": 1, "b: c": 2}
