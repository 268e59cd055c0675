"""How large a vocabulary should be: Tao et al. 2024 (2407.13623), bounded by the data and by the user."""

from typing import NamedTuple

from mypt.errors import TokenizerError

BYTES_PER_TOKEN = 4.0  # of English text and a vocabulary of this order
TOKENS_PER_PARAMETER = 20  # Hoffmann 2022 (2203.15556)
PASSES = 3.5  # the coverage that this project recommends
MULTIPLE = 64


class VocabSize(NamedTuple):
    """A vocabulary size (ids) and one sentence for each step that led to it."""

    size: int
    reasons: list[str]


def optimal_vocab_size(non_vocabulary_parameters: float, hidden_size: float) -> float:
    """V of V x d = 3.146M x (N_nv / 33M)^0.835, with N_nv the parameters outside the embeddings and d their width."""
    return 3.146e6 * (non_vocabulary_parameters / 33e6) ** 0.835 / hidden_size


def choose_vocab_size(text_bytes: int, minimum: int = 5000, maximum: int = 50_000) -> VocabSize:
    """The vocabulary for a corpus of `text_bytes` UTF-8 bytes and a model as large as this corpus can feed.

    The data needs no bound of its own: the model is the one that it can feed, and training a BPE stops where no pair
    occurs twice. The user's bounds win over every other reason. Raises TokenizerError if they contradict each other.
    """
    if not 0 < minimum <= maximum:
        raise TokenizerError(
            f"min_vocab_size {minimum} and max_vocab_size {maximum} leave no room; give 0 < minimum <= maximum"
        )
    tokens = text_bytes / BYTES_PER_TOKEN
    parameters = max(PASSES * tokens / TOKENS_PER_PARAMETER, 1.0)
    # Layers of 12 d^2 parameters and a depth of d / 64, the shape of the presets: N_nv = 12 d^3 / 64.
    hidden_size = (parameters * 64 / 12) ** (1 / 3)
    size = optimal_vocab_size(parameters, hidden_size)
    reasons = [
        f"{text_bytes:,} bytes are about {tokens:,.0f} tokens; seen {PASSES:g} times they feed a model of about "
        f"{parameters:,.0f} parameters, width {hidden_size:.0f} ({TOKENS_PER_PARAMETER} tokens per parameter)",
        f"the optimal vocabulary of such a model is {size:,.0f} (Tao 2024)",
    ]
    size = round(size / MULTIPLE) * MULTIPLE
    if size < minimum:
        size = minimum
        reasons.append(f"raised to the lower bound of {minimum:,}")
    elif size > maximum:
        size = maximum
        reasons.append(f"lowered to the upper bound of {maximum:,}")
    else:
        reasons.append(f"rounded to {size:,}, a multiple of {MULTIPLE}")
    reasons.append(f"an id is used about {tokens / size:,.0f} times on average")
    return VocabSize(size, reasons)
