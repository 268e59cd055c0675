"""Muon's FLOPs are those of the products that are really done, and the default follows from their share of a step."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config, preset_dimensions
from mypt.planning.optimizer import MUON_BOUND, choose_optimizer, muon_flops, muon_share, newton_schulz_flops
from mypt.planning.plan import PlannedRun, plan
from mypt.planning.scaling import flops_per_token
from mypt.training.optim.optimizers import build_muon_adamw, orthogonalize

SHAKESPEARE = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 344}


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_products_of_one_matrix_by_hand():
    """2 x 3: x x^T is 2 x 2 sums of 3, its square 2 x 2 of 2, the last 2 x 3 of 2: 12 + 8 + 12 multiply-adds."""
    assert newton_schulz_flops(2, 3, steps=1) == 2 * (12 + 8 + 12)
    assert newton_schulz_flops(3, 2, steps=4) == 4 * newton_schulz_flops(2, 3, steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_the_products_that_are_done(shape, dtype):
    work = counted(lambda: orthogonalize(torch.ones(3, *shape), 3, dtype))
    assert work == 3 * newton_schulz_flops(*shape, 3)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_whole_step_of_the_optimizer(frozen):
    """AdamW's part multiplies no matrices."""
    config = preset_config("modern-nano", vocab_size=64, num_hidden_layers=3, hidden_size=48, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=12, intermediate_size=72)  # fmt: skip
    model = MyPTForCausalLM(config)
    model.model.layers[:frozen].requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer = build_muon_adamw(model, 0.1, lr=1e-3, ns_steps=2)
    assert counted(optimizer.step) == muon_flops(config.to_dict(), 2, freeze_layers=frozen)


def test_a_share_by_hand():
    """Square matrices of width d alone, k iterations: 6 k d against 6 T, if attention and the head are left out."""
    dimensions = preset_dimensions("modern-nano", hidden_size=64, num_attention_heads=1, intermediate_size=64)
    tokens, k = 1_000, 3
    squares = 4 * 7 * 64**2  # numbers in the matrices: 4 layers of 7
    muon = 6 * k * 64 * squares
    assert muon_flops(dimensions, k) == muon
    everything = muon + tokens * flops_per_token(dimensions, 128)
    assert muon_share(dimensions, 128, tokens) == pytest.approx(muon / everything)
    assert muon_share(dimensions, 128, tokens, fsdp=2) == pytest.approx(muon / 2 / (everything - muon / 2))


# model, changes, tokens per sequence and per step of one process: what is chosen
CHOICES = {
    "the quickstart": ("modern-nano", {"vocab_size": 4096, "num_hidden_layers": 2}, 128, 8 * 128, "muon"),
    "recipes/shakespeare_char.yaml": ("modern-nano", SHAKESPEARE | {"vocab_size": 128}, 64, 12 * 64, "muon"),
    "recipes/pretrain.yaml": ("modern-nano", {}, 256, 16 * 256, "muon"),
    "recipes/pretrain_sharded.yaml": ("modern-tiny", {}, 1024, 8 * 1024, "muon"),
    "16M at 1,024": ("modern-tiny", {}, 256, 1_024, "muon"),
    "16M at 128": ("modern-tiny", {}, 128, 128, "adamw"),
    "1B at 8,192": ("modern-xlarge", {}, 1024, 8_192, "muon"),
    "1B at 1,024": ("modern-xlarge", {}, 1024, 1_024, "adamw"),
    "135M at 256": ("modern-nano", {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9,
                                    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49_152},
                    256, 256, "adamw"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_the_choice(case):
    preset, changes, block_size, tokens, expected = CHOICES[case]
    dimensions = preset_dimensions(preset, **changes)
    name, reason = choose_optimizer(dimensions, block_size, tokens)
    share = muon_share(dimensions, block_size, tokens)
    assert name == expected == ("muon" if share <= MUON_BOUND else "adamw")
    percent = {"16M at 1,024": "34%", "recipes/pretrain_sharded.yaml": "5%", "135M at 256": "80%"}.get(case, "%")
    assert reason.endswith(f"{percent} of a step of {tokens:,} tokens; bound {MUON_BOUND:.0%}")
    assert choose_optimizer(dimensions, block_size, 100 * tokens)[0] == "muon", (
        "with enough tokens it is always worth it"
    )


@pytest.mark.parametrize(("processes", "fsdp", "repeats"), [(1, 1, 1), (4, 1, 4), (4, 4, 1)])
def test_a_plan_counts_muon_as_often_as_processes_repeat_it(processes, fsdp, repeats):
    dimensions, steps = preset_dimensions("modern-nano"), 10
    sizes = {"batch_size": 4, "block_size": 128, "steps": steps, "processes": processes}
    with_muon, without = (
        plan(PlannedRun(dimensions=dimensions, settings={"optimizer": name, "fsdp": fsdp}, **sizes)).compute
        for name in ("muon", "adamw")
    )
    muon = repeats * muon_flops(dimensions)
    assert with_muon.muon_flops_per_step == muon
    assert with_muon.flops - without.flops == steps * muon
    assert with_muon.muon_share == pytest.approx(muon / (muon + without.flops / steps))
