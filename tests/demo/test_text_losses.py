"""The losses of a text's tokens are the model's own; models are compared on pieces that all of them have."""

import math

import pytest
import torch

from mypt import MyPTConfig, MyPTForCausalLM
from mypt.checkpoints.load import load_model
from mypt.demo.text_losses import TextLosses, compare_texts, text_losses
from mypt.errors import MyPTError
from mypt.generation.engine import Engine
from mypt.tokenization.load import load_tokenizer
from mypt.tokenization.train import build_char_tokenizer, train_bpe_tokenizer

TEXT = "def parse(self):\n    # Été 你好\n    return None\n" * 3


@pytest.fixture(scope="module")
def engines(corpora, adapted_models):
    folders = [adapted_models / name for name in ("base", "adapted")]
    return [Engine(load_model(folder), load_tokenizer(folder)) for folder in folders]


def by_hand(engine, ids: list[int], width: int) -> list[float]:
    """Each target alone: from its own forward pass over what is before it in its window, no batches, no slices."""
    found = []
    for target in range(1, len(ids)):
        # Windows begin at 0, width / 2, width, ...: the first that holds the target.
        start = 0 if target <= width else -(-(target - width) // (width // 2)) * (width // 2)
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids[start:target]]), use_cache=False).logits[0, -1]
        found.append(-logits.log_softmax(-1)[ids[target]].item())
    return found


def test_each_loss_is_that_of_a_forward_pass(engines):
    """The context is 32, so a text of many more tokens goes over several windows."""
    for engine in engines:
        read = text_losses(engine, TEXT)
        ids = [engine.tokenizer.eos_token_id, *engine.encode([TEXT])[0]]
        assert read.losses == pytest.approx(by_hand(engine, ids, 32), abs=1e-4)
        assert len(ids) > 100 and read.text == TEXT
        assert read.loss == pytest.approx(sum(read.losses) / len(read.losses))
        assert read.bits_per_byte == pytest.approx(sum(read.losses) / math.log(2) / len(TEXT.encode()))


def test_the_pieces_are_the_text_and_their_losses_add_up(engines):
    read = [text_losses(engine, TEXT) for engine in engines]
    pieces = compare_texts(read)
    assert "".join(piece.text for piece in pieces) == TEXT
    for index, one in enumerate(read):
        assert sum(piece.losses[index] for piece in pieces) == pytest.approx(sum(one.losses))
    # A character that this tokenizer spells by its bytes is one piece with the sum of their losses.
    [chinese] = [piece for piece in pieces[:40] if piece.text == "你"]
    place = TEXT.index("你") + 1
    assert chinese.losses[0] == pytest.approx(
        sum(loss for end, loss in zip(read[0].ends, read[0].losses, strict=True) if end == place)
    )
    assert sum(end == place for end in read[0].ends) == 3


def test_models_with_other_tokenizers_share_the_pieces_of_both(engines):
    words = train_bpe_tokenizer([TEXT * 5], 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = Engine(MyPTForCausalLM(MyPTConfig(vocab_size=320, max_position_embeddings=64, **sizes)).eval(), words)
    read = [text_losses(engines[0], TEXT), text_losses(other, TEXT)]
    pieces = compare_texts(read)
    assert "".join(piece.text for piece in pieces) == TEXT
    assert any(len(piece.text) > 1 for piece in pieces)
    assert len(pieces) < len(read[0].losses)
    for index, one in enumerate(read):
        assert sum(piece.losses[index] for piece in pieces) == pytest.approx(sum(one.losses), rel=1e-5)


def test_what_nothing_stands_before_has_no_loss():
    first, second = TextLosses("abc", [1, 2, 3], [None, 1.0, 2.0]), TextLosses("abc", [2, 3], [5.0, 7.0])
    assert first.loss == 1.5
    assert [(piece.text, piece.losses) for piece in compare_texts([first, second])] == [
        ("ab", (None, 5.0)),
        ("c", (2.0, 7.0)),
    ]


def test_what_cannot_be_measured_is_refused(engines):
    with pytest.raises(MyPTError, match="the text is empty"):
        text_losses(engines[0], "")
    with pytest.raises(MyPTError, match="do not spell this text alike"):
        compare_texts([TextLosses("abc", [3], [1.0]), TextLosses("Abc", [3], [1.0])])
    model = load_model(engines[0].model.name_or_path)
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(MyPTError, match="NaN or infinite"):
        text_losses(Engine(model, engines[0].tokenizer), TEXT)


def test_special_tokens_in_a_text_are_plain_text(engines):
    read = text_losses(engines[0], "a<|endoftext|>b")
    assert read.text == "a<|endoftext|>b" and len(read.losses) > 3


def test_a_model_with_a_tokenizer_of_characters(engines):
    tokenizer = build_char_tokenizer("ab ")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    engine = Engine(MyPTForCausalLM(MyPTConfig(vocab_size=320, **sizes)).eval(), tokenizer)
    assert [piece.text for piece in compare_texts([text_losses(engine, "ab 🙂!")])] == list("ab 🙂!")
