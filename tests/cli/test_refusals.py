"""What is wrong with a command is answered before the imports that take seconds: torch, transformers, datasets."""

import json
import os
import shlex
import subprocess
import sys

import pytest

# One interpreter runs the command lines in turn; what one of them imports is there for those after it, too.
PROBE = """
import io, json, sys
from mypt.cli.main import main

def run(words):
    sys.stdout = sys.stderr = output = io.StringIO()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    return code, output.getvalue(), sorted({"torch", "transformers", "datasets", "accelerate"} & set(sys.modules))

json.dump([run(words) for words in json.load(sys.stdin)], sys.__stdout__)
"""
CASES = """
evaluate empty --data a=data --split train           | no config.json
evaluate data --data a=data --split train            | no config.json
evaluate model --data data             | --data data is not understood
evaluate model --data a=nothing        | dataset directory nothing does not exist
evaluate model --data a=text.txt       | model holds no tokenizer to encode a with
evaluate model --data a=text.txt --split train  | the set a is a text
evaluate model --data a=nothing.txt    | nothing.txt does not exist
evaluate model                         | nothing to measure
evaluate model --references a=text.txt | expected a .jsonl file
evaluate model --tasks nothing.yaml    | --tasks
evaluate model --data a=data --split train --by source  | does not say which documents of train
evaluate model --data a=empty          | no dataset_metadata.json
evaluate model --data a=data --split val     | no val split
evaluate model --data a=data a=data    | a name twice
evaluate model --data a=data --guard b --split train    | --guard names 'b'
evaluate model --data a=data --batch-size 0 --split train   | --batch-size is 0
evaluate model --data a=data --block-size 0 --split train   | --block-size is 0
evaluate model --data a=data --block-size 65 --split train  | 1 to 64 tokens
generate empty                         | no config.json
generate model --temperature -1        | temperature is -1
generate model --prompts nothing.jsonl | nothing.jsonl cannot be read
generate model --resume                | --resume goes with --out
export empty --out out                 | no config.json
export model --out full                | full exists and is not empty
export model --out text.txt            | text.txt exists
interpolate model model --out out      | give either --alpha, or --guard
interpolate nothing model --out out --alpha 0.5          | nothing
interpolate model model --out out --guard a=valued --batch-size 0 | --batch-size is 0
merge model --out out                  | no adapter
merge nothing --out out                | no adapter
merge adapter --out full               | full exists and is not empty
merge adapter --out out                | is not in /nowhere any more
train nothing.yaml                     | does not exist
train empty                            | does not exist
train recipe.yaml --training.max_step=1          | did you mean 'max_steps'
train recipe.yaml --training.output_dir=         | training.output_dir is missing
train recipe.yaml --training.output_dir=full     | full holds x
train recipe.yaml --training.output_dir=text.txt | text.txt is a file
train recipe.yaml --training.save_strategy=no    | expected steps
train recipe.yaml --data.train=nothing           | data source nothing does not exist
train recipe.yaml --data.train=empty             | no dataset_metadata.json
train recipe.yaml --data.train={}                | data.train is missing
train recipe.yaml "--data.train={data: 1, text.txt: 1}" | a text source among several
train recipe.yaml "--data.train={data: 1, other: 1}"    | different tokenizers
train recipe.yaml "--data.eval={a: nothing}"     | data source nothing does not exist
train recipe.yaml "--data.eval={a: data}"        | no val split
train recipe.yaml --data.block_size=5000         | needs at least 5001 tokens
train recipe.yaml --model.preset=nothing         | there is no preset 'nothing'
train recipe.yaml --model.hidden_size=7          | hidden_size 7
train recipe.yaml --model.init_from=empty        | no config.json
train recipe.yaml --model.init_from=foreign      | m.gguf is a GGUF file, which MyPT does not read
train recipe.yaml --model.init_from=foreign/m.gguf | docs/domain_adaptation.md
train recipe.yaml "--data.eval={a: valued}" --data.train=valued --forgetting.target=b     | names the set 'b'
train recipe.yaml --data.train=valued --forgetting.guard=[b]     | the evaluation sets are: valued
train run --resume=checkpoint-3        | there is no checkpoint checkpoint-3
train run                              | already holds checkpoints of this run
train recipe.yaml --training.output_dir=held     | another process is writing held
plan nothing.yaml                      | does not exist
plan modern-tinny                      | did you mean modern-tiny
plan foreign/m.gguf                    | is a GGUF file
inspect foreign                        | is a GGUF file
prepare --source text.txt --out out --tokenizer foreign/m.gguf | is a GGUF file
plan empty                             | config.json cannot be read
estimate modern-nano --hidden-size 7   | hidden_size 7
inspect nothing                        | nothing does not exist
inspect empty                          | holds neither
inspect model data                     | one is a dataset
convert empty --out out                | no dataset of the original
convert empty --out out --all          | neither .pt files
convert old.pt --out full              | full exists and is not empty
prepare --source nothing.txt --out out | source nothing.txt does not exist
prepare --source text.txt --out full   | full holds x
subset nothing --out out               | dataset directory nothing does not exist
subset data --out full                 | full holds x
append nothing --source text.txt       | dataset directory nothing does not exist
append data --from empty               | no dataset_metadata.json
verify empty                           | no dataset_metadata.json
tokenizer empty                        | no tokenizer.json
upload empty hf://a/b                  | holds no model
download ftp://a out                    | no place for models
download hf://a/b full                 | full exists and is not empty
presets nothing                        | there is no preset
"""


