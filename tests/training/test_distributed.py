"""Two real processes (gloo, through accelerate launch and the shipped configs) are one process with the same batch."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import AutoModelForCausalLM

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.recipe import parse_recipe
from mypt.training.run import train
from tests.processes import ROOT, launch

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def evaluations(run: Path) -> list[dict]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: entry[key] for key in entry if key.endswith("_loss") or key in ("loss", "grad_norm")}
        for entry in entries[:-1]
    ]


def content_of(recipe_for, run: Path, per_device: int, accumulation: int = 1, **sections) -> dict:
    """A recipe of four samples per step whose processes share nothing evenly: rows, evaluation windows."""
    sections = {
        "model": {"hidden_dropout": 0.0, "intermediate_size": 65},
        "forgetting": {"eval_windows": 21},
    } | sections
    content = recipe_for(**sections)
    content["training"] |= {
        "output_dir": str(run), "per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation,
        "per_device_eval_batch_size": 10,
    }  # fmt: skip
    return content


def written(content: dict) -> Path:
    path = Path(content["training"]["output_dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def furthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_two_processes_equal_one_and_any_layout_resumes_any(recipe_for, weights, corpora, tmp_path, capfd):
    contents = {
        "one": content_of(recipe_for, tmp_path / "one", 4),
        "two": content_of(recipe_for, tmp_path / "two", 2),
        "sharded": content_of(recipe_for, tmp_path / "sharded", 1, accumulation=2),
    }
    contents["one"]["training"]["max_steps"] = 8
    train(parse_recipe(contents["one"]))
    contents["one"]["training"]["max_steps"] = 12
    launch("cpu_2.yaml", written(contents["two"]), "--training.max_steps=8")
    launch("fsdp2_cpu_2.yaml", written(contents["sharded"]), "--training.max_steps=8")
    names = [sorted(path.name for path in (tmp_path / run / "checkpoint-8").iterdir()) for run in ("two", "sharded")]
    assert names[0] == names[1], "FSDP2's checkpoints hold other files"

    changed = {str(corpora / "domain"): 0.3, str(corpora / "general"): 0.7}  # other weights: an event
    # begun by two processes, with FSDP2 and without, gone on with by one that takes the whole batch, and back again
    for name, begun in (("mixed", "two"), ("gathered", "sharded"), ("spread", "two")):
        shutil.copytree(tmp_path / begun, tmp_path / name)
        contents[name] = content_of(recipe_for, tmp_path / name, 2 if name == "spread" else 4)
    for content in contents.values():
        content["data"]["train"] = changed
    printed = {
        "two": launch("cpu_2.yaml", written(contents["two"]), "--resume"),
        "spread": launch("fsdp2_cpu_2.yaml", written(contents["spread"]), "--resume"),
    }
    for name in ("one", "mixed", "gathered"):
        train(parse_recipe(contents[name]), resume=True)
        printed[name] = capfd.readouterr().out

    one = weights(tmp_path / "one")
    for name, output in printed.items():
        assert ("world_size 2 -> 1" in output) == (name in ("mixed", "gathered"))
        assert "changed from step 8 on: weights" in output
        assert furthest(one, weights(tmp_path / name)) < 1e-5, name
        for left, right in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / name), strict=True):
            assert left == pytest.approx(right, abs=1e-5)
        ledgers = [json.loads((tmp_path / run / "coverage.json").read_text()) for run in ("one", name)]
        assert ledgers[0]["seen"] == ledgers[1]["seen"]
        assert [seen["samples"] for seen in ledgers[1]["seen"]] == [24 + 5, 8 + 11]
        assert ledgers[0]["next_sample"] == ledgers[1]["next_sample"] == 48
    assert not torch.equal(one["model.norm.weight"], torch.ones_like(one["model.norm.weight"])), "nothing was trained"

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "spread")
    assert type(loaded) is MyPTForCausalLM
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert furthest(weights(tmp_path / "spread"), dict(loaded.named_parameters())) == 0
    for name in ("config.json", "modeling_mypt.py", "configuration_mypt.py"):
        assert (tmp_path / "spread" / name).read_text() == (tmp_path / "one" / name).read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_word_of_a_config(path):
    config = load_config_from_file(str(path))
    options = vars(launch_command_parser().parse_args(["train.py"]))
    for section in (config.fsdp_config, config.deepspeed_config):
        assert {*section} <= {*options}
    kind = {"cpu": "NO", "cpu_2": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "fsdp2_cpu_2": "FSDP"}
    assert config.distributed_type == kind.get(path.stem, "DEEPSPEED")
    assert config.num_processes == {"cpu": 1, "cpu_2": 2, "fsdp2_cpu_2": 2}.get(path.stem, 4)
    assert config.use_cpu == ("cpu" in path.stem)


def altered(path: Path, name: str, **changes) -> Path:
    """A shipped config with other values, in which a key may also be one of its section."""
    config = yaml.safe_load((ROOT / "recipes" / "accelerate" / name).read_text())
    for key, value in changes.items():
        sections = [section for section in config.values() if isinstance(section, dict) and key in section]
        (sections[0] if sections else config)[key] = value
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "changes", "close"),
    [
        ({"optimizer": {"name": "adamw"}}, {"num_processes": 3}, 1e-5),
        ({"optimizer": {"name": "adamw_torch"}}, {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, 1e-5),
        ({"model": {"preset": "tiny", "hidden_dropout": 0.0}}, {"fsdp_reshard_after_forward": False}, 1e-5),
        ({"training": {"bf16": True}}, {"fsdp_cpu_ram_efficient_loading": True}, 1e-2),
    ],
    ids=["adamw on 3", "HF optimizer", "learned positions", "bf16"],
)
def test_fsdp2_equals_one_process(recipe_for, weights, tmp_path, sections, changes, close):
    processes = changes.get("num_processes", 2)
    one = content_of(recipe_for, tmp_path / "one", 2 * processes, **sections)
    train(parse_recipe(one))
    two = content_of(recipe_for, tmp_path / "two", 2, **sections)
    config = altered(tmp_path / "config.yaml", "fsdp2_cpu_2.yaml", **changes)
    launch(config, written(two), "--training.max_steps=8")
    launch(config, written(two), "--resume")
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < close
    for left, right in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert left == pytest.approx(right, abs=close)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu_2.yaml", "fsdp2_cpu_2.yaml"])
def test_an_adapter_is_trained_alike(recipe_for, corpora, tmp_path, config):
    from safetensors.torch import load_file

    train(parse_recipe(content_of(recipe_for, tmp_path / "base", 4)))
    adapted = []
    for name, batch in (("one", 4), ("two", 2)):
        content = content_of(recipe_for, tmp_path / name, batch, lora={"r": 4})
        content["model"] = {"init_from": str(tmp_path / "base")}
        adapted.append(content)
    train(parse_recipe(adapted[0]))
    launch(config, written(adapted[1]), "--training.max_steps=8")
    launch(config, written(adapted[1]), "--resume")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert furthest(one, two) < 1e-5


BREAKING = """
import math, sys
from transformers import TrainerCallback
from mypt.errors import MyPTError
from mypt.recipe import load_recipe
from mypt.training.build import build_trainer

