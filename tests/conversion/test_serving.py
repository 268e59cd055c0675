"""Servers of exported folders give an OpenAI client the text that the original generates, whole and as a stream."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM

from mypt.conversion.export import export_model
from mypt.conversion.llama_cpp import serve
from mypt.tokenization.load import load_tokenizer, save_tokenizer
from tests.packages import needs
from tests.processes import free_port

pytestmark = needs("openai", "pip install openai")

SERVE = "import sys; sys.modules['mypt'] = None; from transformers.cli.transformers import main; main()"
PROMPT, TOKENS = "The state", 16
TEMPLATE = "{% for message in messages %}Q{{ message.content }}{% endfor %}{% if add_generation_prompt %}A{% endif %}"


@pytest.fixture
def model(adapted_models, tmp_path):
    """A folder of a small trained model whose tokenizer has a chat template."""
    tokenizer = load_tokenizer(adapted_models / "base")
    tokenizer.chat_template = TEMPLATE
    AutoModelForCausalLM.from_pretrained(adapted_models / "base").save_pretrained(tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model")
    return tmp_path / "model"


def generated(folder, prompt):
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def require_text(address, name, folder, chat=True):
    """An OpenAI client gets the text of a folder's model: as a completion, in pieces, and as a chat in pieces.

    transformers 5.23 begins a streamed chat with the prompt, unless it knows the template's answers.
    """
    import openai

    expected = generated(folder, PROMPT)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    asked = {"model": name, "max_tokens": TOKENS, "temperature": 0}
    assert client.completions.create(prompt=PROMPT, **asked).choices[0].text == expected
    pieces = [piece.choices[0].text for piece in client.completions.create(prompt=PROMPT, stream=True, **asked)]
    assert "".join(pieces) == expected and len([piece for piece in pieces if piece]) > 3
    if chat:
        messages = [{"role": "user", "content": PROMPT}]
        answer = client.chat.completions.create(messages=messages, stream=True, **asked)
        found = "".join(piece.choices[0].delta.content or "" for piece in answer if piece.choices)
        assert found == generated(folder, f"Q{PROMPT}A")


def test_llama_cpp_says_what_the_original_says(model, tmp_path):
    pytest.importorskip("xllamacpp", reason="pip install 'mypt[gguf]'")
    pytest.importorskip("gguf", reason="pip install 'mypt[gguf]'")
    report = export_model(model, tmp_path / "out", format="gguf")
    assert report["greedy_equal"]
    with serve(tmp_path / "out" / "model.gguf", load_tokenizer(model).vocab_size, 32) as server:
        require_text(server.address, "model", model)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "int8"])
def test_transformers_says_what_the_original_says(format, model, tmp_path):
    pytest.importorskip("fastapi", reason='pip install "transformers[serving]"')
    pytest.importorskip("uvicorn", reason='pip install "transformers[serving]"')
    if format == "int8":
        pytest.importorskip("torchao", reason="pip install 'mypt[int8]'")
    out = tmp_path / "out"
    export_model(model, out, format=format)
    with served(tmp_path) as address:
        require_text(address, str(out), model if format == "safetensors" else out, chat=False)


@contextlib.contextmanager
def served(folder):
    """The address of transformers' server, in a process that cannot import mypt."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen([sys.executable, "-c", SERVE, *options], cwd=folder, env=environment)
    try:
        for _ in range(240):
            assert server.poll() is None, "the server ended"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
