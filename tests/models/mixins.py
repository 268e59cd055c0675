"""MyPT and in-tree Llama under transformers' own test classes; `scripts/mixins.py` runs this file and prints a table.

Not collected by `pytest tests`: here `tests` is the package of a transformers checkout, which the script puts on the
path of a process of its own.
"""

import unittest
from typing import ClassVar

from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester
from tests.models.llama.test_modeling_llama import LlamaModelTest
from transformers.models.auto import modeling_auto

import mypt
from tests import test_fsdp_mixin, test_tensor_parallel_mixin

# The tests ask by class name, in these tables of in-tree classes, which labels and outputs a model has.
for table, head in {
    "MODEL_MAPPING_NAMES": "Model",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "ForCausalLM",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "ForSequenceClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "ForTokenClassification",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "ForQuestionAnswering",
}.items():
    getattr(modeling_auto, table)["mypt"] = f"MyPT{head}"

# By default only a few in-tree models pass through the tests that start several processes; here all do.
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None


class MyPTModelTester(CausalLMModelTester):
    """Tiny models; an attribute with the name of a `MyPTConfig` field becomes that field's value."""

    base_model_class = mypt.MyPTModel
    config_class = mypt.MyPTConfig
    causal_lm_class = mypt.MyPTForCausalLM
    sequence_classification_class = mypt.MyPTForSequenceClassification
    token_classification_class = mypt.MyPTForTokenClassification
    question_answering_class = mypt.MyPTForQuestionAnswering
    fields: ClassVar[dict] = {}

    def __init__(self, parent):
        super().__init__(parent, **self.fields)


class MyPTModelTest(CausalLMModelTest):
    """What `LlamaModelTest` sets, set for ours."""

    model_split_percents = LlamaModelTest.model_split_percents
    _torch_compile_train_cls = mypt.MyPTForCausalLM


class RotaryTester(MyPTModelTester):
    """Qwen3's architecture."""

    fields: ClassVar = {"qk_norm": True}


class GroupedTester(MyPTModelTester):
    """Llama's architecture with two query heads to a key-value head, and every bias that Llama can have."""

    fields: ClassVar = {
        "qk_norm": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    }


class LearnedTester(MyPTModelTester):
    """GPT-2's architecture, with a biased head."""

    fields: ClassVar = {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "mlp_gated": False,
        "hidden_act": "gelu_new",
        "qk_norm": False,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
    }


class RotaryTest(MyPTModelTest, unittest.TestCase):
    model_tester_class = RotaryTester


class GroupedTest(MyPTModelTest, unittest.TestCase):
    model_tester_class = GroupedTester


class LearnedTest(MyPTModelTest, unittest.TestCase):
    model_tester_class = LearnedTester

    def setUp(self):
        super().setUp()
        # The tests tell a rotary model by its config's having the field, ours has it always.
        if "_rope_" in self._testMethodName:
            self.skipTest("learned positions do not rotate; in-tree GPT-2 skips this, too")


class LlamaTest(LlamaModelTest):
    """In-tree Llama in the same process, for comparison."""


del LlamaModelTest, CausalLMModelTest, MyPTModelTest
