"""`mypt demo` as a process of its own, driven through its controls in a real browser."""

import contextlib
import os
import re
import shutil
import signal
import socket
import time

import pytest

from mypt.cli.main import main
from mypt.generation.dialogue import Chat
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.terminal import visible
from tests.processes import Command

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def refused(capsys, *arguments) -> str:
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_what_cannot_be_served_is_one_line(adapted_models, tmp_path, capsys, monkeypatch):
    base = str(adapted_models / "base")
    assert "holds no config.json" in refused(capsys, str(tmp_path))
    assert "neither a folder here" in refused(capsys, base, str(tmp_path / "nowhere"))
    assert "is named twice" in refused(capsys, base, base)
    assert "--port is 70000" in refused(capsys, base, "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be used" in refused(capsys, base, "--port", str(taken.getsockname()[1]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install mypt[demo]" in refused(capsys, base)


@pytest.fixture(scope="module")
def models(whole_run, corpora, tmp_path_factory):
    """`before`: untrained, large enough to be stopped, with a chat template. `after`: the run of `whole_run`."""
    import torch

    from mypt import MyPTConfig, MyPTForCausalLM
    from mypt.tokenization.load import load_tokenizer, save_tokenizer

    folder = tmp_path_factory.mktemp("demo")
    tokenizer = load_tokenizer(corpora / "general")
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = MyPTConfig(vocab_size=-(-len(tokenizer) // 64) * 64, max_position_embeddings=4096, **sizes)
    model = MyPTForCausalLM(config)
    model.generation_config.suppress_tokens = [tokenizer.eos_token_id]
    model.save_pretrained(folder / "before")
    save_tokenizer(tokenizer, folder / "before")
    shutil.copytree(whole_run, folder / "after")
    return folder


@pytest.fixture(scope="module")
def served(models):
    """The page's address; when the tests are done, Ctrl-C ends the command."""
    pytest.importorskip("gradio", reason="gradio is not installed (the demo extra has it)")
    command = Command(["demo", models / "before", models / "after", "--port", "0"], apart=True)
    end = time.monotonic() + 120
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/", command.output())):
        assert command.poll() is None and time.monotonic() < end, command.errors()
        time.sleep(0.05)
    yield found[0]
    os.kill(command.pid, signal.SIGINT)
    assert command.wait() == 0, command.errors()
    assert command.output().endswith("ended\n") and "Traceback" not in command.errors()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """new(size): a page in a window of its own; pages may load nothing but what the server of the test sends."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        folder = tmp_path_factory.mktemp("chromium")
        with contextlib.closing(
            driver.chromium.launch_persistent_context(folder, executable_path=program, args=FLAGS, headless=True)
        ) as context:
            yield context


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served, DESKTOP)


@pytest.fixture
def phone(browser, served):
    yield from opened(browser, served, PHONE)


def opened(browser, url, size):
    found = browser.new_page()
    requests, errors = [], []
    found.on("request", lambda request: requests.append(request.url))
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.set_viewport_size(size)
    found.goto(url)
    found.get_by_role("button", name="Generate").wait_for()
    yield found
    found.close()
    assert [url for url in requests if not url.startswith((served_prefix(url), "data:", "blob:"))] == []
    assert errors == []


def served_prefix(url: str) -> str:
    return "http://127.0.0.1:"


def engine_of(models, name) -> Engine:
    from mypt.checkpoints.load import load_model
    from mypt.tokenization.load import load_tokenizer

    return Engine(load_model(models / name), load_tokenizer(models / name))


def set_slider(page, label: str, value: float) -> None:
    field = page.get_by_label(f"number input for {label}").locator("visible=true")
    field.fill(str(value))
    field.blur()


def generated(page, number: int) -> str:
    return page.locator(f"#text-{number} .mypt-text").inner_text()


def note(page, number: int) -> str:
    return page.locator(f"#text-{number} .mypt-note").inner_text()


def wait_for_note(page, words: str) -> None:
    for number in (0, 1):
        page.locator(f"#text-{number} .mypt-note", has_text=words).wait_for()


def test_both_models_continue_a_prompt_as_the_library_does(page, models):
    page.get_by_label("Prompt").fill("def ")
    set_slider(page, "New tokens", 30)
    page.get_by_role("button", name="More sampling controls").click()
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Generate").click()
    wait_for_note(page, "tokens in")
    for number, name in enumerate(("before", "after")):
        expected = engine_of(models, name).complete("def ", GenerationSettings(max_new_tokens=30, seed=7))
        assert generated(page, number).rstrip() == visible("def " + expected.text).rstrip()
        assert "30 tokens in" in note(page, number) and "seed 7" in note(page, number)
    assert page.get_by_role("button", name="Generate").is_enabled()


def test_stop_ends_both_texts_and_nobody_elses(page, browser, served):
    other = next(opened(browser, served, DESKTOP))
    for one in (page, other):
        one.get_by_label("Prompt").fill("The ")
        set_slider(one, "New tokens", 2000)
    page.get_by_role("button", name="Generate").click()
    page.locator("#text-0 .mypt-note", has_text="generating").wait_for()
    other.get_by_role("button", name="Generate").click()
    other.get_by_role("button", name="Stop").and_(other.locator(":enabled")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#text-0 .mypt-note", has_text="stopped").wait_for()
    assert int(re.match(r"[\d,]+", note(page, 0))[0].replace(",", "")) < 2000
    # The other visitor's turn has come.
    other.locator("#text-0 .mypt-note", has_text="generating").wait_for()
    other.get_by_role("button", name="Stop").click()
    other.locator("#text-0 .mypt-note", has_text="stopped").wait_for()
    other.close()


def test_a_mistake_is_told_and_the_page_can_be_used_again(page):
    page.get_by_label("Prompt").fill("a" * 100)  # the context of `after` has 64 tokens
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("the prompt has 100 tokens").first.wait_for()
    page.get_by_role("button", name="Generate").and_(page.locator(":enabled")).wait_for()


def test_a_dialogue_remembers_its_turns(page, models):
    page.get_by_role("tab", name="Chat").click()
    chat = Chat(engine_of(models, "before"), GenerationSettings(max_new_tokens=12, greedy=True, seed=0))
    page.locator("button", has_text=re.compile("^Sampling")).click()
    set_slider(page, "New tokens", 12)
    set_slider(page, "Temperature", 0)
    for number, question in enumerate(("What is it", "And then")):
        page.get_by_role("textbox", name="Message").fill(question)
        page.get_by_role("button", name="Send").click()
        answer = "".join(chat.ask(question))
        bubbles = page.locator("#chat-0 .bot.message")
        bubbles.nth(number).wait_for()
        page.get_by_text("all new tokens were generated").wait_for()
        page.get_by_role("button", name="Send").and_(page.locator(":enabled")).wait_for()
        assert " ".join(answer.split()) in " ".join(bubbles.nth(number).inner_text().split())


def test_the_tokens_of_a_text_are_coloured_and_tell_their_losses(page, models):
    from mypt.demo.text_losses import compare_texts, text_losses

    page.get_by_role("tab", name="Learned and forgotten").click()
    text = "class A:\n    return None\n"
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Measure").click()
    tokens = page.locator(".mypt-tokens span")
    tokens.first.wait_for()
    pieces = compare_texts([text_losses(engine_of(models, name), text) for name in ("before", "after")])
    assert tokens.count() == len(pieces) == len(text)
    assert f"change {pieces[0].losses[1] - pieces[0].losses[0]:+.2f}" in tokens.first.get_attribute("data-loss")
    before = tokens.first.get_attribute("style")
    page.get_by_label("after").check()
    page.wait_for_function(
        "old => document.querySelector('.mypt-tokens span').getAttribute('style') != old", arg=before
    )
    # A text of the run's evaluation sets comes by a click, and is measured.
    page.get_by_role("button", name="Another text of it").click()
    page.wait_for_function("n => document.querySelectorAll('.mypt-tokens span').length > n", arg=3 * len(text))
    assert page.get_by_label("Text", exact=True).input_value() != text


def test_the_run_has_its_pictures_and_tables(page):
    page.get_by_role("tab", name="Runs").click()
    page.get_by_role("tab", name="after").click()
    page.get_by_text("Dataset coverage").locator("visible=true").wait_for()
    assert page.get_by_role("cell", name="domain").locator("visible=true").count() > 0


@pytest.mark.parametrize("tab", ["Generate", "Chat", "Learned and forgotten", "Runs"])
def test_nothing_is_wider_than_a_phone(phone, tab):
    found = phone.get_by_role("tab", name=tab)
    if not found.is_visible():  # in the menu of the tabs that do not fit
        phone.locator(".overflow-menu button").first.click()
        found = phone.locator(".overflow-dropdown button", has_text=tab)
    found.click()
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
