"""What report_to names must be there before anything is prepared; a tracker that is there gets every number."""

import importlib.util
import json
import sqlite3
import sys

import pytest

from mypt.errors import RecipeError
from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer
from mypt.training.run import train
from mypt.training.tracking import require_trackers


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize("given", [None, "none", "all", [], ["none"]])
def test_nothing_is_asked_for(given):
    require_trackers(given)


def test_an_unknown_name_is_one_line_with_the_nearest(recipe_for, tmp_path):
    with pytest.raises(RecipeError, match=r"names 'tensorbord'; did you mean 'tensorboard'\?"):
        build_trainer(parse_recipe(recipe_for(training={"report_to": "tensorbord"})))
    with pytest.raises(RecipeError, match=r"names 'x'; expected one of: .*wandb"):
        require_trackers(["x"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_package_that_is_missing_is_one_line_with_what_to_install(name):
    if installed(name) or (name == "tensorboard" and installed("tensorboardX")):
        pytest.skip(f"{name} is installed here")
    with pytest.raises(RecipeError, match=rf"{name} is not installed: pip install 'mypt\[tracking\]'"):
        require_trackers(name)


def test_a_tracker_that_does_not_start_ends_the_run_before_its_first_step(recipe_for, monkeypatch, tmp_path, capsys):
    if not installed("tensorboard"):
        pytest.skip("needs the extra mypt[tracking]")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "logs"))
    with pytest.raises(
        RecipeError, match=r"^training.report_to: tensorboard does not start \(.*report_to=none$"
    ) as error:
        train(parse_recipe(recipe_for(training={"report_to": "tensorboard"})))
    assert "\n" not in str(error.value)
    assert "step 0:" not in capsys.readouterr().out
    train(parse_recipe(recipe_for(training={"report_to": "none", "max_steps": 2})))  # the same folder


KEYS = {
    "train/loss", "train/learning_rate", "train/throughput/tokens_per_second", "train/throughput/mfu",
    "train/throughput/data_ms", "train/throughput/compute_ms", "train/throughput/optimizer_ms",
    "train/throughput/rest_ms", "eval/domain_loss", "eval/general_loss", "train/forgetting/general_delta",
    "train/forgetting/domain_delta",
}  # fmt: skip


def test_tensorboard_and_trackio_get_every_number_and_no_secret(recipe_for, monkeypatch, tmp_path):
    if not (installed("tensorboard") and installed("trackio")):
        pytest.skip("needs the extra mypt[tracking]")
    secret = "hf_" + "secret" * 6
    for name, value in (("TRACKIO_DIR", str(tmp_path / "db")), ("HF_HUB_OFFLINE", "1"), ("HF_TOKEN", secret)):
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads its folder when it is first imported
    reported = {"report_to": ["tensorboard", "trackio"], "project": "mypt", "run_name": "first"}
    run = train(parse_recipe(recipe_for(training=reported)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from trackio.utils import TRACKIO_DIR

    (folder,) = (run / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) >= KEYS
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in events.Scalars("eval/general_loss")] == [4, 8, 12]

    with sqlite3.connect(TRACKIO_DIR / "mypt.db") as database:
        logged = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics")]
    assert {key for entry in logged for key in entry} >= KEYS
    assert [entry["train/global_step"] for entry in logged if "train/loss" in entry] == [2, 4, 6, 8, 10, 12]
    written = [path for root in (folder, TRACKIO_DIR) for path in root.rglob("*") if path.is_file()]
    assert len(written) >= 2 and all(secret.encode() not in path.read_bytes() for path in written)
