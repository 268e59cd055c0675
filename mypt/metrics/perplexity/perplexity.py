"""Perplexity of a causal language model on texts, as `mypt evaluate` measures it.

evaluate.load copies this file, imports the copy and takes the first class in it that is a metric: so the base class is
not imported by its own name.
"""

from mypt.metrics import measured


class Perplexity(measured.Measured):
    """`compute(predictions=texts, model_id=model)`."""

    figure = "perplexity"
    description = (
        "Perplexity of texts by a causal language model: exp(negative log-likelihood in nats, divided by the tokens). "
        "Computed by `mypt evaluate`."
    )
