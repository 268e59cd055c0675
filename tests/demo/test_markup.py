"""The page's own HTML: text comes back as it was, escaped, and colours follow the losses."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from mypt.demo import markup
from mypt.demo.text_losses import Piece, TextLosses

NASTY = "<script>alert(1)</script> & \"quotes\" 'x' ${1 + 1} {{value}} `tick`\n\tif a < b:\x1b[31m\u202e"
NAMES = ["before", "after <b>"]


class Tags(HTMLParser):
    """The tags of a piece of HTML and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def pieces_of(*changes: float) -> list[Piece]:
    return [Piece(f"w{number} ", (2.0, 2.0 + change)) for number, change in enumerate(changes)]


def colours(html: str) -> list[tuple[int, int, int, float] | None]:
    """(red, green, blue, alpha) of each token."""
    tokens = re.findall(r'<span tabindex="0"[^>]*>', html)
    found = [re.search(r"rgba\((\d+), (\d+), (\d+), ([\d.]+)\)", token) for token in tokens]
    return [match and (*map(int, match.groups()[:3]), float(match[4])) for match in found]


@pytest.mark.parametrize(
    "html",
    [
        markup.generated(NASTY, NASTY, NASTY),
        markup.coloured([Piece(NASTY, (1.0, 2.0))], NAMES, None),
        markup.coloured([Piece(NASTY, (1.0,))], [NASTY], 0),
        markup.changes([Piece(NASTY, (1.0, 2.0)), Piece("a", (2.0, 1.0))], [NASTY, NASTY]),
        markup.table([NASTY, NASTY], [[NASTY, NASTY]]),
        markup.blocks([NASTY, ([NASTY], [[NASTY]]), NASTY]),
        markup.pictures([(NASTY, b"png")]),
        markup.details(NASTY, ""),
        markup.note(NASTY),
    ],
)
def test_no_text_becomes_html(html):
    found = Tags(html)
    assert not found.open and not {"script", "b"} & {*found.tags}
    assert "\x1b" not in html and "\u202e" not in html
    if "details" not in found.tags:
        assert "<script>alert(1)</script>" in unescape(html)


def test_the_text_is_all_there():
    text = "def f(x):\n\treturn  x < 3 and y & z\n"
    pieces = [Piece(character, (1.0, 1.0)) for character in text]
    shown = re.search(r'<div class="mypt-tokens">(.*)</div>', markup.coloured(pieces, NAMES, None), re.DOTALL)[1]
    assert Tags(shown).text.replace("↵\n", "\n") == text


def test_what_was_learned_is_blue_and_what_was_forgotten_orange():
    found = colours(markup.coloured(pieces_of(-3, -1, -0.01, 0, 0.01, 1, 3, 30), NAMES, None))
    assert found[2:5] == [None] * 3
    learned, forgotten = found[:2], found[5:]
    assert all(blue > red for red, _, blue, _ in learned) and all(red > blue for red, _, blue, _ in forgotten)
    strengths = [alpha for *_, alpha in forgotten]
    assert strengths == sorted(strengths) and strengths[0] < strengths[1] == strengths[2]
    assert learned[0][3] > learned[1][3]


def test_the_colour_of_one_model_follows_its_loss_alone():
    pieces = [Piece("a", (0.0, 9.0)), Piece("b", (1.0, 5.0)), Piece("c", (5.0, 1.0)), Piece("d", (None, 2.0))]
    first, second = (colours(markup.coloured(pieces, NAMES, number)) for number in (0, 1))
    assert first[0] is None and first[3] is None and first[1][3] < first[2][3]
    assert second[0][3] > second[1][3] > second[2][3]
    assert colours(markup.coloured(pieces, NAMES, None))[3] is None


def test_a_token_tells_its_losses():
    html = markup.coloured([Piece(" a", (1.25, 0.5)), Piece("\n", (None, 2.0))], NAMES, None)
    told = [unescape(text) for text in re.findall(r'data-loss="([^"]*)"', html)]
    assert told == [
        "a — before: 1.25 nats, after <b>: 0.50 nats, change -0.75",
        "\\n — before: not predicted, after <b>: 2.00 nats",
    ]


def test_the_tables_name_what_changed_most():
    html = markup.changes(pieces_of(*range(-20, 21)), NAMES)
    cells = [unescape(cell) for cell in re.findall(r"<code>(.*?)</code>", html)]
    assert cells == [f"w{n} " for n in range(markup.LISTED)] + [f"w{40 - n} " for n in range(markup.LISTED)]
    # Nothing is in the table of the other direction, however few there are.
    assert re.findall(r"<code>(.*?)</code>", markup.changes(pieces_of(-1, 0, -2), NAMES)) == ["w2 ", "w0 "]


def test_the_summary_has_the_figures_of_the_text():
    read = [TextLosses("ab", [1, 2], [1.0, 3.0]), TextLosses("ab", [2], [3.5])]
    cells = re.findall(r"<td>(.*?)</td>", markup.summary(read, ["one", "two"]))
    assert cells == ["one", "2", "2.0000", "2.8854", "two", "1", "3.5000", "2.5247"]
