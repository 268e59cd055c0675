"""Prompts for questions and dialogues, and the strings that end an answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mypt.errors import MyPTError
from mypt.generation.generate import Completion, context_of, generate, prompt_ids
from mypt.generation.settings import GenerationSettings
from mypt.generation.trials import Say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def settings(self, settings: GenerationSettings) -> GenerationSettings:
        """The same settings with the template's stop strings if they have none."""
        return settings if settings.stop else replace(settings, stop=self.stop)

    def _fill(self, question: str) -> str:
        return self.template.replace("{question}", question)


class Chat:
    """A dialogue that remembers its turns, the last of them when not all fit into the model's context."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        settings: GenerationSettings,
        template: str | None = None,
        say: Say = warnings.warn,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.template = QuestionTemplate(tokenizer, template)
        self.settings = self.template.settings(settings)
        self.say = say
        self.turns: list[tuple[str, str]] = []
        self.forgotten = 0  # turns at the start that the model no longer reads

    def ask(self, question: str, on_text: Callable[[str], object] | None = None) -> Completion:
        """The answer, without white space around it; each turn draws with the next seed. Raises as `generate`."""
        prompt = self.template.prompt(question, self.turns[self.forgotten :])
        while self.forgotten < len(self.turns) and not self._fits(prompt):
            self.forgotten += 1
            prompt = self.template.prompt(question, self.turns[self.forgotten :])
        settings = replace(self.settings, seed=self.settings.seed + len(self.turns))
        completion = generate(self.model, self.tokenizer, prompt, settings, on_text, strip=True, say=self.say)
        self.turns.append((question, completion.text))
        return replace(completion, prompt=question)

    def _fits(self, prompt: str | list[int]) -> bool:
        """Whether half of the context, or all of max_new_tokens if that is less, is left for the answer."""
        context = context_of(self.model)
        if context is None:
            return True
        length = len(prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else prompt)
        return length + min(self.settings.max_new_tokens, context // 2) <= context
