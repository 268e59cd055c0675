"""`mypt plan` on recipes, presets, checkpoints and bare numbers: quick, and with a message for what is missing."""

import json
import os
import re
import subprocess
import sys

import pytest

from mypt.checkpoints.lineage import write_lineage
from mypt.cli.main import main
from mypt.models.configuration_mypt import MyPTConfig
from mypt.models.presets import preset_dimensions
from mypt.planning.parameters import count_parameters
from mypt.planning.scaling import effective_tokens
from mypt.shards.format import Manifest, Shard, Split, read_manifest, write_manifest


@pytest.fixture
def dataset(tmp_path):
    """Make a dataset directory of a given size: a plan reads the manifest and the sizes of the files."""

    def make(name, tokens):
        directory = tmp_path / name
        (directory / "train").mkdir(parents=True)
        with open(directory / "train" / "shard_00000.bin", "wb") as file:
            file.truncate(2 * tokens)
        shard = Shard("train/shard_00000.bin", tokens, 10, 4 * tokens, 0, 999, "0" * 32)
        write_manifest(directory, Manifest("uint16", 1_000, 0, "0" * 32, {"train": Split([shard]), "val": Split()}))
        return str(directory)

    return make


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def plan(capsys, monkeypatch):
    """Run `mypt plan ... --json` and return what it printed, parsed."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def run(*arguments, code=0):
        assert main(["plan", *arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("text", ["", "M", "-5", "0", "1e-3", "five", "1.2X", "nan"])
def test_other_numbers_are_refused(text, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--tokens", text])
    assert stop.value.code == 2
    assert "500M" in capsys.readouterr().err


def test_bare_numbers_follow_the_calculator(plan):
    arguments = ("--tokens", "1_234_567", "--params", "11M", "--block-size", "256", "--batch-size", "32")
    result = plan(*arguments, "--steps", "1000")
    assert result["coverage"]["recommended_steps"] == {"2x": 302, "3.5x": 528, "5x": 754}
    assert (result["coverage"]["band"], result["reason"]) == ("high", "--steps")
    result = plan(*arguments)
    assert result["training"]["steps"] == 528
    assert "3.5" in result["reason"]


def test_a_preset(plan):
    result = plan("modern-tiny", "--tokens", "15M", "--batch-size", "16", "--processes", "2")
    assert result["parameters"] == count_parameters(preset_dimensions("modern-tiny"))
    assert result["training"]["tokens_per_step"] == 16 * 1024 * 2
    assert result["notes"] == []


def test_a_longer_block_lengthens_the_preset(plan):
    result = plan("tiny", "--tokens", "15M", "--block-size", "512")
    assert result["parameters"]["positions"] == 512 * 192
    assert any("128 positions" in note for note in result["notes"])


def test_a_recipe_with_its_data(plan, recipe, dataset):
    path = recipe(f"""
model: {{preset: modern-nano, num_hidden_layers: 2}}
data: {{train: {dataset("corpus", 1_000_000)}, block_size: 128}}
training: {{output_dir: out, per_device_train_batch_size: 16, gradient_accumulation_steps: 2, max_steps: 400}}
""")
    result = plan(path)
    assert result["coverage"]["coverage"] == 400 * 16 * 2 * 128 / 1_000_000
    changed = preset_dimensions("modern-nano", num_hidden_layers=2, vocab_size=1_024)  # 1,000 ids, padded to 64
    assert result["parameters"] == count_parameters(changed)
    assert "evaluation" not in result["memory"], "there is no evaluation set"
    assert plan(path, "--training.max_steps=800")["training"]["steps"] == 800
    assert plan(path, "--tokens", "5M")["coverage"]["sources"][0]["tokens"] == 5_000_000


def test_epochs_and_targets_give_the_steps_of_training(plan, recipe, dataset):
    data = f"data: {{train: {dataset('corpus', 100_000)}, block_size: 100}}\n"
    by_epochs = plan(recipe(data + "training: {num_train_epochs: 2, per_device_train_batch_size: 10}"))
    assert by_epochs["training"]["steps"] == 200  # 999 windows, twice, 10 at a time
    by_target = plan(recipe(data + "coverage: {target: 1}\ntraining: {per_device_train_batch_size: 10}"))
    assert by_target["training"]["steps"] == 100


def test_a_mixture_is_judged_by_its_main_source(plan, recipe, dataset):
    small, large = dataset("small", 90_000), dataset("large", 10**7)
    path = recipe(f"""