@pytest.fixture
def place(tmp_path, make_shards, monkeypatch):
    """A folder with a little of everything that commands take."""
    from mypt.files import replace_text
    from mypt.folders import WriterLock

    monkeypatch.chdir(tmp_path)
    for name, vocabulary in (("data", 8), ("other", 8), ("valued", 8)):
        ids = [number % vocabulary for number in range(400)]
        make_shards(name, train=ids, val=ids if name == "valued" else None, vocab_size=vocabulary)
    metadata = json.loads((tmp_path / "other" / "dataset_metadata.json").read_text())
    replace_text(tmp_path / "other" / "dataset_metadata.json", json.dumps(metadata | {"tokenizer_hash": "1" * 32}))
    recipe = "model: {preset: modern-nano}\ndata: {train: data, block_size: 16}\ntraining: {output_dir: %s}\n"
    files = {
        "text.txt": "some text\n",
        "old.pt": "",
        "full/x": "",
        "foreign/m.gguf": "GGUF",
        "recipe.yaml": recipe % "out",
        "model/config.json": '{"model_type": "mypt", "max_position_embeddings": 64}',
        "adapter/adapter_config.json": '{"base_model_name_or_path": "/nowhere"}',
        "run/recipe.yaml": recipe % "run",
        "run/environment.json": '{"identity": {}}',
        "run/checkpoint-2/trainer_state.json": '{"global_step": 2}',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    lock = WriterLock(tmp_path / "held")
    lock.acquire()
    yield tmp_path
    lock.release()


def test_a_refusal_needs_no_heavy_import(place):
    cases = [[part.strip() for part in line.split("|")] for line in CASES.strip().splitlines()]
    lines = [shlex.split(line) for line, _ in cases]
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    options = {"capture_output": True, "text": True, "env": environment, "check": True}
    done = subprocess.run([sys.executable, "-c", PROBE], input=json.dumps(lines), **options)
    names = sorted(path.name for path in place.iterdir())
    for (line, words), answer in zip(cases, json.loads(done.stdout), strict=True):
        code, printed, heavy = answer
        assert code == 2 and words in printed, f"mypt {line}: {code}, {printed}"
        assert not heavy, f"mypt {line} imported {', '.join(heavy)} to say {printed}"
    assert "out" not in names  # a command that is refused leaves nothing
