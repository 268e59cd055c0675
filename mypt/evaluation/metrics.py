"""A figure of a model that is no loss: BLEU, chrF, or the metric of a task."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """One figure; `delta` is the change from the first model (None for itself)."""

    model: str
    data: str  # the name of the references, or of the task
    metric: str
    value: float
    error: float | None  # standard error
    delta: float | None
    samples: int
    details: str  # sacrebleu's signature, or the version of the task
    data_hash: str


def with_changes(metrics: list[Metric], first: str) -> list[Metric]:
    """The same figures with `delta`, the change from the model `first`, which comes before the others."""
    base = {(metric.data, metric.metric): metric.value for metric in metrics if metric.model == first}
    return [
        metric if metric.model == first else replace(metric, delta=metric.value - base[metric.data, metric.metric])
        for metric in metrics
    ]