data: {{train: {{{small}: 0.9, {large}: 0.1}}, block_size: 100}}
coverage: {{target: 3}}
training: {{per_device_train_batch_size: 10}}
""")
    result = plan(path)
    assert result["training"]["steps"] == 300  # 100,000 tokens of the mixture hold 90,000 of its main source
    assert [round(row["coverage"], 4) for row in result["coverage"]["sources"]] == [3.0, 0.003]


def test_a_plan_counts_what_the_start_model_saw_of_the_same_text(plan, recipe, dataset, tmp_path):
    data, other = dataset("corpus", 100_000), dataset("other", 50_000)
    model = tmp_path / "model"
    MyPTConfig(**preset_dimensions("modern-nano", vocab_size=1_024)).save_pretrained(model)
    text = f"model: {{init_from: {model}}}\ndata: {{train: {data}, block_size: 100}}\n"
    path = recipe(text + "training: {max_steps: 200, per_device_train_batch_size: 10}")
    unknown = plan(path)
    assert f"what {model} was trained on is not known" in " ".join(unknown["notes"])
    assert unknown["coverage"]["sources"][0]["seen_before"] == 0
    seen = [
        {"name": name, "samples": 3_000, "tokens": 300_000, "source_tokens": size, "estimated": False,
         "fingerprints": [read_manifest(place).fingerprint("train")]}
        for name, place, size in (("elsewhere", data, 100_000), (data, other, 50_000))
    ]  # fmt: skip
    write_lineage(model, {"base": None, "runs": [{"name": "runs/a", "step": 9}], "seen": seen})
    known = plan(path)
    [source] = known["coverage"]["sources"]
    assert (source["coverage"], source["seen_before"], source["band"]) == (2, 300_000, "good")
    assert known["coverage"]["scaling"]["effective_tokens"] == round(effective_tokens(500_000, 100_000))
    assert "the start model has seen before: elsewhere 3.00x (300,000 tokens)" in " ".join(known["notes"])


def test_what_is_missing_is_said_and_the_rest_is_planned(plan, recipe, tmp_path):
    missing = tmp_path / "nowhere"
    result = plan(recipe(f"data: {{train: {missing}}}\nmodel: {{preset: modern-nano}}"))
    assert any(str(missing) in note for note in result["notes"])
    assert "coverage" not in result
    assert result["memory"]["training"]["total"] > 0


def test_a_text_file_is_estimated_and_marked(plan, recipe, tmp_path, capsys):
    text = tmp_path / "input.txt"
    text.write_text("word " * 20_000)
    path = recipe(f"data: {{train: {text}, block_size: 128}}")
    assert plan(path)["coverage"]["sources"][0]["tokens"] == 22_500  # 100,000 bytes / 4, a tenth of it held out
    assert main(["plan", path]) == 0
    assert "about 22,500 tokens (estimate)" in capsys.readouterr().out


def test_a_checkpoint(plan, tmp_path):
    config = MyPTConfig(vocab_size=96, hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
    config.save_pretrained(tmp_path)
    assert plan(str(tmp_path))["parameters"] == count_parameters(config.to_dict())


GPT2 = {"model_type": "gpt2", "vocab_size": 960, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}


@pytest.mark.parametrize(
    ("own", "section", "optimizer"),
    [({}, "", "muon"), ({"scale_attn_by_inverse_layer_idx": True}, "", "adamw"), ({}, "lora: {}\n", "adamw")],
    ids=["as mypt", "as it is", "adapter"],
)
def test_an_existing_model_is_planned_as_it_will_be_trained(plan, recipe, dataset, tmp_path, own, section, optimizer):
    """With rows for the data's 1,000 ids, positions for its block, and the optimizer that its class gets."""
    (tmp_path / "config.json").write_text(json.dumps(GPT2 | own))
    text = (
        f"model: {{init_from: {tmp_path}}}\ndata: {{train: {dataset('corpus', 100_000)}, block_size: 1024}}\n{section}"
    )
    planned = plan(recipe(text))
    assert planned["parameters"]["embedding"] == 1024 * 64 and planned["parameters"]["positions"] == 1024 * 64
    assert planned["memory"] == plan(recipe(f"{text}optimizer: {{name: {optimizer}}}"))["memory"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--tokens"),
        (["modern-tinny"], "modern-tiny"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["."], "config.json"),
        (["tiny", "--params", "5M"], "--params 5,000,000"),
        (["tiny", "--training.max_steps=3"], "--training.max_steps=3"),
    ],
)
def test_bad_input_is_one_clear_message(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) <= 2


