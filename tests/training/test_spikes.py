"""Spikes: the rule against numpy, and a run that has one."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mypt.recipe import parse_recipe
from mypt.training.build import build_trainer
from mypt.training.run import finish
from mypt.training.stability.loss_spikes import threshold


def test_the_rule_is_median_and_mad():
    generator = np.random.default_rng(0)
    for spread in (0.001, 0.05, 0.5):
        before = (3 + spread * generator.standard_normal(100)).tolist()
        median = np.median(before)
        deviation = 1.4826 * np.median(np.abs(np.array(before) - median))
        limit = median + max(6 * deviation, 0.1)
        assert threshold(before, limit + 1e-6) == pytest.approx(limit, rel=1e-12)
        assert threshold(before, limit - 1e-6) is None
        assert threshold(before[:19], 100.0) is None, "too few to judge"
    falling = np.linspace(10, 3, 100).tolist()
    assert threshold(falling, falling[-1] + 1) is None, "a loss that falls is no noise"
    assert threshold([3.0] * 95 + [50.0] * 5, 3.2) == pytest.approx(3.1), "spikes do not raise the limit"


@pytest.fixture
def spiky():
    """spiky(trainer, sample): the model finds this sample of the stream very unlikely."""

    def make(trainer, sample: int) -> str:
        stream = copy.copy(trainer.train_dataset)
        stream.config, stream.start_sample = replace(stream.config, micro_batch_size=1), sample
        window = next(iter(stream))["input_ids"][0]
        rows = []

        def look(module, inputs, output):
            rows[:] = [torch.equal(row, window) for row in inputs[0]]

        def spoil(module, inputs, output):
            odd = torch.arange(output.shape[-1], dtype=output.dtype) % 7 * 20
            return output + torch.tensor(rows, dtype=output.dtype)[:, None, None] * odd

        trainer.model.get_input_embeddings().register_forward_hook(look)
        trainer.model.get_output_embeddings().register_forward_hook(spoil)
        return trainer.processing_class.decode(window)

    return make


def test_a_spike_is_written_with_the_sample_that_made_it(recipe_for, spiky, rewind, tmp_path, capsys):
    content = recipe_for(data=recipe_for()["data"] | {"eval": {}})
    content["training"] |= {"max_steps": 26, "learning_rate": 1e-5, "save_steps": 12, "logging_steps": 100}

    def run(resume: bool = False):
        trainer = build_trainer(parse_recipe(content), resume=resume)
        text = spiky(trainer, 90)
        return finish(trainer), text

    whole, text = run()
    (spike,) = [json.loads(line) for line in (whole / "spikes.jsonl").read_text().splitlines()]
    assert (spike["step"], spike["samples"]) == (23, [88, 91])
    assert spike["loss"] > spike["limit"] > 5 and spike["grad_norm"] > 0
    worst = spike["worst"]
    assert worst["sample"] == 90 and worst["loss"] > spike["loss"] and text.startswith(worst["text"])
    assert "shard_00000.bin token" in worst["place"]
    assert "loss spike at step 23" in capsys.readouterr().out
    for step in (12, 24):  # the losses before, or the spike itself, come from the checkpoint
        content["training"]["output_dir"] = str(rewind(whole, tmp_path / f"from-{step}", step))
        resumed, _ = run(resume=True)
        assert (resumed / "spikes.jsonl").read_text() == (whole / "spikes.jsonl").read_text()
