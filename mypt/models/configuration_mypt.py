"""The architecture of a MyPT model: one decoder whose switches span GPT-2, Llama and Qwen3."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip


@strict
class MyPTConfig(PreTrainedConfig):
    """Dimensions and switches of `MyPTForCausalLM`; the defaults are a small modern model.

    Field names are those of `LlamaConfig`, plus the switches below.

    Args:
        vocab_size: rows of the embedding, in tokens; may be padded beyond the tokenizer's size.
        unpadded_vocab_size: the tokenizer's size; `generate` never produces an id from here on. None: all ids are real.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP's hidden layer.
        num_key_value_heads: heads of keys and values, each shared by a group of query heads. None: as many as queries.
        head_dim: width of one head. None: `hidden_size / num_attention_heads`.
        max_position_embeddings: the block size in tokens; a hard limit only with learned positions.
        position_embedding_type: `rope` (rotary, Su 2021, 2104.09864) or `learned` (a table, as GPT-2).
        rope_parameters: `{"rope_type": ..., "rope_theta": ...}` as transformers defines it; None: theta 10,000.
        norm_type: `rmsnorm` (Zhang 2019, 1910.07467) or `layernorm`, before attention, before the MLP and at the end.
        mlp_gated: `down(act(gate(x)) * up(x))` (Shazeer 2020, 2002.05202) rather than `down(act(up(x)))`.
        qk_norm: RMSNorm over every query and key head (Henry 2020, 2010.04245), as Qwen3.
        attention_bias, attention_output_bias, mlp_bias, lm_head_bias: bias on q/k/v, on the attention's output
            projection, on all projections of the MLP, on the head.
        attention_dropout: dropout probability of attention weights.
        hidden_dropout: dropout probability of the embedding's and of every sublayer's output.
        initializer_range: standard deviation of initial weights; projections that write to the residual stream
            get it divided by sqrt(2 * num_hidden_layers) (Radford 2019).

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, or dimensions that do not fit together.
    """

    model_type = "mypt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_pp_plan: ClassVar = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 16000
    unpadded_vocab_size: int | None = None
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2"] = "silu"
    max_position_embeddings: int = 1024
    position_embedding_type: Literal["rope", "learned"] = "rope"
    rope_parameters: dict | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    mlp_gated: bool = True
    qk_norm: bool = True
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim, rest = divmod(self.hidden_size, self.num_attention_heads)
            if rest:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; change one of them or give head_dim"
                )
        self.base_model_tp_plan = self._tp_plan()  # transformers 5.17 adds to it, and no version writes it to a file
        super().__post_init__(**kwargs)
        if self.position_embedding_type == "learned":
            self.rope_parameters = None  # the base class fills it for every config that declares the field

    def _tp_plan(self) -> dict[str, str]:
        """How `MyPTModel` is split over the processes of tensor parallelism; names only modules that it has."""
        attention, mlp = "layers.*.self_attn", "layers.*.mlp"
        inputs = [f"{attention}.{name}_proj" for name in "qkv"] + [f"{mlp}.up_proj"]
        inputs += [f"{mlp}.gate_proj"] * self.mlp_gated
        # Each process sees its own heads only, so that the gradients of the norms are sums over processes.
        norms = [f"{attention}.{name}_norm" for name in "qk"] * self.qk_norm
        return {
            **dict.fromkeys(inputs, "colwise"),
            **dict.fromkeys(norms, "replicated_with_grad_allreduce"),
            **dict.fromkeys([f"{attention}.o_proj", f"{mlp}.down_proj"], "rowwise"),
        }

    def validate_architecture(self):
        """Refuse dimensions that do not fit together; `@strict` calls this after construction and before saving."""
        for name in SIZES:
            if not getattr(self, name) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}; every key-value head serves a group of equal size"
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of numbers: make it even")
        for name in ("attention_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a probability from 0 to below 1 was expected")
        if self.unpadded_vocab_size is not None and not 0 < self.unpadded_vocab_size <= self.vocab_size:
            raise ValueError(
                f"unpadded_vocab_size is {self.unpadded_vocab_size}; a number from 1 to vocab_size {self.vocab_size} "
                "was expected: the tokenizer must not be larger than the model"
            )


# From now on `save_pretrained` copies this file beside the config, for `trust_remote_code=True` without mypt.
MyPTConfig.register_for_auto_class()
