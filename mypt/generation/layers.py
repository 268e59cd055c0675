"""The decoder's layers for one new token per row: as they are, or prepared for few calls and few bytes.

At one token a small model spends its time in calling operations, a large one in reading its weights. So float32 models
get copies of their weights that need about half of the calls and are laid out as the products read them, or copies in
8 bits; all others are read where they are.

Both are called with the states of the new tokens (B, C); the cache of keys and values (layers, 2, B, K, capacity, D);
`index`, where in it the new tokens go; cosines and sines (B, 1, D) of their positions, None without rotary ones; and a
mask (B, 1, 1, S) to add to scores, or None. They write the cache and return the normed states (B, C) for the head.
B rows, S = index + 1, C hidden_size, H query heads, K key-value heads, G = H / K, D width of a head, I the MLP's width.
"""

from __future__ import annotations

import math
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mypt.errors import MyPTError
from mypt.hardware.machine import cpuinfo
from mypt.hardware.main_memory import main_memory
from mypt.models.modeling_mypt import MyPTDecoderLayer, MyPTForCausalLM, MyPTModel, MyPTRMSNorm, rotate

# Copies of so many bytes at most, on a CPU; and a share of the memory that is free.
LARGEST, SHARE = 2**30, 0.25
# On a GPU calling operations is all that copies save.
LARGEST_GPU = 64 * 2**20
# x86 without VNNI adds pairs of 8-bit products in 16 bits: inputs of 7 bits keep the sums in range.
REDUCED = platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported()

# MKL is made for Intel's CPUs: on AMD's, oneDNN multiplies that many rows and more in about half of its time.
ONEDNN_ROWS = 3
ONEDNN = "AuthenticAMD" in cpuinfo() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

Head = Callable[[Tensor], Tensor]  # states (B, C) -> logits (B, V)

# The same functions as the model's, each in one call.
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda states: F.relu(states).square(),
}


def prepare(model: MyPTForCausalLM, largest: int | None = None) -> tuple[PlainLayers | FusedLayers, Head]:
    """The layers and the head: copies in float32, or the model's own where they would be larger than `largest` bytes.

    largest: LARGEST, or a quarter of the free memory if that is less.
    """
    weights = [*model.model.layers.parameters(), *model.lm_head.parameters()]
    if largest is None and model.device.type == "cpu":
        free = main_memory()[1]
        largest = LARGEST if free is None else min(LARGEST, int(free * SHARE))
    elif largest is None:
        largest = LARGEST_GPU
    if sum(weight.nbytes for weight in weights) > largest or any(w.dtype != torch.float32 for w in weights):
        return PlainLayers(model.model), model.lm_head
    return FusedLayers(model.model), Product(model.lm_head.weight.t(), model.lm_head.bias)


