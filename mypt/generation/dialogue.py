"""Prompts for questions and dialogues, and the strings that end an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mypt.errors import MyPTError
from mypt.generation.engine import TOKENIZING, Engine, ShouldStop, never
from mypt.generation.sequence import Completion
from mypt.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_TEMPLATE = "Question: {question}\nAnswer:"


class QuestionTemplate:
    """Writes questions (and the answers so far) the way the model was taught them.

    template: a text with `{question}` in it, which the answer follows. None: the tokenizer's own chat template if it
    has one, DEFAULT_TEMPLATE otherwise. `stop` holds the strings that end an answer unless others are asked for: an
    empty line, and the beginning of the next question. A chat template needs none, its turns end with a token.
    Raises MyPTError for a template without `{question}`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str | None = None):
        self.tokenizer = tokenizer
        self.is_chat = template is None and bool(tokenizer.chat_template)
        self.template = DEFAULT_TEMPLATE if template is None else template
        beginning, marker, _ = self.template.partition("{question}")
        if not marker:
            raise MyPTError(f"the template {self.template!r} has no {{question}} in it; put it where the question goes")
        opening = beginning.strip().split("\n")[0]
        self.stop = () if self.is_chat else ("\n\n", *(["\n" + opening] if opening else []))

    def prompt(self, question: str, turns: Sequence[tuple[str, str]] = ()) -> str | list[int]:
        """Return the text or ids that the model continues; `turns` are the questions and answers before."""
        if not self.is_chat:
            before = "".join(f"{self._fill(asked)} {answer}\n\n" for asked, answer in turns)
            return before + self._fill(question)
        messages = []
        for asked, answer in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": question})
        with TOKENIZING:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def settings(self, settings: GenerationSettings) -> GenerationSettings:
        """The same settings with the template's stop strings if they have none."""
        return settings if settings.stop else replace(settings, stop=self.stop)

    def _fill(self, question: str) -> str:
        return self.template.replace("{question}", question)


class Chat:
    """A dialogue that remembers its turns, the last of them when not all fit into the model's context.

    Attributes:
        turns: Questions and answers so far.
        forgotten: Turns at the start that the model no longer reads.
        completion: Of the last answer, `prompt` being the question.
    """

    def __init__(self, engine: Engine, settings: GenerationSettings, template: str | None = None):
        self.engine = engine
        self.template = QuestionTemplate(engine.tokenizer, template)
        self.settings = self.template.settings(settings)
        self.turns: list[tuple[str, str]] = []
        self.forgotten = 0
        self.completion: Completion | None = None

    def ask(self, question: str, should_stop: ShouldStop = never) -> Iterator[str]:
        """The answer in pieces, without white space around it; each turn draws with the next seed.

        The turn counts when all of it has been read. Raises as `Engine.complete`.
        """
        prompt = self.template.prompt(question, self.turns[self.forgotten :])
        while self.forgotten < len(self.turns) and not self._fits(prompt):
            self.forgotten += 1
            prompt = self.template.prompt(question, self.turns[self.forgotten :])
        settings = replace(self.settings, seed=self.settings.seed + len(self.turns))
        with self.engine.stream(prompt, settings, should_stop, strip=True) as pieces:
            yield from pieces
            self.completion = replace(pieces.completion, prompt=question)
        self.turns.append((question, self.completion.text))

    def _fits(self, prompt: str | list[int]) -> bool:
        """Whether half of the context, or all of max_new_tokens if that is less, is left for the answer."""
        context = self.engine.context
        if context is None:
            return True
        [ids] = self.engine.encode([prompt])
        return len(ids) + min(self.settings.max_new_tokens, context // 2) <= context
