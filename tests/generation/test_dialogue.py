"""Questions are put as the model was taught them; answers come alone; a chat remembers what fits."""

import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.errors import MyPTError
from mypt.generation.dialogue import DEFAULT_TEMPLATE, Chat, QuestionTemplate
from mypt.generation.engine import Engine
from mypt.generation.settings import GenerationSettings
from mypt.tokenization.train import build_char_tokenizer

CONTEXT = 64
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def tokenizer():
    return build_char_tokenizer("abcdefghu: \n?Q")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return MyPTForCausalLM(
        MyPTConfig(vocab_size=320, max_position_embeddings=CONTEXT, initializer_range=0.5, **sizes)
    ).eval()


def settings_of(**settings) -> GenerationSettings:
    return GenerationSettings(**{"max_new_tokens": 6, "seed": 3} | settings)


def test_the_default_template_and_its_stops(tokenizer):
    template = QuestionTemplate(tokenizer)
    assert template.prompt("why?") == "Question: why?\nAnswer:"
    assert template.stop == ("\n\n", "\nQuestion:")
    asked = template.prompt("and?", [("why?", "so"), ("how?", "{question}")])
    assert asked == ("Question: why?\nAnswer: so\n\nQuestion: how?\nAnswer: {question}\n\nQuestion: and?\nAnswer:")


def test_a_template_of_ones_own(tokenizer):
    template = QuestionTemplate(tokenizer, "{question} {other}\nA:")
    assert template.prompt("why {}?") == "why {}? {other}\nA:"
    assert template.stop == ("\n\n",)
    with pytest.raises(MyPTError, match=r"'Question:' has no \{question\} in it"):
        QuestionTemplate(tokenizer, "Question:")


def test_the_tokenizers_chat_template_comes_first_and_its_special_tokens_are_tokens(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    template = QuestionTemplate(tokenizer)
    ids = template.prompt("c", [("a", "b")])
    assert tokenizer.decode(ids) == "u:a<|endoftext|>a:b<|endoftext|>u:c<|endoftext|>a:"
    assert ids.count(tokenizer.eos_token_id) == 3
    assert template.stop == ()
    assert QuestionTemplate(tokenizer, DEFAULT_TEMPLATE).prompt("c") == "Question: c\nAnswer:"


def test_stops_that_are_asked_for_replace_the_templates(tokenizer):
    template = QuestionTemplate(tokenizer)
    assert template.settings(settings_of()).stop == template.stop
    assert template.settings(settings_of(stop=("x",))).stop == ("x",)


@pytest.mark.parametrize("chat_template", [None, CHAT_TEMPLATE])
def test_a_chat_continues_its_history(model, tokenizer, chat_template):
    tokenizer.chat_template = chat_template
    engine = Engine(model, tokenizer)
    chat = Chat(engine, settings_of(), "Q: {question}\n" if chat_template is None else None)
    template, turns = chat.template, []
    for number, question in enumerate(["a", "b"]):
        text = "".join(chat.ask(question))
        settings = template.settings(settings_of(seed=3 + number))
        expected = engine.complete(template.prompt(question, turns), settings, strip=True)
        assert chat.completion.text == expected.text == text
        assert chat.completion.prompt == question
        turns.append((question, text))
    assert chat.turns == turns and chat.forgotten == 0


def test_a_chat_forgets_its_first_turns_when_the_context_is_full(model, tokenizer):
    chat = Chat(Engine(model, tokenizer), settings_of(max_new_tokens=200), "Q {question}:")
    forgotten = []
    for number in range(6):
        assert "".join(chat.ask("abcdefgh"[: number + 2] * 3)) == chat.turns[-1][1]
        assert chat.completion.prompt_tokens <= CONTEXT - CONTEXT // 2  # half is left for the answer
        forgotten.append(chat.forgotten)
    assert forgotten == sorted(forgotten) and forgotten[0] == 0 < forgotten[-1]
    assert len(chat.turns) == 6


def test_a_question_beyond_the_context_is_refused(model, tokenizer):
    with pytest.raises(MyPTError, match="leaves no room"):
        next(Chat(Engine(model, tokenizer), settings_of()).ask("a" * CONTEXT))
