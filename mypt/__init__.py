"""MyPT: train GPT models from scratch and adapt them to a domain without losing what they knew.

Names are imported on first use; `import mypt` itself costs milliseconds and makes transformers' Auto classes know
the model type `mypt`.
"""

from . import interrupts

interrupts.install()  # before everything else that takes time

import importlib  # noqa: E402

from . import terminal  # noqa: E402
from .models import auto  # noqa: E402

_MODULE_OF = {
    "MyPTConfig": "mypt.models.configuration_mypt",
    "MyPTModel": "mypt.models.modeling_mypt",
    "MyPTForCausalLM": "mypt.models.modeling_mypt",
    "MyPTForSequenceClassification": "mypt.models.modeling_mypt",
    "MyPTForTokenClassification": "mypt.models.modeling_mypt",
    "MyPTForQuestionAnswering": "mypt.models.modeling_mypt",
    "preset_config": "mypt.models.presets",
    "calculate_dataset_coverage": "mypt.planning.coverage",
    "prepare_dataset": "mypt.preparation.prepare",
    "ShardStream": "mypt.streams.shard_stream",
    "JitStream": "mypt.streams.jit_stream",
    "JitLoader": "mypt.streams.jit_stream",
    "EvalWindows": "mypt.streams.eval_windows",
    "CoverageCallback": "mypt.training.callbacks.coverage",
    "ForgettingCallback": "mypt.training.callbacks.forgetting",
    "ThroughputCallback": "mypt.training.callbacks.throughput",
    "DiagnosisCallback": "mypt.training.callbacks.diagnosis",
    "load_tokenizer": "mypt.tokenization.load",
    "load_recipe": "mypt.recipe",
    "build_trainer": "mypt.training.build",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name == "__version__":
        from .versions import version_of

        return version_of("mypt")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mypt' has no attribute {name!r}; it offers {', '.join(__all__)}")
    with terminal.usable_streams():  # transformers' import fails on a standard error that cannot flush
        value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


auto.install()
