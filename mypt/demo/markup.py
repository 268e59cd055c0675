"""Write the page's own HTML: generated text, tokens coloured by their loss, tables. All text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from mypt.demo.text_losses import Piece, TextLosses
from mypt.inspection.describe import Block
from mypt.terminal import visible

FULL = 6.0  # nats of a loss that has the full colour
FULL_CHANGE = 3.0  # nats of a change that has it
LISTED = 12  # pieces that changed most
_LEAST = 0.05  # nats below which a change has no colour

CSS = """
.mypt-header {margin: 4px 0; overflow-wrap: anywhere}
.mypt-header b {font-size: 20px; margin-right: .7em}
.mypt-text, .mypt-tokens {white-space: break-spaces; overflow-wrap: anywhere; font-family: var(--font-mono);
  font-size: 14px; line-height: 1.6}
.mypt-text {min-height: 12em}
.mypt-prompt {opacity: .55}
.mypt-note {font-size: 13px; opacity: .75; margin: 6px 0 0}
.mypt-tokens {line-height: 2; padding-bottom: 3em}
.mypt-tokens span {border-radius: 3px; padding: 2px 0; cursor: help}
.mypt-tokens span:hover, .mypt-tokens span:focus {outline: 2px solid var(--color-accent)}
.mypt-tokens span:hover::after, .mypt-tokens span:focus::after {content: attr(data-loss); position: fixed; left: 0;
  right: 0; bottom: 0; z-index: 99; padding: 10px 16px; font-size: 14px; line-height: 1.4; text-align: center;
  background: var(--body-background-fill); color: var(--body-text-color);
  border-top: 1px solid var(--border-color-primary)}
.mypt-scale {display: inline-block; width: 9em; height: .8em; border-radius: 3px; margin: 0 .5em}
.mypt-scroll {overflow-x: auto}
.mypt-table {border-collapse: collapse; margin: 10px 0; font-size: 14px; font-variant-numeric: tabular-nums}
.gradio-container .mypt-table th, .gradio-container .mypt-table td {padding: 3px 12px 3px 0; border: 0;
  border-bottom: 1px solid var(--border-color-primary); text-align: right; white-space: nowrap}
.gradio-container .mypt-table th:first-child, .gradio-container .mypt-table td:first-child {text-align: left}
.mypt-table, .mypt-table tbody, .mypt-table tr {border: 0 !important}
.gradio-container .mypt-table th {white-space: normal}
.mypt-table code {font-family: var(--font-mono); white-space: pre}
.mypt-lines {white-space: pre-wrap; overflow-wrap: anywhere; font-family: var(--font-mono); font-size: 13px;
  margin: 8px 0}
