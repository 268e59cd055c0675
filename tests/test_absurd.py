"""No value of a recipe or of an option is so absurd that it ends in anything but one line: a seeded sample of all."""

import argparse
import contextlib
import io
import math
import random
import typing

import pytest
import yaml

from mypt.cli.main import build_parser
from mypt.errors import RecipeError
from mypt.recipe import Recipe, class_fields, load_recipe, parse_recipe

HUGE = 10**400
VALUES = [None, "", "x", "a\0b", "a\nb", "😀", "y" * 20_000, "nope.yaml", "~", "..", "*", "[a-", "(?P<", "auto", "1e3",
          [], [1], ["a"], [["a"]], {}, {"a": {"b": [1]}}, {1: 2}, {None: None}, -1, 0, 1, 0.5, -0.5, 1e308, math.nan,
          math.inf, -math.inf, 10**20, HUGE, 2**63, True]  # fmt: skip
TEXTS = ["&a [*a]", "*nope", "!!python/object:os.system x", "!!binary aGk=", "!!set {a}", "!!timestamp 2020-01-01",
         "!!int x", "!!bool x", "{<<: {a: 1}}", "{a: 1, a: 2}", "[" * 1_000, "{? [a] : b}", "'unclosed", "@x",
         "0x" + "f" * 5_000, "9" * 5_000, '"\\ud800"', '"\\0"', "&b {c: *b}"]  # fmt: skip


def keys() -> list[tuple[str, str]]:
    """Every key of every section."""
    found = [("training", key) for key in class_fields("transformers.training_args", "TrainingArguments")]
    found += [("model", key) for key in class_fields("mypt.models.configuration_mypt", "MyPTConfig")]
    for section, hint in typing.get_type_hints(Recipe).items():
        if section != "training":
            found += [(section, key) for key in typing.get_type_hints((typing.get_args(hint) or (hint,))[0])]
    return found


def test_any_value_of_any_key_is_taken_or_refused_in_a_line_that_is_short(tmp_path):
    chosen, refused = random.Random(14), 0
    path = tmp_path / "recipe.yaml"
    for section, key in keys():
        value, text = chosen.choice(VALUES), chosen.choice(TEXTS)
        if value != HUGE:
            path.write_text(yaml.safe_dump({section: {key: value}}, allow_unicode=True), encoding="utf-8")
            refused += is_refused(path)
        path.write_text(f"{section}: {{{key}: {text}}}\n", encoding="utf-8")
        refused += is_refused(path)
    assert refused > len(keys())


def is_refused(path) -> bool:
    try:
        load_recipe(path)
    except RecipeError as error:
        assert len(str(error)) < 1_000 and "\0" not in str(error) and len(str(error).splitlines()) == 1
        return True
    return False


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"forgetting": {"guard": [["a"]]}}, r"forgetting.guard is \[\['a'\]\], expected a list of names"),
        ({"training": {"dataloader_num_workers": -1}}, "dataloader_num_workers is -1, expected a number from 0 to"),
        ({"training": {"dataloader_num_workers": 100_000}}, "expected a number from 0 to"),
        ({"training": {"output_dir": "a\0b"}}, "training.output_dir' holds a NUL character"),
        ({"training": {"run_name": "\ud800"}}, "half a character"),
        ({"training": {"learning_rate": math.nan}}, "learning_rate is nan, expected"),
        ({"training": {"num_train_epochs": math.inf}}, "num_train_epochs is inf, expected a finite number"),
        ({"training": {"lr_scheduler_kwargs": {"power": math.nan}}}, "lr_scheduler_kwargs.power is nan"),
        ({"training": {"weight_decay": HUGE}}, "expected a number of at most 64 bits"),
        ({"training": {"max_grad_norm": -1.0}}, "max_grad_norm is -1.0, expected 0 or more"),
        ({"training": {"log_level": "loud"}}, "log_level is 'loud', expected one of: detail, debug"),
        ({"model": {"rope_parameters": {"rope_type": "x"}}}, "rope_parameters.rope_type is 'x', expected one of"),
        ({"model": {"rope_parameters": {"rope_type": {}}}}, "rope_parameters.rope_type is {}, expected one of"),
        ({"model": {"rope_parameters": {"factr": 2}}}, "did you mean 'factor'"),
        ({"model": {"rope_parameters": {"factor": ["a"]}}}, "factor is .* expected a positive number"),
        ({"model": {"rope_parameters": {"rope_theta": True}}}, "rope_theta is True, expected a positive number"),
        ({"model": {"rope_parameters": {"short_factor": [0]}}}, "expected a list of positive numbers"),
        ({"tokenizer": {"vocab_size": 10**10}}, "vocab_size is 10000000000, expected a number from 1 to"),
    ],
)
def test_what_no_setting_can_be_is_named(section, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        parse_recipe(section)


def test_aliases_that_multiply_or_hold_themselves_are_refused(tmp_path):
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    for text in (laughs, "training: &t {fsdp_config: *t}\n"):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError, match="repeat values too often or without end"):
            load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text("model: {head_dim: &d 32, hidden_size: *d}\n")
    assert load_recipe(tmp_path / "recipe.yaml").model.config == {"head_dim": 32, "hidden_size": 32}


WORDS = [
    "",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "9" * 5_000,
    "1e99",
    "0x10",
    "1_0",
    "½",
    "٣",
    "[",
    "\n",
]


def test_any_word_for_any_option_of_any_command_is_parsed_or_refused_with_exit_code_2():
    parser, tried = build_parser(), 0
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    for name, command in commands.items():
        for option in (action for action in command._actions if action.option_strings and action.nargs != 0):
            for word in WORDS:
                tried += 1
                with contextlib.redirect_stderr(io.StringIO()) as printed:
                    try:
                        given = parser.parse_known_args([name, f"{option.option_strings[0]}={word}"])[0]
                    except SystemExit as stop:
                        assert stop.code == 2 and "Traceback" not in printed.getvalue()
                        continue
                value = getattr(given, option.dest, None)
                if isinstance(value, int | float):
                    assert -(2**63) <= value < 2**63 and math.isfinite(value), f"{name} {option.option_strings} {word}"
    assert tried > 1_000
