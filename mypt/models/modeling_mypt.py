"""MyPT's decoder in transformers' terms: caches, attention interfaces, generation and Trainer work as for any model.

Shapes in comments: B batch, T tokens of this call, S tokens including cached ones, H query heads, K key-value heads,
D width of a head, C hidden_size, V vocab_size.
"""

import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    initialization,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mypt import MyPTConfig


class MyPTRMSNorm(nn.RMSNorm):
    """`x / rms(x) * weight` over the last axis (Zhang 2019, 1910.07467), in the dtype of `x`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # torch has one kernel for it on GPUs, and a compiler writes one; on a CPU autograd would go step by step.
        on_cpu = hidden_states.device.type == "cpu" and hidden_states.dtype != torch.float64
        if self.training and on_cpu and not torch.compiler.is_compiling():
            return _RMSNormOnCPU.apply(hidden_states, self.weight, self.eps)
        # Under autocast the weight is float32 beside bfloat16 heads, which torch's fused kernel refuses.
        weight = self.weight.to(hidden_states.dtype)
        return nn.functional.rms_norm(hidden_states, self.normalized_shape, weight, self.eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """Keeps the input and 1 / rms alone. With n = x / rms and g = dy * weight: dx = (g - n * mean(g * n)) / rms.

    For one plain backward pass: higher derivatives and torch.func need the model in eval mode.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (length.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        of_weight = (gradient * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        inner = gradient * weight.float()
        shared = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(shared)).mul_(inverse).to(x.dtype), of_weight, None


NORMS = {"rmsnorm": MyPTRMSNorm, "layernorm": nn.LayerNorm}


class MyPTRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions (Su 2021, 2104.09864), with transformers' extensions to long contexts."""

    def __init__(self, config: MyPTConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        frequencies, self.attention_scaling = compute(config)
        # Not saved: the base class's `_init_weights` computes both again when a checkpoint is loaded.
        self.inv_freq = nn.Buffer(frequencies, persistent=False)
        self.original_inv_freq = nn.Buffer(frequencies.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: MyPTConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Frequencies `theta ** (-2i / D)`, float32 of shape (D/2,), and the factor 1 on cosines and sines."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Angles in float32; the cosines and sines, (B, T, D), in the dtype of `hidden_states`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(hidden_states.device, torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        scale, dtype = self.attention_scaling, hidden_states.dtype
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x[i], x[i + D/2]) of `states`, (B, heads, T, D), by its angle."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling + mask) v in plain matrix products; returns (B, T, H, D) and the weights (B, H, T, S)."""
    if module.num_key_value_groups > 1:
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MyPTAttention(nn.Module):
    """Causal self-attention with grouped key-value heads."""

    def __init__(self, config: MyPTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        # transformers' attention functions read these from the module.
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True

        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_output_bias)
        self.o_proj.is_residual = True
        self.q_norm = MyPTRMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = MyPTRMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, H, T, D)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, K, T, D)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # (B, K, T, D)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, K, S, D)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights  # (B, T, C)


