"""docs/moving.md names every flag of the older tools, and the key or option that takes its place exists."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "moving.md").read_text(encoding="utf-8")
SEEDS = Path("/work/shared/seeds")  # the owner's documents of the older tools

FLAGS = {
    "train.py": """config_file model_name input_file dataset_dir tokenization max_iters learning_rate init_from_model
        eval_dataset_dir skip_coverage_check""",
    "prepare_dataset.py": """input_files out_dir tokenization tokens_per_shard val_fraction no_normalize no_filter
        no_dedup""",
    "generate.py": "model_name prompt",
    "The other scripts and the Python API": "config_file model_name",
    "train_advanced.py": """dataset-id text-column dataset-config split val-split max-train-examples max-val-examples
        auto-vocab-size vocab-size min-vocab-size max-vocab-size tokenizer-train-examples retrain-tokenizer
        tokenizer-path model-preset d-model num-layers num-heads d-ff seq-len dropout-rate activation no-rmsnorm
        no-swiglu no-rope use-lora lora-rank epochs batch-size gradient-accumulation-steps learning-rate weight-decay
        warmup-steps grad-clip no-streaming streaming shuffle-buffer-size stride use-mixed-precision output-dir
        log-every save-every eval-every resume-from cloud-provider cloud-bucket cloud-region cloud-prefix
        azure-sas-token azure-account-name""",
    "The sweep script": "type num-random gpus dry-run",
}


@pytest.mark.parametrize("tool", FLAGS)
def test_every_flag_is_in_the_first_column_of_its_tool(tool):
    section = re.search(rf"^## {re.escape(tool)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    first = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = re.findall(r"--([a-z][\w-]*)", " ".join(first))
    assert sorted(named) == sorted(FLAGS[tool].split())


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the owner's documents are not here")
def test_no_flag_of_the_documents_is_left_out():
    text = " ".join(path.read_text(encoding="utf-8", errors="replace") for path in SEEDS.glob("*.txt"))
    known = {flag for flags in FLAGS.values() for flag in flags.split()}
    assert set(re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", text)) <= known
