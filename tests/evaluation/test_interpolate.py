"""The largest step towards an adapted model that keeps every guard: found on curves, measured on written models."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mypt.checkpoints.load import load_model
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.evaluation.compare import compare
from mypt.evaluation.evaluator import Reading
from mypt.evaluation.forgetting import Policy
from mypt.evaluation.interpolate import Interpolation, interpolate, largest_kept
from mypt.evaluation.loss import WindowLosses
from mypt.storage.upload_files import model_files
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from tests.checkpoints.test_adapter import save_adapter

POLICY = Policy("domain", ["general"], 0.05)


def curve(**losses):
    """measure(alpha): readings of two windows whose losses per token are functions of alpha."""
    calls = []

    def measure(alpha):
        calls.append(alpha)
        tokens = np.array([100, 100])
        readings = {name: WindowLosses(tokens * loss(alpha), tokens) for name, loss in losses.items()}
        return {name: Reading(losses, 0.0) for name, losses in readings.items()}

    measure.calls = calls
    return measure


@pytest.mark.parametrize(
    ("general", "expected"),
    [
        (lambda a: 4 + 0.04 * a, 1.0),  # kept all the way
        (lambda a: 4 + 0.37 * a, 0.13),  # 0.05 / 0.37 = 0.135
        (lambda a: 4 + 0.37 * a**3, 0.51),  # (0.05 / 0.37)^(1/3) = 0.513
        (lambda a: 4 + 0.37 * a**16, 0.88),  # 0.882
        (lambda a: 4 + 2 * max(0, a - 0.6) - 0.1 * a, 0.65),  # better at first; 1.9 a - 1.2 = 0.05 at 0.658
        (lambda a: 4 + 100 * a, 0.0),  # no hundredth
        (lambda a: 4 + (math.nan if a > 0.3 else 0), 0.3),
        (lambda a: 4 + (math.inf if a > 0.77 else 0), 0.77),
        (lambda a: 4 - a if a <= 0.5 else 5, 0.5),  # a step
    ],
)
def test_the_largest_alpha_that_keeps_a_guard(general, expected):
    measure = curve(general=general, domain=lambda a: 5 - a)
    alpha, points = largest_kept(measure, POLICY)
    assert alpha == expected
    assert len(set(measure.calls)) == len(measure.calls) <= 14
    assert [point["alpha"] for point in points] == sorted(measure.calls)
    states = {point["alpha"]: point["sets"]["general"]["state"] for point in points}
    assert states[alpha] == "healthy" and (alpha == 1 or states[round(alpha + 0.01, 2)] != "healthy")


def test_every_guard_has_to_be_kept_and_noise_is_not_forgetting():
    policy = Policy("domain", ["a", "b"], 0.05)
    measure = curve(a=lambda a: 1 + 0.1 * a, b=lambda a: 1 + 0.19 * a, domain=lambda a: 5 - a)
    assert largest_kept(measure, policy)[0] == 0.26  # 0.05 / 0.19 = 0.263

    def noisy(alpha):  # +0.2 with a standard error of 0.2
        tokens = np.array([100, 100])
        return {"general": Reading(WindowLosses(tokens * np.array([4.0, 4.0 + 0.4 * alpha]), tokens), 0.0)}

    assert largest_kept(noisy, Policy("general", ["general"], 0.05))[0] == 1.0


def test_a_model_that_forgot_is_given_back_what_it_knew(adapted_models, corpora, tmp_path):
    sets = {name: str(corpora / name) for name in ("general", "domain")}
    report = interpolate(
        adapted_models / "base", adapted_models / "adapted", tmp_path / "out", guard={"general": sets["general"]},
        target={"domain": sets["domain"]},
    )  # fmt: skip
    folders = [str(adapted_models / "base"), str(adapted_models / "adapted"), str(tmp_path / "out")]
    scores = {(score.model, score.data): score for score in compare(folders, sets, guard=["general"])}
    base, adapted, out = folders
    assert scores[adapted, "general"].state == "critical"
    assert scores[out, "general"].state == "healthy" and 0 < report["alpha"] < 1
    assert scores[out, "domain"].loss < scores[base, "domain"].loss - 0.1
    point = next(point for point in report["curve"] if point["alpha"] == report["alpha"])
    for name in sets:  # what was measured is what was written
        assert point["sets"][name]["loss"] == pytest.approx(scores[out, name].loss, abs=1e-6)
    assert json.loads((tmp_path / "out" / "interpolation.json").read_text()) == report
    assert (tmp_path / "out" / "interpolation.png").stat().st_size > 10_000
    first, second, between = (load_file(f"{folder}/model.safetensors") for folder in folders)
    for name, value in between.items():
        expected = torch.lerp(first[name], second[name], report["alpha"])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_an_adapter_is_scaled_and_stays_one(adapted_models, tmp_path):
    adapter = save_adapter(adapted_models / "base", tmp_path / "adapter")
    interpolate(adapted_models / "base", adapter, tmp_path / "out", alpha=0.5)
    assert (tmp_path / "out" / "adapter_config.json").is_file() and not (tmp_path / "out" / "config.json").exists()
    ids = torch.arange(32).view(1, 32)
    with torch.no_grad():
        between = load_model(tmp_path / "out", device="cpu")
        for name, value in load_model(adapter, device="cpu").named_parameters():
            half = (value + load_model(adapted_models / "base", device="cpu").get_parameter(name)) / 2
            torch.testing.assert_close(between.get_parameter(name), half, rtol=0, atol=1e-6)
        assert between(ids).logits.isfinite().all()


def test_alpha_0_has_to_be_the_base_model(adapted_models, tmp_path):
    shutil.copytree(adapted_models / "base", tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}))
    with pytest.raises(CheckpointError, match=r"it computes other logits .*their configs differ in rope_parameters"):
        interpolate(tmp_path / "other", adapted_models / "adapted", tmp_path / "out", alpha=0.5)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_no_step_keeps_the_guard(adapted_models, corpora, tmp_path):
    torch.manual_seed(0)
    model = load_model(adapted_models / "base", device="cpu")
    for parameter in model.parameters():
        parameter.data += 30 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "broken")
    save_tokenizer(load_tokenizer(adapted_models / "base"), tmp_path / "broken")
    guard = {"general": str(corpora / "general")}
    with pytest.raises(CheckFailed, match=r"no step of a hundredth .* keeps general within 0.05 nats"):
        interpolate(adapted_models / "base", tmp_path / "broken", tmp_path / "out", guard=guard)
    for parameter in model.parameters():
        parameter.data[...] = math.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(CheckFailed, match="computes NaN or infinite logits"):
        interpolate(adapted_models / "base", tmp_path / "broken", tmp_path / "out", alpha=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either --alpha, or --guard"),
        ({"alpha": 0.5, "guard": {"general": "data"}}, "either --alpha, or --guard"),
        ({"alpha": -0.1}, "--alpha is -0.1, expected 0"),
        ({"alpha": 1.1}, "--extrapolate allows"),
        ({"alpha": math.nan}, "--alpha is nan"),
        ({"alpha": math.inf, "extrapolate": True}, "--alpha is inf"),
        ({"guard": {"general": "data"}, "tolerance": 0.0}, "--tolerance is 0 nats"),
        ({"guard": {"general": "data"}, "tolerance": math.nan}, "--tolerance is nan nats"),
        ({"guard": {"a": "data"}, "target": {"a": "data"}}, "a is given both as --guard and as --target"),
        ({"guard": {"general": "nowhere"}}, "nowhere does not exist"),
    ],
)
def test_bad_arguments(options, message, adapted_models, tmp_path):
    with pytest.raises(MyPTError, match=message):
        interpolate(adapted_models / "base", adapted_models / "adapted", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_beyond_the_adapted_model_when_asked(adapted_models, tmp_path):
    interpolate(adapted_models / "base", adapted_models / "adapted", tmp_path / "out", alpha=1.2, extrapolate=True)
    first, second, third = (load_file(folder / "model.safetensors") for folder in
                            (adapted_models / "base", adapted_models / "adapted", tmp_path / "out"))  # fmt: skip
    for name, value in third.items():
        torch.testing.assert_close(value, first[name] + 1.2 * (second[name] - first[name]), rtol=0, atol=1e-5)


def test_a_model_that_is_loaded_survives_the_next_one(adapted_models, tmp_path):
    tmp_path.joinpath("out").mkdir()
    adapted = adapted_models / "adapted"
    interpolation = Interpolation(str(adapted_models / "base"), adapted, tmp_path / "out", model_files(adapted))
    half = interpolation.model(0.5)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    interpolation.model(0.9)
    assert all(torch.equal(value, before[name]) for name, value in half.state_dict().items())