class Breaker(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4 and args.process_index == 1:
            next(model.parameters()).data.to_local()[0] = math.inf

trainer = build_trainer(load_recipe(sys.argv[1]))
trainer.add_callback(Breaker())
try:
    trainer.train()
except MyPTError as error:
    print(f"process {trainer.args.process_index}: {error}", flush=True)
"""


@pytest.mark.slow
def test_a_weight_that_one_process_lost_stops_all(recipe_for, tmp_path):
    (tmp_path / "breaking.py").write_text(BREAKING)
    recipe = written(content_of(recipe_for, tmp_path / "run", 2))
    output = launch("fsdp2_cpu_2.yaml", recipe, script=tmp_path / "breaking.py")
    for rank in range(2):
        assert f"process {rank}: the weights became nan or infinite by the update in step 4" in output


PARTING = """
import sys
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from mypt.training.run import part

for turn in range(100):
    meet = InitProcessGroupKwargs(init_method=f"file://{sys.argv[1]}/{turn}")
    accelerator = Accelerator(cpu=True, kwargs_handlers=[meet])
    model = accelerator.prepare(torch.nn.Linear(4, 4))
    model(torch.ones(3, 4)).sum().backward()
    accelerator.gather(torch.ones(5))
    part(accelerator)
    del model, accelerator
    AcceleratorState._reset_state(True)
"""


@pytest.mark.slow
def test_processes_part_without_waiting_for_each_other_for_ever(tmp_path):
    (tmp_path / "parting.py").write_text(PARTING)
    launch("cpu_2.yaml", tmp_path, script=tmp_path / "parting.py")


@pytest.mark.slow
def test_fsdp_1_is_refused(recipe_for, tmp_path):
    changes = {"fsdp_version": 1, "fsdp_reshard_after_forward": "FULL_SHARD"}
    config = altered(tmp_path / "config.yaml", "fsdp2_cpu_2.yaml", **changes)
    assert "fsdp_version 1, expected 2" in launch(config, written(content_of(recipe_for, tmp_path / "run", 2)), code=2)


@pytest.mark.slow
def test_processes_end_together_with_the_reason_where_text_is_refused(recipe_for, tmp_path):
    """The main process alone prepares it; the other one must not end in a traceback of a lost connection."""
    (tmp_path / "text.txt").write_text(" \n" * 2_000)
    content = content_of(recipe_for, tmp_path / "run", 2) | {"data": {"train": str(tmp_path / "text.txt")}}
    output = launch("cpu_2.yaml", written(content), code=2)
    assert output.count("mypt train: ") == 2 and "[rank1]" not in output, output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2.yaml", "zero3.yaml"])
def test_deepspeed_equals_one_process_and_refuses_muon(recipe_for, weights, tmp_path, name, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = altered(tmp_path / "config.yaml", name, num_processes=2, use_cpu=True)
    muon = written(content_of(recipe_for, tmp_path / "muon", 2, optimizer={"name": "muon"}))
    assert "Muon needs them whole: set optimizer.name: adamw" in launch(config, muon, code=2)
    adamw = {"optimizer": {"name": "adamw"}}
    train(parse_recipe(content_of(recipe_for, tmp_path / "one", 4, **adamw)))
    two = written(content_of(recipe_for, tmp_path / "two", 2))  # `auto` takes AdamW
    launch(config, two, "--training.max_steps=8")
    launch(config, two, "--resume")
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    assert not [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith(("zero", "latest"))]
