"""Which weights LoRA adapts: linear layers and stacks of expert matrices, each tried with peft and with the model."""

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mypt.errors import RecipeError
from mypt.training.model.flops import parameter_size

ALL_LINEAR = "all-linear"
LENGTH = 8  # tokens of the sequence on which a model is tried


@dataclass
class Targets:
    """The adapted weights, by full name, and why the other candidates are not adapted.

    modules: for peft's `target_modules`. parameters: for its `target_parameters`, each `module.parameter`.
    left_out: {name of a weight: reason}. fan_in_fan_out: whether the modules store their matrices as (in, out).
    """

    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    fan_in_fan_out: bool = False

    @property
    def weights(self) -> list[str]:
        """Names of the adapted parameters of the model as it was without adapters."""
        return [f"{name}.weight" for name in self.modules] + self.parameters


def choose_targets(model: PreTrainedModel, asked: list | str, options: dict, *, quantized: bool = False) -> Targets:
    """The weights to adapt.

    Args:
        model: the base, without adapters.
        asked: "all-linear" (all candidates but the head), names that are the last parts of a candidate's, or a regular
            expression that matches its full name. Candidates are linear layers, and parameters that hold the matrices
            of several experts.
        options: what the LoraConfig has besides its targets.
        quantized: whether the linear layers hold packed weights, which can be adapted as modules only.

    Raises:
        RecipeError: a name that matches no candidate, or a named candidate that cannot be adapted.
    """
    candidates = _candidates(model)
    if asked == ALL_LINEAR:
        head = model.get_output_embeddings()
        chosen = {name: item for name, item in candidates.items() if item is not head}
    else:
        chosen = _named(candidates, asked, _shared(model))
    reasons = dict.fromkeys(_read_elsewhere(model, candidates), "the model uses this weight outside its layer")
    reasons |= dict.fromkeys(_shared(model), "shared with another layer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = _tried_with_peft(model, chosen, options) if not quantized else _modules_alone(chosen)
    targets = Targets(fan_in_fan_out=any(isinstance(item, Conv1D) for item in chosen.values()))
    for name, (way, refusal) in taken.items():
        weight = _weight(model, name)
        if reason := reasons.get(weight) or refusal:
            targets.left_out[weight] = reason
        elif way == "module":
            targets.modules.append(name)
        else:
            targets.parameters.append(weight)
    if targets.left_out and (asked != ALL_LINEAR or not targets.weights):
        name, reason = next(iter(targets.left_out.items()))
        raise RecipeError(f"lora.target_modules: {name} cannot be adapted ({reason}); name other layers")
    return targets


def describe(model: PreTrainedModel, targets: Targets) -> list[str]:
    """Lines that give, per kind of layer, the share of the model's parameters that is adapted, and what is not."""
    sizes = {name: parameter_size(parameter) for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    adapted, lines = {*targets.weights}, []
    for (kind, _), names in _by_kind([name for name in sizes if name in adapted], {}).items():
        lines.append(f"lora: adapts {_listed(kind, names)}: {_share(names, sizes, total)}")
    rest = [name for name in sizes if name not in adapted]
    vectors = [name for name in rest if model.get_parameter(name).ndim < 2]
    matrices = [name for name in rest if name not in {*vectors}]
    for (kind, reason), names in _by_kind(matrices, targets.left_out).items():
        words = f" ({reason})" if reason else ""
        lines.append(f"lora: leaves out {_listed(kind, names)}: {_share(names, sizes, total)}{words}")
    if vectors:
        lines.append(f"lora: leaves out norms, biases and other vectors: {_share(vectors, sizes, total)}")
    return lines


def _candidates(model: PreTrainedModel) -> dict[str, nn.Module | nn.Parameter]:
    """Linear layers, and parameters that hold a stack of matrices, by full name in the order of the model."""
    found: dict[str, nn.Module | nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[name] = module
        elif name and not type(module).__module__.startswith("torch."):  # a convolution's weight is no stack
            found |= {f"{name}.{key}": p for key, p in module.named_parameters(recurse=False) if _is_stack(p)}
    return found


def _is_stack(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 3 and parameter.is_floating_point() and min(parameter.shape) > 1


def _named(candidates: dict, asked: list | str, shared: set[str]) -> dict:
    """The candidates that a recipe names; a weight that several layers share could not be merged for one of them."""
    names = [name for name in candidates if f"{name}.weight" not in shared]
    chosen = {}
    for pattern in [asked] if isinstance(asked, str) else asked:
        if isinstance(asked, list):
            found = [name for name in names if name == pattern or name.endswith(f".{pattern}")]
        else:
            found = [name for name in names if re.fullmatch(pattern, name)]
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise RecipeError(f"lora.target_modules: {pattern!r} is no linear layer of the model, which has: {known}")
        chosen |= {name: candidates[name] for name in found}
    return chosen


def _shared(model: PreTrainedModel) -> set[str]:
    """Names of parameters that more than one module holds, such as a head that is tied to the embedding."""
    names = [(name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False)]
    count = Counter(key for _, key in names)
    return {name for name, key in names if count[key] > 1}


def _read_elsewhere(model: PreTrainedModel, candidates: dict) -> set[str]:
    """Weights that the model's forward pass reads outside the forward of the module that holds them.

    An adapter takes part in its module's forward only, so it would have no effect there. The weights require a
    gradient except while their own module runs, and those that get one were read elsewhere. In a model that cannot run
    here, such as one whose kernels need another device, nothing is found.
    """
    owners: dict[nn.Module, list[str]] = {}
    for name, candidate in candidates.items():
        owner = name if isinstance(candidate, nn.Module) else name.rpartition(".")[0]
        weight = f"{name}.weight" if isinstance(candidate, nn.Module) else name
        owners.setdefault(model.get_submodule(owner), []).append(weight)
    parameters = {name: model.get_parameter(name) for names in owners.values() for name in names}
    parameters = {name: parameter for name, parameter in parameters.items() if parameter.is_floating_point()}
    found: set[str] = set()
    with _only_gradients_of(model, parameters, found) as handles:
        for module, names in owners.items():
            own = [parameters[name] for name in names if name in parameters]
            handles.append(module.register_forward_pre_hook(lambda *_, own=own: _require_gradient(own, False)))
            handles.append(module.register_forward_hook(lambda *_, own=own: _require_gradient(own, True)))
        ids = torch.arange(LENGTH, device=model.device)[None] % model.config.get_text_config().vocab_size
        with suppress(Exception):
            logits = model(input_ids=ids, use_cache=False).logits
            if logits.requires_grad:
                logits.float().square().mean().backward()
    return found


@contextmanager
def _only_gradients_of(model: nn.Module, parameters: dict, found: set[str]) -> Iterator[list]:
    """Eval mode in which `parameters` alone get gradients; names of those that do are added to `found`."""
    before, training = {p: p.requires_grad for p in model.parameters()}, model.training
    _require_gradient(before, False)
    _require_gradient(parameters.values(), True)
    model.eval()

    def note(name: str, parameter: nn.Parameter) -> None:
        found.add(name)
        parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: note(name, p))
        for name, parameter in parameters.items()
    ]
    try:
        with torch.enable_grad():
            yield handles
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in before.items():
            parameter.requires_grad_(required)
        model.train(training)


def _require_gradient(parameters, required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)


def _tried_with_peft(model: PreTrainedModel, chosen: dict, options: dict) -> dict[str, tuple[str, str]]:
    """How peft adapts each candidate, as "module" or "parameter", and its reason where it does not.

    It is tried on copies of the model that have no memory for their weights: all candidates at once, then, unless peft
    adapts exactly these, one of each kind. A linear layer that peft does not adapt as a module is tried as a parameter:
    in some models with experts peft takes `gate_proj`, `up_proj` and `down_proj`, wherever they are, for the names that
    transformers 4 had for the experts' matrices.
    """
    skeleton = _skeleton(model)
    taken = {name: ("module" if isinstance(item, nn.Module) else "parameter", "") for name, item in chosen.items()}
    if not _refusal(skeleton, taken, options):
        return taken
    tried: dict[tuple, tuple[str, str]] = {}
    for name, candidate in chosen.items():
        parent, _, leaf = name.rpartition(".")
        key = (_kind(parent), leaf, type(candidate))
        if key not in tried:
            ways = ("module", "parameter") if isinstance(candidate, nn.Linear) else (taken[name][0],)
            reasons = {}
            for way in ways:
                reasons[way] = _refusal(skeleton, {name: (way, "")}, options)
                if not reasons[way]:
                    break
            tried[key] = (way, reasons[way] and reasons[ways[0]])
        taken[name] = tried[key]
    return taken


def _refusal(skeleton: nn.Module, taken: dict[str, tuple[str, str]], options: dict) -> str:
    """Why peft does not adapt these candidates, and no others, in these ways; empty if it does."""
    model = copy.deepcopy(skeleton)
    modules = [name for name, (way, _) in taken.items() if way == "module"]
    parameters = [_weight(model, name) for name, (way, _) in taken.items() if way == "parameter"]
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in modules)
    config = LoraConfig(
        **options, target_modules=modules, target_parameters=parameters or None, fan_in_fan_out=transposed
    )
    try:
        inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        return "peft: " + " ".join(str(error).split()).split(". ")[0].rstrip(".")
    if adapted_weights(model) != {_weight(skeleton, name) for name in taken}:
        return "peft does not adapt it under this name"
    return ""


def adapted_weights(model: nn.Module) -> set[str]:
    """Names of the parameters beside which peft has put adapters, as they were without adapters."""
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            found.add(f"{name.replace('.base_layer', '')}.{parameter}")
    return found


def _weight(model: nn.Module, candidate: str) -> str:
    """The name of a candidate's parameter: that of a layer is its weight."""
    parent, _, leaf = candidate.rpartition(".")
    return f"{candidate}.weight" if isinstance(getattr(model.get_submodule(parent), leaf), nn.Module) else candidate


def _modules_alone(chosen: dict) -> dict[str, tuple[str, str]]:
    """Packed weights can be adapted as modules only; trying them with peft would need their memory."""
    return {
        name: ("module", "") if isinstance(item, nn.Module) else ("parameter", "the base is quantized")
        for name, item in chosen.items()
    }


def _skeleton(model: PreTrainedModel) -> nn.Module:
    """A copy of the modules in which all parameters and buffers are on the meta device."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.to("meta")
        for tensor in tensors
    }
    return copy.deepcopy(model, memo)


def _kind(module: str) -> str:
    """The place of a module in its layer, model.layers.3.mlp.experts.0 -> mlp.experts; empty outside of the layers."""
    parts = module.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(part for part in parts[first:] if not part.isdecimal())


def _by_kind(names: Iterable[str], reasons: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """Names of parameters by the module that their layer is in, and by reason."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        place = layer.rpartition(".")[0] if leaf == "weight" else layer
        kinds.setdefault((_kind(place), reasons.get(name, "")), []).append(name)
    return kinds


def _listed(kind: str, names: list[str]) -> str:
    """mlp: gate_proj, up_proj; outside of the layers the whole names."""
    layers = [name.removesuffix(".weight") for name in names]
    return f"{kind}: " + ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in layers)) if kind else ", ".join(layers)


def _share(names: list[str], sizes: dict[str, int], total: int) -> str:
    count = sum(sizes[name] for name in names)
    return f"{count:,} parameters, {count / total:.1%} of the model"
