"""Build the page: generate, chat, losses of a text's tokens, and the runs; one column for each model."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import escape
from threading import Event
from typing import NoReturn

import gradio as gr

from mypt.demo import markup
from mypt.demo.run_view import RunView
from mypt.demo.text_losses import TextLosses, compare_texts, text_losses
from mypt.errors import MyPTError
from mypt.generation.dialogue import Chat
from mypt.generation.engine import Engine
from mypt.generation.prompts import unescape
from mypt.generation.sequence import Completion
from mypt.generation.settings import PRESETS, GenerationSettings, preset_settings
from mypt.generation.stream import TextStream
from mypt.terminal import visible

TITLE = "MyPT"
REFRESH = 0.05  # seconds between two updates of a text on the page
LONGEST_TEXT = 20_000  # characters whose losses are computed: seconds for a small model
LONGEST_ANSWER = 2_000  # tokens that the slider goes up to
CHANGE = "change"  # the view of what was learned and forgotten

# One text at a time: the others wait in gradio's queue, which shows their place.
QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}

FINISHED = {
    "eos": "the text ended",
    "stop": "a stop string came",
    "length": "all new tokens were generated",
    "context": "the context is full",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class DemoModel:
    """path: folder or hub id. name: what the page calls the model. run: None where there is no folder of it."""

    path: str
    name: str
    engine: Engine
    run: RunView | None = None


@dataclass
class _Stops:
    """The events that end the texts of each visitor in one tab."""

    events: dict[str, Event] = field(default_factory=dict)

    def begin(self, request: gr.Request) -> None:
        """A visitor asks for a text, which may have to wait."""
        self.events[request.session_hash] = Event()

    def stop(self, request: gr.Request) -> None:
        self.of(request).set()

    def of(self, request: gr.Request) -> Event:
        return self.events.setdefault(request.session_hash, Event())

    def leave(self, request: gr.Request) -> None:
        """The visitor's page is gone: nobody reads what is generated."""
        if event := self.events.pop(request.session_hash, None):
            event.set()


