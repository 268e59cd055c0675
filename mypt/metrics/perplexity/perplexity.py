"""Perplexity of a causal language model on texts, as `mypt evaluate` measures it.

evaluate.load copies this file and imports the copy. It reads one import from a line, so each has its own.
"""

import datasets
import evaluate

from mypt.evaluation.compare import compare

_DESCRIPTION = """
Perplexity of texts by a causal language model: exp(negative log-likelihood in nats, divided by the tokens). Computed by
`mypt evaluate`.
"""
_INPUTS = """
Args:
    predictions: The texts, each a document.
    model_id: A model's folder or hub id: of MyPT, of transformers, or a LoRA adapter.
    definition: `windows`: every token but the first of all text is a target, and the end of each document. `rolling`:
        lm-eval's rolling log-likelihood: each document from its first token on, without its end.
    block_size: Context in tokens; the model's own by default.
    batch_size: Windows computed at once.

Returns:
    perplexity, loss (nats per token), standard_error (of the loss), tokens, bytes, definition.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Perplexity(evaluate.Metric):
    """`compute(predictions=texts, model_id=model)`."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, model_id, definition="windows", block_size=None, batch_size=8):
        options = {"definition": definition, "block_size": block_size, "batch_size": batch_size}
        (score,) = compare([model_id], {"predictions": list(predictions)}, **options)
        return {
            "perplexity": score.perplexity,
            "loss": score.loss,
            "standard_error": score.standard_error,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "definition": score.definition,
        }