class MyPTMLP(nn.Module):
    """The position-wise network, gated (SwiGLU with `silu`) or plain (GPT-2's with `gelu_new`)."""

    def __init__(self, config: MyPTConfig):
        super().__init__()
        if config.mlp_gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.is_residual = True
        self.gated = config.mlp_gated
        self.act_fn = ACT2FN[config.hidden_act]
        self.written_out = config.hidden_act == "gelu_new"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gated:
            return self.down_proj(self._activate(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return self.down_proj(self._activate(self.up_proj(hidden_states)))

    def _activate(self, states: torch.Tensor) -> torch.Tensor:
        # transformers writes gelu_new out in eight operations, of which autograd keeps half. In training it is one
        # kernel, equal to about 1e-6; otherwise it is theirs, for GPT-2's logits to the bit.
        if self.written_out and self.training:
            return nn.functional.gelu(states, approximate="tanh")
        return self.act_fn(states)


def read(hidden_states: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """The normed stream in the dtype in which autocast computes: it would cast, and keep, one for each projection."""
    states = norm(hidden_states)
    kind = states.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    # Beside frozen weights nothing is kept, and adapters compute from float32.
    if autocast and states.dtype == torch.float32 and norm.weight.requires_grad:
        return states.to(torch.get_autocast_dtype(kind))
    return states


class MyPTDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the MLP; each reads a normed copy of the residual stream and adds to the stream itself."""

    def __init__(self, config: MyPTConfig, layer_idx: int):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, config.norm_eps)
        self.self_attn = MyPTAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, config.norm_eps)
        self.mlp = MyPTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attention, _ = self.self_attn(read(hidden_states, self.input_layernorm), **kwargs)
        hidden_states = hidden_states + self.dropout(attention)
        return hidden_states + self.dropout(self.mlp(read(hidden_states, self.post_attention_layernorm)))


class MyPTPreTrainedModel(PreTrainedModel):
    """Settings that transformers reads from every MyPT class, and how weights start."""

    config: MyPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["MyPTDecoderLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar = {"hidden_states": MyPTDecoderLayer, "attentions": MyPTAttention}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Every layer writes twice to the residual stream; this keeps the stream's variance independent of depth.
        if getattr(module, "is_residual", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            initialization.normal_(module.weight, mean=0.0, std=std)

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As for any model; the config names every class of the code beside the weights, not this model's alone."""
        self.config.auto_map = {auto.__name__: f"{_MODULE}.{own.__name__}" for auto, own, _ in _AUTO_CLASSES}
        super().save_pretrained(save_directory, *args, **kwargs)
        Path(save_directory, "checksums.json").unlink(missing_ok=True)  # of the weights that were there

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As for any model; `new_num_tokens` becomes the tokenizer's size, rows beyond it are padding."""
        padding = range(self.config.unpadded_vocab_size or self.config.vocab_size, self.config.vocab_size)
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.unpadded_vocab_size = min(new_num_tokens or padding.start, self.config.vocab_size)
        if self.can_generate():
            chosen = set(self.generation_config.suppress_tokens or ()) - set(padding)
            padding = range(self.config.unpadded_vocab_size, self.config.vocab_size)
            self.generation_config.suppress_tokens = sorted(chosen.union(padding)) or None
        return embeddings


def look_up(table: nn.Embedding, ids: torch.Tensor, name: str) -> torch.Tensor:
    """Rows of `table`; on CPU an id outside it is a ValueError (a check on GPU would wait for the GPU)."""
    try:
        return table(ids)
    except IndexError:
        raise ValueError(
            f"{name} must be from 0 to {table.num_embeddings - 1}, but range from {ids.min()} to {ids.max()}"
        ) from None


class MyPTModel(MyPTPreTrainedModel):
    """The decoder without a head: ids (B, T) to hidden states (B, T, C)."""

    def __init__(self, config: MyPTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = MyPTRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(MyPTDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm_type](config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: int64 (B, T); or give `inputs_embeds`, (B, T, C), instead.
            attention_mask: (B, S), 0 at padding; or a ready mask (B, 1, T, S).
            position_ids: int64 (B, T). Where they start again at 0, without cache and `attention_mask`, a new
                document begins, and attention does not reach back across it.
            past_key_values: the cache to read and extend.
            use_cache: make a cache if none is given (default: the config's).

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, ids outside the vocabulary (on CPU), more
                tokens than learned positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if (cache := kwargs.pop("cache", None)) is not None:  # its name in `generate` from transformers 5.24 on
            past_key_values = cache
        if inputs_embeds is None:
            inputs_embeds = look_up(self.embed_tokens, input_ids, "input_ids")

        # Made before the default positions and the cache: transformers looks for documents only in positions that
        # the caller chose and only without a cache, and takes a plain causal mask to mean SDPA's fast path.
        causal_mask = create_causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states, position_embeddings = self.embed_places(inputs_embeds, position_ids, past_key_values)
        hidden_states = self.dropout(hidden_states)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def embed_places(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor | None, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Add learned positions to `hidden_states`, (B, T, C), or return the cosines and sines of rotary ones."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = seen + hidden_states.shape[1]
        learned = self.config.position_embedding_type == "learned"
        # A static cache counts in a tensor, which to read would wait for the GPU; packed documents may be longer
        # together than each may be alone.
        if learned and isinstance(length, int) and (position_ids is None or seen):
            self.check_length(length)
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None] + seen  # (1, T)
        if learned:
            # A later stage of a pipeline receives hidden states, which have positions, and lacks the first layer.
            if isinstance(self.layers[0], nn.Identity):
                return hidden_states, None
            return hidden_states + look_up(self.embed_positions, position_ids, "position_ids"), None
        cos, sin = self.rotary_emb(hidden_states, position_ids)
        return hidden_states, (cos[:, None], sin[:, None])  # (B, 1, T, D), the same for all heads

    def check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens were given, but this model has {self.config.max_position_embeddings} learned "
                "positions; shorten the prompt or the continuation, or split the text"
            )


def kept_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Rows of (B, T, C) that get logits, by the rules of transformers 5.23's `slice_logits_to_keep`; 5.17 has none."""
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)


class MyPTForCausalLM(MyPTPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head: ids (B, T) to logits (B, T, V)."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MyPTConfig):
        super().__init__(config)
        self.model = MyPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()
        # Not masked in `forward`: training in the whole softmax drives padded logits down, so that even servers which
        # ignore generation_config.json avoid these ids, and logits stay those of the stock classes after an export.
        if config.unpadded_vocab_size not in (None, config.vocab_size):
            self.generation_config.suppress_tokens = list(range(config.unpadded_vocab_size, config.vocab_size))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits, and with `labels` the mean cross-entropy in nats per token.

        Args:
            labels: int64 (B, T), the input ids themselves (they are shifted here), -100 where nothing is to be
                predicted. No cache is made when they are given.
            logits_to_keep: compute logits of the last so many positions only; 0 means all.
            kwargs: `shift_labels`, int64 (B, T), the token after each input: replaces the shifting of `labels`, so
                that the last position is trained, too. Other arguments: see `MyPTModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache if labels is None else False,
            **kwargs,
        )
        logits = self.lm_head(kept_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MyPTWithHead(MyPTPreTrainedModel):
    """Base of the classes whose head, with its loss, is transformers' generic one."""

    def __init__(self, config: MyPTConfig):
        # The generic class asks AutoModel; transformers may have executed a shipped copy of the config's module twice.
        AutoModel.register(type(config), MyPTModel, exist_ok=True)
        super().__init__(config)


class MyPTForSequenceClassification(GenericForSequenceClassification, MyPTWithHead):
    """The decoder with a linear classifier on the last token that is no padding."""


class MyPTForTokenClassification(GenericForTokenClassification, MyPTWithHead):
    """The decoder with a linear classifier on every token."""


class MyPTForQuestionAnswering(GenericForQuestionAnswering, MyPTWithHead):
    """The decoder with two scores per token: the answer begins here, the answer ends here."""


_MODULE = __name__.rpartition(".")[2]
_AUTO_CLASSES = (
    (AutoModel, MyPTModel, modeling_auto.MODEL_MAPPING_NAMES),
    (AutoModelForCausalLM, MyPTForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (
        AutoModelForSequenceClassification,
        MyPTForSequenceClassification,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    (
        AutoModelForTokenClassification,
        MyPTForTokenClassification,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ),
    (AutoModelForQuestionAnswering, MyPTForQuestionAnswering, modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
)
for _auto_class, _model_class, _names in _AUTO_CLASSES:
    _auto_class.register(MyPTConfig, _model_class, exist_ok=True)
    # Makes `save_pretrained` copy this file and its sibling beside the weights, whoever calls it, so that every
    # checkpoint loads without mypt (`trust_remote_code=True`); with mypt the installed code is used.
    _model_class.register_for_auto_class(_auto_class)
    # Trainer reads here whether to shift labels before it smooths them; pipelines and model cards read it, too.
    _names[MyPTConfig.model_type] = _model_class.__name__
