"""The report in a real browser: what a pointer shows, no request, no error, no foreign script, any width and light."""

import json
import re
import shutil

import pytest

from mypt.report.content import read_content
from mypt.report.page import page as page_of

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
EVIL = "</pre></script><script>window.hit = 1</script><img src=http://127.0.0.1:9/x onerror='window.hit = 1'>"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(whole_run, tmp_path_factory):
    """The page of a run, with a sample that tries to be markup."""
    sample = {"set": EVIL, "prompt": EVIL, "text": EVIL, "original": EVIL}
    samples = {"temperature": 0.8, "top_p": 0.95, "samples": [sample]}
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text(page_of(read_content(whole_run), samples), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, report):
    """opened(**options of the context): the page, and the list of its requests, messages and errors."""
    contexts = []

    def open_page(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        shown, seen = context.new_page(), []
        shown.on("request", lambda request: seen.append(("request", request.url)))
        shown.on("console", lambda message: seen.append(("console", message.text)))
        shown.on("pageerror", lambda error: seen.append(("error", str(error))))
        shown.goto(report.as_uri())
        return shown, seen

    yield open_page
    for context in contexts:
        context.close()


def logged(run, key: str) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def test_a_pointer_shows_the_values_of_a_step(opened, whole_run):
    shown, _ = opened(viewport={"width": 1200, "height": 900})
    box = shown.locator("#loss .plot").bounding_box()
    left, right = json.loads(shown.locator("#loss script").text_content())["range"][:2]
    for step in (4, 12):
        shown.mouse.move(box["x"] + (box["width"] - 2) * (step - left) / (right - left), box["y"] + 50)
        tip = shown.locator("#loss .tip").inner_text()
        assert re.search(rf"\bstep {step}\b", " ".join(tip.split()))
        for key in ("loss", "eval_domain_loss", "eval_general_loss"):
            assert f"{logged(whole_run, key)[step]:.4f}" in tip
    shown.mouse.move(5, 5)
    assert shown.locator(".tip").count() == 0


def test_keys_and_a_finger_show_them_too(opened, whole_run):
    shown, _ = opened(viewport={"width": 390, "height": 800}, has_touch=True)
    shown.locator("#change .plot").focus()
    shown.keyboard.press("End")
    history = json.loads((whole_run / "forgetting.json").read_text())["history"]
    last = history[-1]["sets"]["general"]
    assert f"{last['delta']:+.4f} ± {2 * last['delta_error']:.4f}" in shown.locator("#change .tip").inner_text()
    shown.keyboard.press("ArrowLeft")
    assert f"{history[-2]['sets']['general']['delta']:+.4f}" in shown.locator("#change .tip").inner_text()
    shown.keyboard.press("Escape")
    assert shown.locator(".tip").count() == 0
    shown.locator("#rate .plot").tap()
    assert "e-3" in shown.locator("#rate .tip").inner_text()


def test_nothing_is_requested_reported_or_run(opened, report):
    shown, seen = opened(viewport={"width": 1200, "height": 900})
    shown.locator("#loss .plot").hover()
    shown.emulate_media(media="print")
    shown.wait_for_timeout(200)
    assert [entry for entry in seen if entry != ("request", report.as_uri()) and "data:," not in entry[1]] == []
    assert shown.evaluate("window.hit") is None
    assert shown.locator(".sample pre").first.inner_text() == EVIL


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
def test_no_part_is_wider_than_the_window(opened, width):
    shown, _ = opened(viewport={"width": width, "height": 800})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    for plot in shown.locator(".plot").all():
        assert plot.bounding_box()["width"] > 200


def test_text_can_be_read_in_light_and_dark(opened):
    """A contrast of 4.5 or more, as of WCAG 2.1 AA, of all text that a reader sees against what it stands on."""
    backgrounds = set()
    for scheme in ("light", "dark"):
        shown, _ = opened(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
        worst = shown.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, (scheme, worst)
        backgrounds.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (part) => (part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0.8) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let worst = { ratio: 99 };
  for (const node of document.querySelectorAll("main *")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) continue;
    if (!node.getClientRects().length) continue;
    const pair = [light(rgb(getComputedStyle(node).color).slice(0, 3)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst.ratio) worst = { ratio, text: node.textContent.slice(0, 40), tag: node.tagName };
  }
  return worst;
}"""
