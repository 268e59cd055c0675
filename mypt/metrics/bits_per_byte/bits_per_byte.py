"""Bits per byte of a causal language model on texts, as `mypt evaluate` measures it.

evaluate.load copies this file, imports the copy and takes the first class in it that is a metric: so the base class is
not imported by its own name.
"""

from mypt.metrics import measured


class BitsPerByte(measured.Measured):
    """`compute(predictions=texts, model_id=model)`."""

    figure = "bits_per_byte"
    description = (
        "Bits per byte of texts by a causal language model: the negative log-likelihood in bits, divided by the UTF-8 "
        "bytes of the text. Computed by `mypt evaluate`."
    )
