"""`transformers serve` on an exported folder answers with the text that the original generates."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from mypt import MyPTForCausalLM, preset_config
from mypt.conversion.export import export_model
from mypt.conversion.parity import TEXT
from mypt.tokenization.load import largest_id, save_tokenizer
from mypt.tokenization.train import train_bpe_tokenizer

SERVE = "import sys; sys.modules['mypt'] = None; from transformers.cli.transformers import main; main()"
PROMPT = "The committee met on"


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "modern-nano"])
def test_the_server_of_transformers_says_what_the_original_says(tmp_path, preset):
    pytest.importorskip("fastapi", reason='pip install "transformers[serving]"')
    pytest.importorskip("uvicorn", reason='pip install "transformers[serving]"')
    tokenizer = train_bpe_tokenizer([TEXT] * 3, 320)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 96}
    size, eos = largest_id(tokenizer) + 1, tokenizer.eos_token_id
    tokens = {"vocab_size": size + 20, "unpadded_vocab_size": size, "eos_token_id": eos, "pad_token_id": eos}
    model = MyPTForCausalLM(preset_config(preset, **sizes, **tokens)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out")

    given = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    ids = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=24)
    expected = tokenizer.decode(ids[0, given.shape[1] :], skip_special_tokens=True)
    with served(tmp_path) as address:
        asked = {"model": str(tmp_path / "out"), "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        answer = post(f"{address}/v1/completions", asked)
    assert answer["choices"][0]["text"] == expected


@contextlib.contextmanager
def served(folder):
    """The address of a server that cannot import mypt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen([sys.executable, "-c", SERVE, *options], cwd=folder, env=environment)
    try:
        for _ in range(120):
            assert server.poll() is None, "the server ended"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def post(address, content):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)
