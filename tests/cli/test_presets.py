"""`mypt presets` prints every preset with the parameter count of the model that it makes."""

import argparse
import json

import pytest
import torch

from mypt import MyPTForCausalLM, preset_config
from mypt.cli.presets import add_arguments, run
from mypt.errors import MyPTError
from mypt.models.presets import PRESETS


def presets(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(arguments))


def parameters(name: str) -> int:
    with torch.device("meta"):
        return MyPTForCausalLM(preset_config(name)).num_parameters()


def test_the_table_has_a_row_for_every_preset(capsys):
    presets()
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert list(rows) == list(PRESETS)
    assert rows["modern-tiny"] == ["modern-tiny", "6", "6", "3", "384", "1024", "1024", "16000", "15,881,856"]
    for name in ("tiny", "750M_1024", "modern-nano", "modern-xlarge"):
        assert rows[name][-1] == f"{parameters(name):,}"


def test_one_preset_is_shown_in_full(capsys):
    presets("small")
    printed = capsys.readouterr().out
    assert f"{parameters('small'):,}" in printed
    for field in PRESETS["small"]:
        assert field in printed


def test_json_holds_dimensions_and_counts(capsys):
    presets("--json")
    report = json.loads(capsys.readouterr().out)
    assert {name: entry["dimensions"] for name, entry in report.items()} == PRESETS
    assert report["150M"]["parameters"]["total"] == parameters("150M")
    presets("tiny", "--json")
    assert json.loads(capsys.readouterr().out) == {"tiny": report["tiny"]}


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(MyPTError, match="did you mean modern-tiny"):
        presets("modern-tyni")