@pytest.mark.parametrize("name", ["max_steps", "num_train_epochs", "per_device_train_batch_size"])
def test_a_recipe_value_that_is_no_number_is_named(name, recipe, dataset, capsys):
    path = recipe(f"data: {{train: {dataset('corpus', 1_000_000)}}}")
    assert main(["plan", path, f"--training.{name}=many"]) == 2
    assert f"training.{name} is 'many'" in capsys.readouterr().err


def test_a_device_that_is_not_here(plan):
    given = ("750M_1024", "--steps", "1000", "--batch-size", "4")
    result = plan(*given, "--device", "h100", "--processes", "8", "--price", "2.5")
    assert result["choices"]["dtype"]["value"] == "bfloat16" and result["choices"]["attention"]["value"] == "sdpa"
    assert result["memory"]["available"] == int(79.6 * 2**30) and result["memory"]["fits"]
    assert result["memory"]["largest_micro_batch"] > 4
    time = result["time"]
    assert (time["source"], time["price"]) == ("assumed", 2.5)
    assert time["device_hours"] == pytest.approx(8 * time["seconds"] / 3_600)
    assert time["cost"] == pytest.approx(2.5 * time["device_hours"])
    assert time["least"] < time["cost"] < time["most"]
    assert plan(*given, "--device", "a100")["time"]["seconds"] > plan(*given, "--device", "h100")["time"]["seconds"]
    smaller = plan(*given, "--device", "t4", code=1)
    assert smaller["choices"]["dtype"]["value"] == "float16" and not smaller["memory"]["fits"]
    assert plan(*given, "--device", "t4", "--memory", "80G")["memory"]["fits"], "--memory wins"
    assert plan(*given, "--device", "t4", "--tokens-per-second", "1k", code=1)["time"]["source"] == "given"


def test_a_run_is_planned_on_another_device_with_what_that_would_choose(plan, whole_run):
    """Not with what its machine chose, which is in the recipe of its folder."""
    here, there = plan(str(whole_run)), plan(str(whole_run), "--device", "h100")
    assert here["choices"]["dtype"]["value"] == "float32" and here["choices"]["attention"]["value"] == "eager"
    assert there["choices"]["dtype"]["value"] == "bfloat16" and there["choices"]["attention"]["value"] == "sdpa"
    kept = plan(str(whole_run), "--device", "h100", "--training.bf16=false")
    assert kept["choices"]["dtype"]["value"] == "float32", "an explicit value wins"


