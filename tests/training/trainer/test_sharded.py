"""What FSDP2 has spread over two processes is saved as one process saves it, and found again from there."""

import torch

from mypt.training.optim.optimizers import build_muon_adamw, orthogonalize
from tests.processes import Command

RANK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from mypt.training.trainer.sharded import cut_state, load_weights, whole_state, whole_weights
from mypt.training.optim.optimizers import orthogonalize_shards
from tests.training.trainer.test_sharded import matrices, toy, train

store, rank, out = sys.argv[1:]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
mesh = init_device_mesh("cpu", (2,))
found = {}
for name, whole in matrices().items():
    for dim in (1, 2):
        spread = distribute_tensor(whole, mesh, [Shard(dim)])
        done = orthogonalize_shards(spread, 3)
        assert done.placements == spread.placements and done.to_local().shape == spread.to_local().shape
        found[f"{name} {dim}"] = done.full_tensor()

model, optimizer = toy(fully_shard)
train(model, optimizer, 3)
model(torch.arange(4)[None])  # a forward alone leaves some weights whole
weights, state = whole_weights(model, kept=rank == "0"), whole_state(optimizer)
assert rank == "0" or not any(tensor.numel() for tensor in weights.values())
folder = Path(out).parent / f"saved {rank}"
folder.mkdir()
save_file(found | {f"weights {name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
torch.save(state, folder / "optimizer.pt")
train(model, optimizer, 2, first=3)
went_on = whole_weights(model)

torch.distributed.barrier()
saved = Path(out).parent / "model only"
if rank == "0":
    saved.mkdir()
    save_file(weights, saved / "model.safetensors")
torch.distributed.barrier()
again, fresh = toy(fully_shard)
train(again, fresh, 1)  # other weights, and a state to be replaced
load_weights(again, saved)
fresh.load_state_dict(cut_state(torch.load(folder / "optimizer.pt", weights_only=True), fresh))
train(again, fresh, 2, first=3)
assert all(torch.equal(tensor, went_on[name]) for name, tensor in whole_weights(again).items())
torch.distributed.destroy_process_group()
"""


def matrices() -> dict[str, torch.Tensor]:
    """Stacks whose sizes two processes do not share evenly; one has fewer matrices than there are processes."""
    made = torch.Generator().manual_seed(0)
    return {str(shape): torch.randn(shape, generator=made) for shape in ((3, 5, 9), (1, 4, 7), (2, 6, 6))}


class Toy(torch.nn.Module):
    """Tied embedding and head, a tall, a wide and a square matrix with odd sides, a norm."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.up, self.down = torch.nn.Linear(5, 9, bias=False), torch.nn.Linear(9, 5, bias=False)
        self.norm, self.square = torch.nn.LayerNorm(5), torch.nn.Linear(5, 5, bias=False)
        self.head = torch.nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(self.norm(self.square(x) + self.down(torch.relu(self.up(x)))))


def toy(shard=lambda model: model):
    torch.manual_seed(0)
    model = shard(Toy())
    return model, build_muon_adamw(model, weight_decay=0.1, lr=0.01)


def train(model, optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        ids = torch.randint(7, (2, 4), generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_two_processes_compute_and_save_what_one_does(tmp_path):
    ranks = ("0", "1")
    (tmp_path / "rank.py").write_text(RANK)
    arguments = [[tmp_path / "store", rank, tmp_path / rank] for rank in ranks]
    processes = [Command(words, script=tmp_path / "rank.py") for words in arguments]
    assert [process.wait() for process in processes] == [0, 0], [process.output() for process in processes]
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "saved 0" / "model.safetensors")
    for name, whole in matrices().items():
        expected = orthogonalize(whole, 3)
        for dim in (1, 2):
            torch.testing.assert_close(saved[f"{name} {dim}"], expected, atol=1e-6, rtol=0)

    model, optimizer = toy()
    train(model, optimizer, 3)
    parameters = dict(model.named_parameters())  # the shared weight once
    assert {name.removeprefix("weights ") for name in saved if name.startswith("weights ")} == {*parameters}
    for name, parameter in parameters.items():
        torch.testing.assert_close(saved[f"weights {name}"], parameter.detach(), atol=1e-6, rtol=0)
    for rank in ranks:
        state = torch.load(tmp_path / f"saved {rank}" / "optimizer.pt", weights_only=True)
        own = optimizer.state_dict()
        assert state["param_groups"] == own["param_groups"]
        for index, values in own["state"].items():
            assert {*state["state"][index]} == {*values}
            for key, value in values.items():
                torch.testing.assert_close(state["state"][index][key], value, atol=1e-6, rtol=0)