def short_names(paths: list[str]) -> list[str]:
    """The ends of paths, with as many folders as tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return paths


def build_page(models: list[DemoModel]) -> gr.Blocks:
    """The page for one model or two."""
    stops = _Stops(), _Stops()
    with gr.Blocks(title=f"{TITLE}: {', '.join(model.name for model in models)}", analytics_enabled=False) as page:
        gr.HTML(markup.header(TITLE, [model.path for model in models]))
        with gr.Tabs():
            with gr.Tab("Generate", id="generate"):
                _generate_tab(models, stops[0])
            if chatting := [model for model in models if model.engine.tokenizer.chat_template]:
                with gr.Tab("Chat", id="chat"):
                    _chat_tab(chatting, stops[1])
            with gr.Tab("Learned and forgotten" if len(models) > 1 else "Losses", id="losses"):
                _losses_tab(models)
            if shown := [model for model in models if model.run]:
                with gr.Tab("Runs" if len(shown) > 1 else "Run", id="run"):
                    _run_tab(shown)
        for one in stops:
            page.unload(one.leave)
    return page


def _sampling() -> list[gr.components.Component]:
    """The controls of GenerationSettings, in the order of `_settings`."""
    defaults = GenerationSettings(seed=0)
    new = gr.Slider(1, LONGEST_ANSWER, defaults.max_new_tokens, step=1, label="New tokens")
    temperature = gr.Slider(
        0, 2, defaults.temperature, step=0.05, label="Temperature", info="0: the likeliest token each time"
    )
    with gr.Accordion("More sampling controls", open=False):
        preset = gr.Dropdown(["none", *PRESETS], value="none", label="Preset", info="sets the values below")
        with gr.Row():
            top_p = gr.Slider(0.01, 1, 1, step=0.01, label="Top p", info="1: all tokens", min_width=130)
            top_k = gr.Slider(0, 200, 0, step=1, label="Top k", info="0: all tokens", min_width=130)
        with gr.Row():
            min_p = gr.Slider(0, 1, 0, step=0.01, label="Min p", info="0: all tokens", min_width=130)
            penalty = gr.Slider(1, 2, 1, step=0.05, label="Repetition penalty", info="1: none", min_width=130)
        with gr.Row():
            seed = gr.Textbox("", label="Seed", info="empty: a new one each time", min_width=130)
            stop = gr.Textbox("", label="Stop before", info=r"a text; \n is a line end", min_width=130)
        slide = gr.Checkbox(False, label="At the end of the context continue from its last half")

    def chosen(name: str) -> list:
        found = preset_settings(None if name == "none" else name, seed=0)
        return [found.temperature, found.top_p or 1, found.top_k or 0, found.min_p or 0, found.repetition_penalty]

    controls = [temperature, top_p, top_k, min_p, penalty]
    preset.input(chosen, preset, controls, queue=False, show_progress="hidden", api_visibility="private")
    return [new, *controls, seed, stop, slide]


def _settings(new, temperature, top_p, top_k, min_p, penalty, seed, stop, slide) -> GenerationSettings:
    """Raises MyPTError for a value out of range."""
    seed = str(seed or "").strip()
    if seed and not (seed.isascii() and seed.isdigit()):
        raise MyPTError(f"the seed is {seed!r}; it must be a whole number, or empty")
    return GenerationSettings(
        max_new_tokens=int(new),
        temperature=temperature or GenerationSettings.temperature,
        greedy=not temperature,
        top_p=top_p if top_p < 1 else None,
        top_k=int(top_k) or None,
        min_p=min_p or None,
        repetition_penalty=penalty,
        stop=(unescape(stop),) if stop else (),
        overflow="slide" if slide else "stop",
        seed=int(seed) if seed else random.SystemRandom().randrange(2**31),
    )


def _buttons(label: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return (
            gr.Button(label, variant="primary", min_width=100),
            gr.Button("Stop", variant="stop", interactive=False, min_width=100),
        )


def _runs_with_stop(triggers: list, stops: _Stops, buttons: tuple[gr.Button, gr.Button], work, inputs, outputs, **then):
    """Bind `work`, a generator of updates, to the triggers; the second button ends it, also while it waits."""

    def begin(request: gr.Request):
        stops.begin(request)
        return gr.update(interactive=False), gr.update(interactive=True)

    def end():
        return gr.update(interactive=True), gr.update(interactive=False)

    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    started = gr.on(triggers, begin, None, list(buttons), **quiet)
    working = started.then(work, inputs, outputs, show_progress="minimal", **QUEUE, **then)
    for ended in (working.success, working.failure):
        ended(end, None, list(buttons), **quiet)
    buttons[1].click(stops.stop, None, None, **quiet)


def _generate_tab(models: list[DemoModel], stops: _Stops) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(
                "", lines=6, max_lines=16, label="Prompt", placeholder="The text to continue; empty begins a document"
            )
            buttons = _buttons("Generate")
            controls = _sampling()
        texts = []
        for number, model in enumerate(models):
            with gr.Column(scale=3, min_width=300):
                options = {"label": model.name, "show_label": True, "container": True, "padding": True}
                options |= {"max_height": 640, "autoscroll": True, "elem_id": f"text-{number}"}
                texts.append(gr.HTML(markup.generated("", "", ""), **options))

    def generate(request: gr.Request, prompt: str, *values) -> Iterator[list[str] | str]:
        """Continue the prompt by each model; the texts so far, as HTML."""
        with _errors_shown():
            settings = _settings(*values)
        stop = stops.of(request).is_set
        with ExitStack() as stack:
            streams = []
            for model in models:
                with _errors_shown(model.name if len(models) > 1 else ""):
                    streams.append(stack.enter_context(model.engine.stream(prompt, settings, stop)))
            ended = False
            while not ended:
                time.sleep(REFRESH)
                ended = all(stream.ended for stream in streams)
                with _errors_shown():
                    shown = [_shown(prompt, stream) for stream in streams]
                yield shown if len(shown) > 1 else shown[0]

    triggers = [buttons[0].click, prompt.submit]
    _runs_with_stop(triggers, stops, buttons, generate, [prompt, *controls], texts, api_name="generate")


def _shown(prompt: str, stream: TextStream) -> str:
    note = _ending(stream.completion, stream.seconds) if stream.ended else "generating"
    return markup.generated(prompt, stream.text, note)


def _ending(completion: Completion, seconds: float) -> str:
    tokens = f"{completion.tokens:,} tokens in {seconds:.1f} s"
    speed = f" ({completion.tokens / seconds:,.0f} tokens/s)" if seconds else ""
    dropped = (
        f"; the first {completion.dropped_tokens:,} tokens were no longer seen" if completion.dropped_tokens else ""
    )
    return f"{tokens}{speed}; {FINISHED[completion.finish]}{dropped}; seed {completion.seed}"


def _chat_tab(models: list[DemoModel], stops: _Stops) -> None:
    with gr.Row():
        chats = [
            gr.Chatbot(
                label=model.name,
                height=460,
                min_width=280,
                buttons=["copy"],
                feedback_options=None,
                render_markdown=False,
                elem_id=f"chat-{number}",
            )
            for number, model in enumerate(models)
        ]
    message = gr.Textbox(label="Message", lines=2, max_lines=8, placeholder="Shift+Enter sends")
    buttons = _buttons("Send")
    note = gr.HTML("")
    clear = gr.Button("Clear", size="sm")
    with gr.Accordion("Sampling", open=False):
        controls = _sampling()

    def answer(request: gr.Request, message: str, *values) -> Iterator[list]:
        """Answer by each model in turn; the message box, the dialogues and a note."""
        histories, values = list(values[: len(models)]), values[len(models) :]
        if not message.strip():
            _refuse("the message is empty; write one")
        with _errors_shown():
            settings = _settings(*values)
        histories = [[*history, {"role": "user", "content": message}] for history in histories]
        yield ["", *histories, ""]
        notes = []
        for index, model in enumerate(models):
            chat = Chat(model.engine, settings)
            chat.turns = _turns(histories[index][:-1])
            text, updated = "", 0.0
            with _errors_shown(model.name):
                for piece in chat.ask(message, stops.of(request).is_set):
                    text += piece
                    if time.monotonic() - updated > REFRESH:
                        updated = time.monotonic()
                        yield ["", *_with_answer(histories, index, text), markup.note("answering")]
            histories = _with_answer(histories, index, text)
            forgotten = f"; the first {chat.forgotten} turns no longer fit into the context" if chat.forgotten else ""
            notes.append(f"{model.name}: {FINISHED[chat.completion.finish]}{forgotten}")
        yield ["", *histories, markup.note("; ".join(notes))]

    outputs = [message, *chats, note]
    inputs = [message, *chats, *controls]
    _runs_with_stop([buttons[0].click, message.submit], stops, buttons, answer, inputs, outputs, api_name="chat")
    clear.click(lambda: [[] for _ in models] + [""], None, [*chats, note], queue=False, api_visibility="private")


def _with_answer(histories: list[list[dict]], index: int, text: str) -> list[list[dict]]:
    found = [list(history) for history in histories]
    found[index] = [*found[index], {"role": "assistant", "content": text}]
    return found


def _turns(history: list[dict]) -> list[tuple[str, str]]:
    """The questions and answers of a dialogue as gradio keeps it; a question that was never answered is left out."""
    turns: list[tuple[str, str]] = []
    asked = None
    for entry in history:
        content = entry["content"]
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if entry["role"] == "user":
            asked = content
        elif asked is not None:
            turns.append((asked, content))
            asked = None
    return turns


def _losses_tab(models: list[DemoModel]) -> None:
    names = [model.name for model in models]
    views = ([CHANGE] if len(models) == 2 else []) + names
    examples = {name: texts for model in reversed(models) if model.run for name, texts in model.run.examples.items()}
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = gr.Textbox("", lines=9, max_lines=20, label="Text", placeholder="A text to look at")
            measure = gr.Button("Measure", variant="primary", min_width=100)
            if examples:
                with gr.Row():
                    source = gr.Dropdown(list(examples), value=next(iter(examples)), label="Evaluation set",
                                         min_width=130)  # fmt: skip
                    another = gr.Button("Another text of it", min_width=130)
            shown = gr.Radio(views, value=views[0], label="Colour by", visible=len(views) > 1)
        with gr.Column(scale=3, min_width=300):
            figures = gr.HTML("")
            tokens = gr.HTML("", container=True, padding=True, elem_id="tokens")
            changes = gr.HTML("")
    found = gr.State([])

    def coloured(pieces: list, view: str) -> str:
        index = None if view == CHANGE and len(models) == 2 else names.index(view)
        return markup.coloured(pieces, names, index) if pieces else ""

    def losses(text: str, view: str) -> tuple[list, str, str, str]:
        """The loss of each token of a text under each model: pieces; as HTML figures, coloured text, what changed."""
        if len(text) > LONGEST_TEXT:
            _refuse(f"the text has {len(text):,} characters; give {LONGEST_TEXT:,} at most")
        with _errors_shown():
            read: list[TextLosses] = [text_losses(model.engine, text) for model in models]
            pieces = compare_texts(read)
        changed = markup.changes(pieces, names) if len(models) == 2 else ""
        return pieces, markup.summary(read, names), coloured(pieces, view), changed

    work = {"show_progress": "minimal", **QUEUE}
    arguments = losses, [text, shown], [found, figures, tokens, changes]
    gr.on([measure.click, text.submit], *arguments, api_name="losses", **work)
    shown.change(coloured, [found, shown], tokens, queue=False, api_visibility="private")
    if examples:

        def pick(name: str) -> str:
            return random.choice(examples[name])

        picked = gr.on([another.click, source.input], pick, source, text, queue=False, api_visibility="private")
        picked.then(*arguments, api_visibility="private", **work)


def _run_tab(models: list[DemoModel]) -> None:
    with gr.Tabs(selected=len(models) - 1):
        for number, model in enumerate(models):
            with gr.Tab(model.name, id=number):
                view = model.run
                content = markup.pictures(view.pictures) + markup.blocks(view.blocks)
                if view.more:
                    content += markup.details("Settings and files", markup.blocks(view.more))
                gr.HTML(f'<div class="mypt-run">{content}</div>')


def _refuse(words: str) -> NoReturn:
    html = escape(visible(words), quote=False)
    raise gr.Error(html, duration=None, print_exception=False)


@contextmanager
def _errors_shown(name: str = "") -> Iterator[None]:
    """Show a MyPTError of the block on the page; name: of the model that it is about."""
    try:
        yield
    except MyPTError as error:
        _refuse(f"{name}: {error}" if name else str(error))
