"""An adapter's folder: which base it belongs to, loaded whole with that base or refused in one line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.adapter import is_adapter, recorded_base, weights_fingerprint
from mypt.checkpoints.load import load_adapter, load_model
from mypt.cli.main import main
from mypt.errors import CheckpointError
from mypt.inspection.checkpoint import inspect_checkpoint
from mypt.recipe import LoraSection
from mypt.training.model.lora import attach_adapters

IDS = torch.arange(16).view(1, 16)


def save_mypt(folder: Path, seed: int = 0, **options) -> Path:
    """A tiny random model in `folder`."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    save = {name: options.pop(name) for name in [*options] if name == "max_shard_size"}
    MyPTForCausalLM(MyPTConfig(vocab_size=32, max_position_embeddings=32, **sizes | options)).save_pretrained(
        folder, **save
    )
    return folder


def save_adapter(base: Path, folder: Path, **section) -> Path:
    """An adapter beside the model in `base` that changes what it says."""
    adapted = attach_adapters(load_model(base, device="cpu"), LoraSection(**section), str(base), seed=0)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path) -> Path:
    return save_mypt(tmp_path / "base")


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return save_adapter(base, tmp_path / "adapter")


def test_an_adapter_is_loaded_with_its_base_merged_or_apart(base, adapter):
    assert is_adapter(adapter) and not is_adapter(base)
    merged, apart = load_model(adapter, device="cpu"), load_adapter(adapter, device="cpu")
    assert type(merged) is MyPTForCausalLM and not merged.training and not apart.training
    assert merged.state_dict().keys() == load_model(base, device="cpu").state_dict().keys()
    with torch.no_grad():
        logits, before = merged(IDS).logits, load_model(base, device="cpu")(IDS).logits
        assert (logits - apart(input_ids=IDS).logits).abs().max() < 1e-5
        assert (logits - before).abs().max() > 0.01
        with apart.disable_adapter():
            assert torch.equal(apart(input_ids=IDS).logits, before)


def test_the_base_is_found_from_any_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = save_adapter(Path("base"), tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_model(adapter)


def test_a_base_that_moved_is_named_and_can_be_given(base, adapter, tmp_path):
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=rf"is not in {base} any more.*mypt merge {adapter} --base DIR"):
        load_model(adapter)
    load_adapter(adapter, base=str(tmp_path / "moved"))


def test_other_weights_in_the_place_of_the_base_are_refused(base, adapter):
    save_mypt(base, seed=1)
    with pytest.raises(
        CheckpointError, match=r"was trained beside other weights \(\w{8}\) than those that .*base holds"
    ):
        load_model(adapter)
    save_mypt(base)
    load_model(adapter)
    save_mypt(base, seed=1)
    (adapter / "adapter_base.json").unlink()  # as plain peft saves it
    load_model(adapter)


def test_the_fingerprint_is_of_the_tensors_not_of_the_files(tmp_path):
    one = weights_fingerprint(str(save_mypt(tmp_path / "one")))
    many = save_mypt(tmp_path / "many", max_shard_size="5KB")
    assert len(list(many.glob("model-*.safetensors"))) > 1
    assert weights_fingerprint(str(many)) == one and len(one) == 32
    assert weights_fingerprint(str(save_mypt(tmp_path / "two", seed=1))) != one
    weights = load_file(tmp_path / "one" / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-6
    save_file(weights, tmp_path / "one" / "model.safetensors")
    assert weights_fingerprint(str(tmp_path / "one")) != one
    assert weights_fingerprint(str(tmp_path)) is None and weights_fingerprint("no/such-model") is None


def test_an_adapter_is_loaded_whole_or_not_at_all(adapter):
    file = adapter / "adapter_model.safetensors"
    content, weights = file.read_bytes(), load_file(file)
    file.write_bytes(content[:-10])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing or cut short"):
        load_model(adapter)
    name = sorted(weights)[0]
    save_file({key: tensor for key, tensor in weights.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=rf"lacks 1 of its weights, {name} first"):
        load_model(adapter)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing or cut short"):
        load_model(adapter)


def test_a_base_of_another_shape_is_one_line(adapter, tmp_path):
    (adapter / "adapter_base.json").unlink()
    wide = save_mypt(tmp_path / "wide", hidden_size=32)
    with pytest.raises(CheckpointError, match=f"adapter {adapter} cannot be loaded beside {wide}") as caught:
        load_adapter(adapter, base=str(wide))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged: not JSON"),
        ("[]", "damaged: found a list"),
        ('{"base_model_name_or_path": null}', "does not say which"),
    ],
)
def test_a_damaged_config_is_one_line(adapter, content, words):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        load_model(adapter)


@pytest.mark.parametrize("read", [load_model, inspect_checkpoint])
def test_names_of_layers_are_words_whoever_reads_them(adapter, read):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj", float("nan")]}))
    with pytest.raises(CheckpointError, match="damaged"):
        read(adapter)


def test_a_kind_that_peft_cannot_merge_is_one_line(adapter):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alora_invocation_tokens": [1]}))
    with pytest.raises(CheckpointError, match="cannot be merged into its base: aLoRA"):
        load_model(adapter)


def test_an_adapter_that_is_its_own_base_is_refused(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(CheckpointError, match="which is an adapter itself"):
        load_model(adapter)


def test_a_base_that_the_hub_does_not_give_is_named(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "no/such-model"}))
    assert recorded_base(adapter) == "no/such-model"
    with pytest.raises(CheckpointError, match=r"needs its base model: model no/such-model is neither .*--base MODEL"):
        load_model(adapter)


def test_what_no_weights_can_take_in_is_refused(base, tmp_path):
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(load_model(base, device="cpu"), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(CheckpointError, match="is PROMPT_TUNING, which the weights of a model cannot take in"):
        load_model(tmp_path / "prompt")


def test_a_record_of_the_base_that_is_none_is_refused(adapter):
    for content in ('{"weights": 5}', "[]", "{"):
        (adapter / "adapter_base.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"adapter_base\.json is damaged"):
            load_model(adapter)


def test_an_adapter_of_the_hub_comes_with_its_base(base, adapter, logged_in, monkeypatch):
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    expected = load_model(adapter, device="cpu")(IDS).logits
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "me/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    logged_in.models |= {"me/base": {"main": files(base)}, "me/adapter": {"main": files(adapter)}}
    assert torch.equal(load_model("me/adapter", device="cpu")(IDS).logits, expected)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(load_model("me/adapter", device="cpu")(IDS).logits, expected), "from the cache"


def test_a_private_model_says_how_to_log_in(logged_in, monkeypatch):
    logged_in.models["me/closed"] = {"main": {"config.json": b"{}"}}
    logged_in.private.add("me/closed")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(CheckpointError, match="for a private or gated one: `hf auth login`"):
        load_model("me/closed")


def test_without_peft_one_line_says_what_to_install(adapter, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["generate", str(adapter)]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"mypt generate: {adapter} is an adapter. LoRA needs the package peft: pip install mypt[lora]"
    )


def test_a_checkpoint_of_a_run_that_has_not_finished_is_proposed(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "run" / "checkpoint-4")
    with pytest.raises(CheckpointError, match=r"its run has not finished, but there is .*checkpoint-4"):
        load_model(tmp_path / "run")