def test_the_speed_of_an_earlier_run_is_used_for_the_same_step_alone(plan, whole_run):
    recorded = json.loads((whole_run / "speed.json").read_text())
    assert recorded["steps"] == 11, "all but the first"
    found = plan(str(whole_run), "--training.max_steps=600")
    assert found["time"]["source"] == "recorded" and str(whole_run) in found["time"]["words"]
    assert found["time"]["parts"]["steps"] == pytest.approx(600 * recorded["seconds"])
    assert found["training"]["tokens_per_step"] == pytest.approx(recorded["seconds"] * recorded["tokens_per_second"])
    assert plan(str(whole_run), "--batch-size", "8")["time"]["source"] == "assumed"
    assert plan(str(whole_run), "--device", "h100")["time"]["source"] == "assumed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tiny", "--device", "h10"], "did you mean h100"),
        (["tiny", "--price", "nan"], "nan"),
        (["tiny", "--price", "-1"], "below 0"),
        (["tiny", "--measure"], "needs a recipe"),
        (["tiny", "--measure", "--device", "h100", "--dtype", "float32"], "leave out --dtype, --device"),
    ],
)
def test_a_bad_device_price_or_measurement_is_refused(arguments, says, capsys):
    try:
        code = main(["plan", *arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2 and says in capsys.readouterr().err


def test_a_measurement_that_does_not_fit_is_refused_before_it_begins(recipe, dataset, capsys):
    path = recipe(f"model: {{preset: modern-xlarge}}\ndata: {{train: {dataset('corpus', 10**6)}}}\n")
    assert main(["plan", path, "--measure", "--steps", "10", "--training.per_device_train_batch_size=4096"]) == 2
    error = capsys.readouterr().err
    assert "does not fit" in error and "--training.per_device_train_batch_size=" in error
    assert len(error.splitlines()) == 1


def test_a_plan_that_does_not_fit_says_by_how_much(capsys):
    assert main(["plan", "750M_1024", "--memory", "12G", "--batch-size", "32", "--steps", "10"]) == 1
    out, error = capsys.readouterr()
    assert out.startswith("Plan of 750M_1024: cannot run: memory") and "more than the 12.0" in out
    assert len(error.splitlines()) == 1 and "memory" in error


def test_no_heavy_import(recipe, dataset, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    data = f"data: {{train: {dataset('corpus', 1_000_000)}}}"
    path = recipe(f"model: {{init_from: {tmp_path}}}\n{data}\ntraining: {{num_train_epochs: 1}}")
    program = (
        "import sys; from mypt.cli.main import main; code = main(['plan', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)), code)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


@pytest.mark.parametrize("damage", ["moved in", "missing", "cut short", "val missing"])
def test_data_that_training_refuses_is_refused_alike(damage, recipe, make_shards, capsys):
    from mypt.errors import DataError
    from mypt.shards.reader import ShardReader

    directory = make_shards(train=range(1, 900), val=range(1, 200), per_shard=400)
    first = directory / "train/shard_00000.bin"
    if damage == "moved in":
        (directory / "train/shard_00009.bin").write_bytes(first.read_bytes())
    elif damage == "missing":
        first.unlink()
    elif damage == "cut short":
        first.write_bytes(first.read_bytes()[:-2])
    else:
        (directory / "val/shard_00000.bin").unlink()
    assert main(["plan", recipe(f"data: {{train: {directory}, block_size: 64}}")]) == 2
    with pytest.raises(DataError) as refused:
        ShardReader(directory, "val" if damage == "val missing" else "train")
    assert str(refused.value) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "estimate"])
@pytest.mark.parametrize("memory", ["40G", "8G"])
@pytest.mark.parametrize("kind", ["preset", "recipe", "recipe of a checkpoint"])
def test_advice_works_when_it_is_followed(command, memory, kind, recipe, tmp_path, capsys):
    """Every line with flags, typed as it is printed, gives a step that fits and has the same global batch."""
    config = preset_dimensions("750M_1024") | {"model_type": "mypt"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    models = {"recipe": "preset: 750M_1024", "recipe of a checkpoint": f"init_from: {tmp_path}"}
    target = recipe(f"model: {{{models[kind]}}}\ndata: {{train: nowhere}}\n") if kind in models else "750M_1024"
    given = [command, target, "--dtype", "bfloat16", "--memory", memory]
    start = ["--batch-size", "32"]
    assert main([*given, *start]) == (1 if command == "plan" else 0)
    lines = capsys.readouterr().out.splitlines()
    if command == "plan":
        changes = [line.strip().removeprefix("-> ") for line in lines if line.strip().startswith("-> ")]
    else:
        words = next(line for line in lines if "does not fit" in line)
        changes = words.partition("; ")[2].split(", or ")
    advised = {flags: change for change in changes if (flags := change.partition(": --")[2])}
    assert advised
    assert any("lora" in flags for flags in advised) == (memory == "8G" and kind != "recipe")
    smaller = [change for change in changes if "smaller model" in change]
    assert bool(smaller) == (memory == "8G")
    assert any("--model.preset=" in change for change in smaller) == (memory == "8G" and kind == "recipe")
    for flags, change in advised.items():
        options = f"--{flags}".split()
        if kind != "preset" and (launched := re.search(r"over (\d+) devices \(FSDP\)", change)):
            options += ["--fsdp", launched[1]]  # of a launch, which a recipe does not name
        assert main([*given, *options, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["memory"]["fits"]
        step = report["training"]["tokens_per_step"] if command == "plan" else (
            report["step"]["micro_batch_size"] * report["step"]["accumulation"] * 1024
        )  # fmt: skip
        assert step == 32 * 1024


def test_params_plan_a_model_that_is_not_here(recipe, plan, monkeypatch):
    from mypt.checkpoints import meta

    def unreachable(name):
        raise meta.HubError(f"{name} is not there")

    monkeypatch.setattr(meta, "_from_hub", unreachable)
    path = recipe("model: {init_from: nobody/none}\ndata: {train: nowhere}\n")
    assert any("--params N" in note for note in plan(path)["notes"])
    assert plan(path, "--params", "124M")["parameters"] == {"total": 124_000_000}
    assert main(["estimate", path]) == 2


def test_presets_side_by_side(plan, capsys):
    names = ["modern-nano", "modern-tiny", "tiny"]
    result = plan("--compare", ",".join(names), "--tokens", "20M", "--memory", "4G")
    rows = result["alternatives"]
    assert [row["name"] for row in rows] == names and result["target"] == "modern-nano"
    for row in rows:
        alone = plan(row["name"], "--tokens", "20M", "--memory", "4G")
        assert row["parameters"] == alone["parameters"]["total"]
        assert (row["steps"], row["flops"]) == (alone["training"]["steps"], alone["compute"]["flops"])
        assert (row["memory"], row["fits"]) == (alone["memory"]["training"]["total"], alone["memory"]["fits"])
        assert row["predicted_loss"] == alone["coverage"]["scaling"]["predicted_loss"]
    assert main(["plan", "modern-nano", "--compare", "modern-tiny", "--tokens", "20M"]) == 0
    out = capsys.readouterr().out
    assert out.index("Side by side") < out.index("Dataset coverage")
    assert [line.split()[0] for line in out.splitlines() if "e+1" in line and "yes" in line] == ["this", "modern-tiny"]


def test_a_recipe_is_compared_with_its_own_data_and_batch(plan, recipe, dataset, tmp_path, capsys):
    path = recipe(f"data: {{train: {dataset('corpus', 10**6)}, block_size: 128}}\nmodel: {{preset: modern-nano}}")
    own, other = plan(path, "--compare", "modern-tiny")["alternatives"]
    assert (own["name"], other["name"], own["steps"]) == ("this run", "modern-tiny", other["steps"])
    assert other["parameters"] == plan(path, "--model.preset=modern-tiny")["parameters"]["total"]
    for arguments, says in [(["modern-tinny"], "modern-tiny"), (["tiny", "--steps", "1,2"], "one of the two")]:
        assert main(["plan", path, "--compare", *arguments]) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    assert main(["plan", path, "--model.init_from", str(tmp_path), "--compare", "tiny"]) == 2


def test_lengths_side_by_side(plan):
    given = ("modern-nano", "--tokens", "1M", "--block-size", "100", "--batch-size", "10")
    rows = plan(*given, "--steps", "1000,4_000,40k")["alternatives"]
    assert [(row["steps"], row["coverage"]) for row in rows] == [(1_000, 1.0), (4_000, 4.0), (40_000, 40.0)]
    assert [round(row["effective_tokens"] / 1e6, 2) for row in rows] == [1.0, 3.73, 15.17]
    assert "alternatives" not in plan(*given, "--steps", "1000")


def test_a_picture_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    assert main(["plan", "modern-nano", "--tokens", "1M", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and str(path) in capsys.readouterr().out
    for arguments, says in [([str(path)], "--tokens"), ([str(tmp_path / "plan.gif"), "--tokens", "1M"], ".png")]:
        assert main(["plan", "modern-nano", "--plot", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert main(["plan", "modern-nano", "--tokens", "1M", "--plot", str(tmp_path / "none" / "plan.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "broken",
    [
        ["--model.num_attention_heads=5"],
        ["--model.num_key_value_heads=2"],
        ["--model.head_dim=33", "--model.num_attention_heads=3"],
        ["--model.vocab_size=100"],
        ["--data.block_size=5000"],
    ],
)
def test_the_nearest_values_that_work_are_proposed_and_do(broken, recipe, dataset, capsys):
    path = recipe(f"data: {{train: {dataset('corpus', 4_000)}, block_size: 64}}\nmodel: {{preset: modern-nano}}")
    code = main(["plan", path, *broken])
    out, error = capsys.readouterr()
    assert code == (1 if "--data" in broken[0] else 2) and len(error.splitlines()) == 1
    proposed = re.findall(r"--(?:model|data)\.\w+=\d+", error + out)
    assert proposed
    for flag in proposed:
        assert main(["plan", path, *broken, flag]) == 0, flag
        capsys.readouterr()


def test_a_guard_that_is_trained_on_is_named(recipe, make_shards, capsys):
    import numpy as np

    ids = np.random.default_rng(0).integers(1, 1_000, 30_000)
    law, wiki = make_shards("law", train=ids), make_shards("wiki", train=ids[:100], val=ids[:15_000], vocab_size=1_000)
    text = f"data: {{train: {law}, eval: {{wiki: {wiki}}}, block_size: 64}}\nmodel: {{preset: modern-nano}}"
    assert main(["plan", recipe(text)]) == 0
    out = capsys.readouterr().out
    assert "val split of wiki" in out.splitlines()[0]
    assert f"100% of wiki is in the training data of {law}" in re.sub(r"\s+", " ", out)


def test_a_disk_without_room_fails_the_plan(recipe, dataset, monkeypatch, capsys):
    from mypt.training import target

    text = f"data: {{train: {dataset('corpus', 10**6)}, block_size: 64}}\ntraining: {{output_dir: out}}"
    path = recipe(text + "\nmodel: {preset: modern-nano}")
    monkeypatch.setattr(target, "free_for", lambda folder: 10**8)
    assert main(["plan", path, "--training.save_total_limit=null"]) == 1
    flag = re.search(r"--training.save_total_limit=\d+", capsys.readouterr().out)[0]
    assert main(["plan", path, flag]) == 0
