"""Errors in the terms of the command that raised them."""

import argparse

import pytest

from mypt.cli.main import build_parser
from mypt.errors import PREPARE_ONLY, RECIPE_KEYS, DataError, recipe_wording, worded
from tests.test_docs import recipe_keys


def test_every_option_of_prepare_has_a_recipe_key_or_has_none():
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = {option for action in subparsers.choices["prepare"]._actions for option in action.option_strings}
    general = {"-h", "--help", "--debug", "--json"}
    known = {*RECIPE_KEYS, *PREPARE_ONLY}
    assert options - general <= known and known - options <= {"--dtype"}  # an option of `mypt convert`
    assert set(RECIPE_KEYS.values()) <= recipe_keys()


@pytest.mark.parametrize(
    "message, meant",
    [
        ("no column 'a'; --text-column is one of: b", "no column 'a'; data.text_column is one of: b"),
        ("choose another --out, or --retrain", "choose another training.output_dir, or tokenizer.retrain"),
        ("leave out --no-dedup or split by hash", "leave out `mypt prepare --no-dedup` or split by hash"),
        ("convert it: mypt convert a --out DIR; --out", "convert it: mypt convert a --out DIR; training.output_dir"),
        ("(`mypt prepare --out DIR` makes it)", "(`mypt prepare --out DIR` makes it)"),
        ("add --resume, or --data.stride=4", "add --resume, or --data.stride=4"),
    ],
)
def test_within_a_recipe_messages_name_its_keys(message, meant):
    assert str(DataError(message)) == worded(message) == message
    with recipe_wording():
        error = DataError(message)
        assert str(DataError(error)) == meant  # once is enough
    assert str(error) == meant
