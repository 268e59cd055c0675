"""The server: addresses, refusals, texts that stream over HTTP, visitors that wait."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from html import unescape

import pytest

from mypt.demo.server import POLICY, address, bind, is_local, make_server
from mypt.errors import MyPTError
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.terminal import visible
from tests.packages import needs

pytestmark = needs("gradio", "gradio is not installed (the demo extra has it)")


def test_an_address_that_is_taken_or_not_ours_is_one_error():
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(MyPTError, match=rf"127\.0\.0\.1 port {port} cannot be used .*--port"):
            bind("127.0.0.1", port)
    for host in ("203.0.113.1", "no.such.host.invalid"):
        with pytest.raises(MyPTError, match=rf"{host} port 0 cannot be used"):
            bind(host, 0)


def test_who_reaches_an_address():
    for host, local in (("127.0.0.1", True), ("0.0.0.0", False)):
        with bind(host, 0) as listening:
            assert is_local(listening) == local
            assert address(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}/"
    if socket.has_ipv6:
        try:
            with bind("::1", 0) as listening:
                assert is_local(listening) and address(listening).startswith("http://[::1]:")
        except MyPTError:
            pass  # a container without IPv6


@pytest.fixture(scope="module")
def engines(corpora):
    """Two models of other weights, whose texts never end by themselves."""
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM
    from mypt.tokenization.load import load_tokenizer

    tokenizer = load_tokenizer(corpora / "general")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        vocabulary = -(-len(tokenizer) // 64) * 64
        config = MyPTConfig(vocab_size=vocabulary, max_position_embeddings=4096, initializer_range=0.2, **sizes)
        model = MyPTForCausalLM(config).eval()
        model.generation_config.suppress_tokens = [tokenizer.eos_token_id]
        found.append(Engine(model, load_tokenizer(corpora / "general")))
    return found


@pytest.fixture(scope="module")
def url(engines):
    from mypt.demo.page import DemoModel, build_page

    page = build_page([DemoModel(name, name, engine) for name, engine in zip("ab", engines, strict=True)])
    server = make_server(page, local=True)
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield address(listening)
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(url):
    from gradio_client import Client

    return Client(url, verbose=False, analytics_enabled=False)


def values(**changes) -> list:
    """What the page's controls send."""
    controls = {"new": 40, "temperature": 0.8, "top_p": 1, "top_k": 0, "min_p": 0, "penalty": 1}
    controls |= {"seed": "5", "stop": "", "slide": False}
    return list((controls | changes).values())


def test_both_texts_stream_and_are_those_of_the_library(client, engines):
    job = client.submit("def ", *values(new=400), api_name="/generate")
    last = job.result()
    updates = job.outputs()
    assert len(updates) > 2 and len({update[0] for update in updates}) > 2
    for html, engine in zip(last, engines, strict=True):
        expected = engine.complete("def ", GenerationSettings(max_new_tokens=400, seed=5))
        shown = f'<span class="mypt-prompt">def </span>{visible(expected.text)}</div>'
        assert shown in unescape(html)
        assert "400 tokens in" in html and "all new tokens were generated; seed 5" in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "x"}, "the seed is 'x'; it must be a whole number"),
        ({"seed": str(2**63)}, "seed is 9223372036854775808; it must be"),
        ({"prompt": "a" * 5000}, "a: the prompt has 5000 tokens"),
    ],
)
def test_what_cannot_be_done_is_said_to_the_visitor(client, changes, message):
    prompt = changes.pop("prompt", "a")
    with pytest.raises(Exception, match=message):
        client.predict(prompt, *values(**changes), api_name="/generate")


def test_visitors_wait_for_each_other_and_all_get_their_own(url, engines):
    from gradio_client import Client

    clients = [Client(url, verbose=False, analytics_enabled=False) for _ in range(3)]
    jobs = [one.submit("a", *values(new=60, seed=str(seed)), api_name="/generate") for seed, one in enumerate(clients)]
    for seed, job in enumerate(jobs):
        expected = engines[1].complete("a", GenerationSettings(max_new_tokens=60, seed=seed)).text
        assert f"{visible(expected)}</div>" in unescape(job.result()[1])


def test_losses_over_the_network_are_those_of_the_evaluation(client, engines):
    from mypt.evaluation.text_losses import text_losses

    text = "class A:\n    pass\n"
    tables, coloured, _ = client.predict(text, "change", api_name="/losses")
    for engine in engines:
        assert f"{text_losses(engine, text).loss:.4f}" in tables
    assert coloured.count("data-loss=") == len(text)
    with pytest.raises(Exception, match="20,001 characters"):
        client.predict("a" * 20_001, "change", api_name="/losses")


def test_nothing_comes_from_elsewhere_and_nothing_is_told_elsewhere(url, engines):
    import gradio as gr

    from mypt.demo.page import DemoModel, build_page

    with urllib.request.urlopen(url) as answer:
        assert answer.headers["Content-Security-Policy"] == POLICY
    page = build_page([DemoModel("a", "a", engines[0])])
    assert not page.analytics_enabled
    assert isinstance(page, gr.Blocks) and not page.share


def answered(url: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_visitor_reads_no_file_and_has_the_server_fetch_nothing(url, tmp_path):
    """gradio copies a file for any argument that says that it is one, and serves the copy."""
    (tmp_path / "key").write_text("secret")
    for place in (str(tmp_path / "key"), "http://127.0.0.1:9/x"):
        for inside in (lambda file: file, lambda file: [{"a": file}]):
            prompt = inside({"path": place, "meta": {"_type": "gradio.FileData"}})
            body = {"data": [prompt, *values(new=1)]}
            assert answered(url, "gradio_api/call/generate", body) == (403, b"the page has no files")
    assert answered(url, f"gradio_api/file={tmp_path / 'key'}")[0] == 404
    assert answered(url, "gradio_api/upload", {})[0] == 404
    assert answered(url, "gradio_api/call/generate", {"data": ["a" * 2**20]}) == (413, b"too long")
    assert answered(url, "gradio_api/call/generate", {"data": ["a", *values(new=1)]})[0] == 200


def test_a_name_of_another_site_does_not_reach_this_machine(url):
    for host, status in (("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil", 403), ("", 403),
                         ("localhost:7860", 200), ("127.0.0.1", 200), ("[::1]:7860", 200), ("[::1]", 200)):  # fmt: skip
        assert answered(url, "", Host=host)[0] == status, host
