"""Base of the modules of HF's `evaluate` library: one figure of texts, measured as `mypt evaluate` does."""

import datasets
import evaluate

from mypt.evaluation.compare import compare

INPUTS = """
Args:
    predictions: The texts, each a document.
    model_id: A model's folder or hub id: of MyPT, of transformers, or a LoRA adapter.
    definition: `windows`: every token but the first of all text is a target, and the end of each document. `rolling`:
        lm-eval's rolling log-likelihood: each document from its first token on, without its end.
    block_size: Context in tokens; the model's own by default.
    batch_size: Windows computed at once.

Returns:
    {figure}, loss (nats per token), standard_error (of the loss), tokens, bytes, definition.
"""


class Measured(evaluate.Metric):
    """A subclass names its `figure`, a field of `mypt.evaluation.compare.Score`, and what it is."""

    figure: str
    description: str

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=self.description,
            citation="",
            inputs_description=INPUTS.format(figure=self.figure),
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, model_id, definition="windows", block_size=None, batch_size=8):
        options = {"definition": definition, "block_size": block_size, "batch_size": batch_size}
        (score,) = compare([model_id], {"predictions": list(predictions)}, **options)
        names = (self.figure, "loss", "standard_error", "tokens", "bytes", "definition")
        return {name: getattr(score, name) for name in names}