def prepare_int8(model: MyPTForCausalLM) -> tuple[FusedLayers, Head]:
    """Layers and head with 8-bit weights. Raises MyPTError unless they are finite float32 on a CPU that can do it."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise MyPTError(f"int8 decoding is for float32 weights on a CPU; these are {model.dtype} on {model.device}")
    if not {"x86", "fbgemm", "qnnpack", "onednn"} & {*torch.backends.quantized.supported_engines}:
        raise MyPTError("this build of torch has no int8 products for this CPU; leave out --int8")
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise MyPTError("weights are NaN or infinite: the checkpoint is damaged or its training diverged; use another")
    return FusedLayers(model.model, Int8Product), Int8Product(model.lm_head.weight.t(), model.lm_head.bias)


class PlainLayers:
    """The model's own modules and roundings, no copy of any weight."""

    def __init__(self, model: MyPTModel):
        self.layers, self.norm = model.layers, model.norm
        self.grouped = model.config.num_key_value_heads != model.config.num_attention_heads

    def __call__(
        self, states: Tensor, cache: Tensor, index: int, cosine: Tensor | None, sine: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        batch = len(states)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            attention = layer.self_attn
            normed = layer.input_layernorm(states)
            query = attention.q_norm(attention.q_proj(normed).view(batch, -1, attention.head_dim))  # (B, H, D)
            key = attention.k_norm(attention.k_proj(normed).view(batch, -1, attention.head_dim))  # (B, K, D)
            if cosine is not None:
                query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
            keys[:, :, index] = key
            values[:, :, index] = attention.v_proj(normed).view_as(key)
            mixed = F.scaled_dot_product_attention(
                query[:, :, None],
                keys[:, :, : index + 1],
                values[:, :, : index + 1],
                attn_mask=mask,
                scale=attention.scaling,
                enable_gqa=self.grouped,
            )
            states = states + attention.o_proj(mixed.reshape(batch, -1))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self.norm(states)


class Product:
    """states @ weight + bias, for a matrix (in, out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight.contiguous(), bias
        self.onednn = ONEDNN and weight.device.type == "cpu"

    def __call__(self, states: Tensor) -> Tensor:
        if self.onednn and len(states) >= ONEDNN_ROWS:
            return torch.ops.mkldnn._linear_pointwise(states, self.weight.t(), self.bias, "none", [], "")
        if self.bias is None:
            return torch.mm(states, self.weight)
        return torch.addmm(self.bias, states, self.weight)

    def add(self, states: Tensor, inputs: Tensor) -> Tensor:
        """states + inputs @ weight + bias."""
        if self.onednn and len(states) >= ONEDNN_ROWS:
            return self(inputs).add_(states)
        states = torch.addmm(states, inputs, self.weight)
        return states if self.bias is None else states.add_(self.bias)


class Int8Product:
    """The same with weights in 8 bits, one scale for each output; inputs are rounded to 8 bits at each call."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        rows = weight.t().contiguous()  # (out, in)
        scales = (rows.abs().amax(1) / 127).clamp(min=1e-12)
        zeros = torch.zeros_like(scales, dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's eager quantization, whose place torchao takes; the ops stay
            rounded = torch.quantize_per_channel(rows, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def __call__(self, states: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(states, self.packed, REDUCED)

    def add(self, states: Tensor, inputs: Tensor) -> Tensor:
        """As `Product.add`."""
        return self(inputs).add_(states)


class FusedLayers:
    """Copies in which query, key and value are one matrix, and gate and up another, all laid out (in, out).

    For so few rows MKL multiplies by such matrices faster than by `nn.Linear`'s, which are (out, in): 1.05 times for
    one row, 1.4 times for four. They also take up what is constant: RMSNorm's weights and the attention's scale go into
    the matrix that follows, or into the cosines and sines, so that a norm is a division by a length. The logits differ
    from the model's by rounding, about 1e-6 of their size.
    """

    def __init__(self, model: MyPTModel, product: type[Product] | type[Int8Product] = Product):
        """product: what multiplies by a matrix."""
        config = model.config
        self.query_heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.gated, self.act = config.head_dim, config.mlp_gated, ACTIVATIONS[config.hidden_act]
        self.layers = [_FusedLayer.of(layer, product) for layer in model.layers]
        self.norm, self.norm_scale = _norm(model.norm)
        device = model.norm.weight.device
        self.qk_length = self.qk_scale = None
        if config.qk_norm:
            self.qk_length = torch.tensor(math.sqrt(config.head_dim * config.norm_eps), device=device)
            self.qk_scale = torch.stack([_qk_scale(layer) for layer in model.layers])[:, None]  # (layers, 1, H + K, D)
            self.qk_scale_rolled = self.qk_scale.roll(config.head_dim // 2, -1)
        self.sign = torch.ones(config.head_dim, device=device)
        self.sign[: config.head_dim // 2] = -1

    def __call__(
        self, states: Tensor, cache: Tensor, index: int, cosine: Tensor | None, sine: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        batch = len(states)
        flat = cache.flatten(0, 1)  # keys and values of each layer in turn: two views of all in two calls
        slots = flat[:, :, :, index].unbind()  # (B, K, D) each
        seen = flat[:, :, :, : index + 1].flatten(1, 2).unbind()  # (B K, S, D) each

        def attend(number: int, query_key: Tensor, value: Tensor) -> Tensor:
            slots[2 * number].copy_(query_key[:, self.query_heads :])
            slots[2 * number + 1].copy_(value)
            query = query_key[:, : self.query_heads].reshape(batch * self.groups, -1, self.head_dim)  # (B K, G, D)
            scores = torch.bmm(query, seen[2 * number].transpose(1, 2))  # (B K, G, S)
            if mask is not None:
                scores = (scores.view(batch, self.query_heads, -1) + mask[:, 0]).view_as(scores)
            return torch.bmm(scores.softmax(-1), seen[2 * number + 1]).view(batch, -1)

        return self._compute(states, cosine, sine, attend)

    def read(self, states: Tensor, cache: Tensor, index: int, cosine: Tensor | None, sine: Tensor | None) -> Tensor:
        """The same for T tokens of one text, of which the first goes to `index`; states (T, C)."""
        count, stop = len(states), index + len(states)
        keys, values = (cache[:, part, 0, :, :stop].unbind() for part in (0, 1))  # (K, S, D) of each layer
        later = torch.full((count, stop), -torch.inf, device=states.device).triu(index + 1)

        def attend(number: int, query_key: Tensor, value: Tensor) -> Tensor:
            keys[number][:, index:] = query_key[:, self.query_heads :].transpose(0, 1)
            values[number][:, index:] = value.transpose(0, 1)
            query = query_key[:, : self.query_heads].reshape(count, self.groups, -1, self.head_dim)
            query = query.permute(1, 2, 0, 3).reshape(self.groups, -1, self.head_dim)  # (K, G T, D)
            scores = torch.bmm(query, keys[number].transpose(1, 2)).view(self.groups, -1, count, stop) + later
            mixed = torch.bmm(scores.softmax(-1).view(self.groups, -1, stop), values[number])
            return mixed.view(self.groups, -1, count, self.head_dim).permute(2, 0, 1, 3).reshape(count, -1)

        return self._compute(states, cosine, sine, attend)

    def _compute(self, states: Tensor, cosine: Tensor | None, sine: Tensor | None, attend: Callable) -> Tensor:
        """attend(a layer's number, queries and keys (R, H + K, D), values (R, K, D)) keeps these, returns (R, H D)."""
        rows, turned, half = len(states), self.query_heads + self.groups, self.head_dim // 2
        scales, turns = self._turns(cosine, sine)
        for number, layer in enumerate(self.layers):
            heads = layer.qkv(layer.norm(states)).view(rows, -1, self.head_dim)
            query_key = heads[:, :turned]
            if self.qk_length is not None:
                query_key = _unit(query_key, self.qk_length)
            if turns is not None:
                query_key = torch.addcmul(query_key * scales[number], query_key.roll(half, -1), turns[number])
            elif scales is not None:
                query_key = query_key * scales[number]
            states = layer.output.add(states, attend(number, query_key, heads[:, turned:]))
            hidden = layer.up(layer.mlp_norm(states))
            if self.gated:
                gate, hidden = hidden.chunk(2, -1)
                hidden = self.act(gate) * hidden
            else:
                hidden = self.act(hidden)
            states = layer.down.add(states, hidden)
        states = self.norm(states)
        return states if self.norm_scale is None else states * self.norm_scale

    def _turns(self, cosine: Tensor | None, sine: Tensor | None) -> tuple:
        """Factors of queries and keys of each layer, and those of the same after a half turn."""
        if cosine is None:
            return (None if self.qk_scale is None else self.qk_scale.unbind()), None
        sine = sine * self.sign
        if self.qk_scale is None:
            return [cosine] * len(self.layers), [sine] * len(self.layers)
        return (cosine * self.qk_scale).unbind(), (sine * self.qk_scale_rolled).unbind()


@dataclass(slots=True)
class _FusedLayer:
    norm: Callable[[Tensor], Tensor]
    qkv: Product | Int8Product  # (C, H D + 2 K D)
    output: Product | Int8Product  # (H D, C)
    mlp_norm: Callable[[Tensor], Tensor]
    up: Product | Int8Product  # (C, I); with a gate (C, 2 I)
    down: Product | Int8Product  # (I, C)

    @classmethod
    def of(cls, layer: MyPTDecoderLayer, product: type[Product] | type[Int8Product]) -> _FusedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, qkv_bias = _stacked([attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm)
        if isinstance(attention.q_norm, nn.Identity):
            rows = len(attention.q_proj.weight)
            qkv[:, :rows] *= attention.scaling
            if qkv_bias is not None:
                qkv_bias[:rows] *= attention.scaling
        ups = [mlp.gate_proj, mlp.up_proj] if mlp.gated else [mlp.up_proj]
        up, up_bias = _stacked(ups, layer.post_attention_layernorm)
        return cls(
            norm=_norm(layer.input_layernorm)[0],
            qkv=product(qkv, qkv_bias),
            output=product(attention.o_proj.weight.t(), attention.o_proj.bias),
            mlp_norm=_norm(layer.post_attention_layernorm)[0],
            up=product(up, up_bias),
            down=product(mlp.down_proj.weight.t(), mlp.down_proj.bias),
        )


def _stacked(projections: list[nn.Linear], norm: nn.Module) -> tuple[Tensor, Tensor | None]:
    """One matrix (C, out) for several, rows multiplied with what `norm` leaves to it, and one bias (all or none)."""
    weight = torch.cat([projection.weight for projection in projections]).t()
    scale = _norm(norm)[1]
    if scale is not None:
        weight *= scale[:, None]
    biased = projections[0].bias is not None
    return weight, torch.cat([projection.bias for projection in projections]) if biased else None


def _norm(norm: nn.Module) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """The norm in few calls, and the factor (C,) that it leaves to what follows.

    torch has one kernel for LayerNorm on CPU, and a chain of operations for RMSNorm that costs four times as much.
    """
    if not isinstance(norm, MyPTRMSNorm):
        return lambda states: torch.layer_norm(states, norm.normalized_shape, norm.weight, norm.bias, norm.eps), None
    size = norm.weight.numel()
    length = torch.tensor(math.sqrt(size * norm.eps), device=norm.weight.device)
    return partial(_unit, length=length), norm.weight * math.sqrt(size)


def _unit(states: Tensor, length: Tensor) -> Tensor:
    """`states` divided by sqrt(sum of squares + length^2) over the last axis: RMSNorm but for its constant factors."""
    return states / torch.hypot(torch.linalg.vector_norm(states, dim=-1, keepdim=True), length)


def _qk_scale(layer: MyPTDecoderLayer) -> Tensor:
    """(H + K, D): the weights of the norms of queries and keys, with `_unit`'s constant and the attention's scale."""
    attention = layer.self_attn
    heads = len(attention.q_proj.weight) // attention.head_dim, len(attention.k_proj.weight) // attention.head_dim
    root = math.sqrt(attention.head_dim)
    query = (attention.q_norm.weight * root * attention.scaling).expand(heads[0], -1)
    return torch.cat([query, (attention.k_norm.weight * root).expand(heads[1], -1)])
