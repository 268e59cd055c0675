"""The original MyPT's model, written for tests from the layout of its state dicts, and the files it is saved in."""

import itertools
import json

import torch
from torch import nn
from transformers import AutoModelForCausalLM

CHARS = sorted("\n !abcdé")  # 9 in all with the one below
STATE = {"token_kind": "char", "chars": [*CHARS, "😀"]}
IDS = torch.randint(0, 9, (2, 12), generator=torch.Generator().manual_seed(1))

DEFAULTS = {
    "block_size": 12,
    "vocab_size": 9,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 2,
    "dropout": 0.1,
    "bias": False,
    "tie_weights": False,
    "pos_encoding": "learned",
    "mlp_type": "gelu",
    "norm_type": "layernorm",
    "rope_theta": 10000.0,
    "rope_scale": 1.0,
}
PER_HEAD = ("block_size", "vocab_size", "n_embd", "n_head", "n_layer", "dropout", "bias")  # all that its config says


class RootMeanSquare(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weight


class OneHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        for name in ("key", "query", "value"):
            setattr(self, name, nn.Linear(c["n_embd"], c["n_embd"] // c["n_head"], bias=c["bias"]))
        self.register_buffer("tril", torch.ones(c["block_size"], c["block_size"]).tril())

    def forward(self, x, turn):
        return attend(turn(self.query(x)), turn(self.key(x)), self.value(x))


class Heads(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = nn.ModuleList(OneHead(c) for _ in range(c["n_head"]))
        self.proj = nn.Linear(c["n_embd"], c["n_embd"])

    def forward(self, x, turn):
        return self.proj(torch.cat([head(x, turn) for head in self.heads], dim=-1))


class Fused(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.width, self.count = c["n_embd"], c["n_head"]
        self.qkv = nn.Linear(self.width, 3 * self.width, bias=c["bias"])
        self.proj = nn.Linear(self.width, self.width, bias=c["bias"])

    def forward(self, x, turn):
        query, key, value = self.qkv(x).split(self.width, dim=-1)
        size = self.width // self.count
        parts = [slice(head * size, (head + 1) * size) for head in range(self.count)]
        each = [attend(turn(query[..., p]), turn(key[..., p]), value[..., p]) for p in parts]
        return self.proj(torch.cat(each, dim=-1))


class Plain(nn.Module):
    def __init__(self, width, activation):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        return self.net(x)


class Gated(nn.Module):
    def __init__(self, width, inner=24):
        super().__init__()
        self.w_gate, self.w_up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.w_down = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        gate = self.w_gate(x)
        return self.w_down(gate * gate.sigmoid() * self.w_up(x))


class Block(nn.Module):
    def __init__(self, c, per_head):
        super().__init__()
        self.sa = (Heads if per_head else Fused)(c)
        plain = Plain(c["n_embd"], nn.ReLU() if per_head else nn.GELU())
        self.fwd = Gated(c["n_embd"]) if c["mlp_type"] == "swiglu" else plain
        norm = RootMeanSquare if c["norm_type"] == "rmsnorm" else nn.LayerNorm
        self.ln1, self.ln2 = norm(c["n_embd"]), norm(c["n_embd"])


class OriginalModel(nn.Module):
    """OriginalModel(per_head=..., rotary="halves", **changes of DEFAULTS); ids (B, T) to logits (B, T, V)."""

    def __init__(self, per_head=False, rotary="halves", seed=0, **changes):
        super().__init__()
        torch.manual_seed(seed)
        self.c = c = DEFAULTS | changes
        self.config = {name: c[name] for name in PER_HEAD} if per_head else c
        self.rotary = rotary
        self.token_embedding_table = nn.Embedding(c["vocab_size"], c["n_embd"])
        if c["pos_encoding"] == "learned":
            self.position_embedding_table = nn.Embedding(c["block_size"], c["n_embd"])
        self.blocks = nn.ModuleList(Block(c, per_head) for _ in range(c["n_layer"]))
        self.ln_f = RootMeanSquare(c["n_embd"]) if c["norm_type"] == "rmsnorm" else nn.LayerNorm(c["n_embd"])
        self.lm_head = nn.Linear(c["n_embd"], c["vocab_size"])
        if c["tie_weights"]:
            self.lm_head.weight = self.token_embedding_table.weight
        with torch.no_grad():  # nothing may be 0 or 1, or a bias that is lost would not be seen
            for parameter in self.parameters():
                parameter.mul_(0.5).add_(torch.randn_like(parameter) * 0.1)
        self.eval()

    def forward(self, ids):
        x = self.token_embedding_table(ids)
        if self.c["pos_encoding"] == "learned":
            x = x + self.position_embedding_table.weight[: ids.shape[1]]
        for block in self.blocks:
            x = x + block.sa(block.ln1(x), self.turn)
            x = x + block.fwd(block.ln2(x))
        return self.lm_head(self.ln_f(x))

    def turn(self, x):
        """Rotary positions of one head, (B, T, D), pair by pair."""
        if self.c["pos_encoding"] == "learned":
            return x
        size, turned = x.shape[-1], x.clone()
        for pair in range(size // 2):
            i, j = (pair, pair + size // 2) if self.rotary == "halves" else (2 * pair, 2 * pair + 1)
            places = torch.arange(x.shape[1]) / self.c["rope_scale"]
            angle = places * self.c["rope_theta"] ** (-2 * pair / size)
            turned[..., i] = x[..., i] * angle.cos() - x[..., j] * angle.sin()
            turned[..., j] = x[..., i] * angle.sin() + x[..., j] * angle.cos()
        return turned


def attend(query, key, value):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value


def all_fused():
    """Every combination of the fused era's switches."""
    switches = {
        "pos_encoding": ("learned", "rope"),
        "norm_type": ("layernorm", "rmsnorm"),
        "mlp_type": ("gelu", "swiglu"),
        "tie_weights": (False, True),
        "bias": (False, True),
    }
    return [dict(zip(switches, values, strict=True)) for values in itertools.product(*switches.values())]


def write_bundle(folder, model, *, wrapped=True, dtype=None, state=STATE, config=None, optimizer=False):
    """The folder that the original saves: `model.pt` is a state dict, or one with its dtypes beside it."""
    folder.mkdir()
    weights = {name: tensor.to(dtype) if dtype else tensor for name, tensor in model.state_dict().items()}
    about = {"state_dict": weights, "checkpoint_dtype": dtype and str(dtype), "model_dtype": "float32"}
    torch.save(about if wrapped else weights, folder / "model.pt")
    training = {"step": 7, "training_config": {"max_iters": 9, "learning_rate": 0.1}}
    if optimizer:
        torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, folder / "optimizer.pt")
        training["optimizer_file"] = "optimizer.pt"
    for name, content in {
        "config.json": model.config if config is None else config,
        "tokenizer.json": state,
        "training_state.json": training,
    }.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def write_single(file, model, **changes):
    content = {
        "model_state_dict": model.state_dict(),
        "config": model.config,
        "tokenizer": STATE,
        "step": 7,
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content | changes, file)
    return file


def difference(folder, model, ids=IDS):
    """The largest, of logits of the converted folder and of the original's model."""
    with torch.no_grad():
        got, expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids)
    return (got - expected).abs().max().item()