@media (max-width: 600px) {.mypt-lines {white-space: pre; overflow-x: auto}}
.mypt-pictures {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 14px}
.mypt-pictures figure {margin: 0}
.mypt-pictures img {width: 100%; background: white; border-radius: 6px}
.mypt-run summary {cursor: pointer; margin: 10px 0}
"""


def header(title: str, paths: Sequence[str]) -> str:
    return f'<div class="mypt-header"><b>{_text(title)}</b>{_text(" and ".join(paths))}</div>'


def generated(prompt: str, text: str, note: str) -> str:
    """A prompt, the text that continues it, and a line about it."""
    return (
        f'<div class="mypt-text"><span class="mypt-prompt">{_text(prompt)}</span>{_text(text)}</div>'
        f'<p class="mypt-note">{_text(note)}</p>'
    )


def note(text: str) -> str:
    return f'<p class="mypt-note">{_text(text)}</p>'


def coloured(pieces: Sequence[Piece], names: Sequence[str], shown: int | None) -> str:
    """The text with each piece coloured by its loss under model number `shown`; None: by the change between two.

    names: of the models. A piece shows its losses when the mouse is on it or a finger has touched it.
    """
    spans = []
    for piece in pieces:
        colour = _change_colour(piece.losses) if shown is None else _loss_colour(piece.losses[shown])
        style = f' style="background: {colour}"' if colour else ""
        text = _text(piece.text).replace("\n", "↵\n")
        spans.append(f'<span tabindex="0" data-loss="{_text(_in_words(piece, names))}"{style}>{text}</span>')
    return f'{_legend(names, shown)}<div class="mypt-tokens">{"".join(spans)}</div>'


def changes(pieces: Sequence[Piece], names: Sequence[str]) -> str:
    """The pieces whose loss fell and rose most between two models."""
    known = [piece for piece in pieces if None not in piece.losses]
    ranked = sorted(known, key=lambda piece: piece.losses[1] - piece.losses[0])
    fell = [piece for piece in ranked[:LISTED] if piece.losses[1] < piece.losses[0]]
    rose = [piece for piece in reversed(ranked[-LISTED:]) if piece.losses[1] > piece.losses[0]]
    tables = []
    for title, found in (("learned: fell most", fell), ("forgotten: rose most", rose)):
        rows = [
            [piece.text, *(f"{loss:.2f}" for loss in piece.losses), f"{piece.losses[1] - piece.losses[0]:+.2f}"]
            for piece in found
        ]
        tables.append(table([title, *names, "change"], rows, code=True))
    return f'<div class="mypt-pictures">{"".join(tables)}</div>'


def summary(read: Sequence[TextLosses], names: Sequence[str]) -> str:
    """Tokens, nats per token and bits per byte of the whole text by each model."""
    rows = [
        [name, f"{len(one.losses):,}", f"{one.loss:.4f}", f"{one.bits_per_byte:.4f}"]
        for name, one in zip(names, read, strict=True)
    ]
    return table(["model", "tokens", "nats/token", "bits/byte"], rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], code: bool = False) -> str:
    """code: the first column is text as it is, white space and all."""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = ""
    for first, *rest in rows:
        name = _text(str(first))
        name = f"<code>{name.replace(chr(10), '↵')}</code>" if code else name
        body += f"<tr><td>{name}</td>" + "".join(f"<td>{_text(str(cell))}</td>" for cell in rest) + "</tr>"
    return f'<div class="mypt-scroll"><table class="mypt-table"><tr>{head}</tr>{body}</table></div>'


def blocks(found: Iterable[Block]) -> str:
    """Lines and tables as `mypt.inspection.describe` gives them."""
    parts: list[str] = []
    lines: list[str] = []

    def end_lines() -> None:
        if text := "\n".join(lines).strip("\n"):
            parts.append(f'<div class="mypt-lines">{_text(text)}</div>')
        lines.clear()

    for block in found:
        if isinstance(block, str):
            lines.append(block)
        else:
            end_lines()
            parts.append(table(*block))
    end_lines()
    return "".join(parts)


def pictures(found: Iterable[tuple[str, bytes]]) -> str:
    """PNG files in the page itself, with their titles."""
    figures = "".join(
        f'<figure><img alt="{_text(title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f'<figcaption class="mypt-note">{_text(title)}</figcaption></figure>'
        for title, data in found
    )
    return f'<div class="mypt-pictures">{figures}</div>'


def details(title: str, content: str) -> str:
    """A part that is shown when its title is clicked."""
    return f"<details><summary>{_text(title)}</summary>{content}</details>"


def _text(text: str) -> str:
    return escape(visible(text))


def _in_words(piece: Piece, names: Sequence[str]) -> str:
    """The losses of a piece in words."""
    words = [f"{name}: {_nats(loss)}" for name, loss in zip(names, piece.losses, strict=True)]
    if len(names) == 2 and None not in piece.losses:
        words.append(f"change {piece.losses[1] - piece.losses[0]:+.2f}")
    return f"{piece.text.strip() or repr(piece.text)[1:-1]} — " + ", ".join(words)


def _nats(loss: float | None) -> str:
    return "not predicted" if loss is None else f"{loss:.2f} nats"


def _loss_colour(loss: float | None) -> str:
    return _orange(loss / FULL) if loss else ""


def _change_colour(losses: Sequence[float | None]) -> str:
    if None in losses or abs(change := losses[1] - losses[0]) < _LEAST:
        return ""
    return _orange(change / FULL_CHANGE) if change > 0 else _blue(-change / FULL_CHANGE)


def _orange(strength: float) -> str:
    return f"rgba(230, 110, 20, {min(strength, 1) * 0.75:.2f})"


def _blue(strength: float) -> str:
    return f"rgba(30, 120, 230, {min(strength, 1) * 0.75:.2f})"


def _legend(names: Sequence[str], shown: int | None) -> str:
    left, right = _blue(1) if shown is None else "transparent", _orange(1)
    scale = f'<span class="mypt-scale" style="background: linear-gradient(90deg, {left}, transparent, {right})"></span>'
    if shown is None:
        words = f"likelier under {names[1]} (learned)", f"less likely (forgotten); full colour: {FULL_CHANGE:g} nats"
    else:
        scale = f'<span class="mypt-scale" style="background: linear-gradient(90deg, transparent, {right})"></span>'
        words = "0", f"{FULL:g} nats or more under {names[shown]}"
    return f'<p class="mypt-note">{_text(words[0])}{scale}{_text(words[1])}</p>'
