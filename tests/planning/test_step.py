"""What a step refuses, and the states that are assumed of optimizers."""

import pytest
import torch

from mypt.errors import MyPTError
from mypt.planning.step import STATES, Step


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "sgd"])
def test_states_of_torchs_optimizers(name):
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones(64, 64)
    optimizer = {"adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}[name]([weight])
    optimizer.step()
    kept = [tensor for tensor in optimizer.state[weight].values() if torch.is_tensor(tensor) and tensor.numel() > 1]
    assert len(kept) == STATES[name]


@pytest.mark.parametrize(
    "wrong",
    [{"optimizer": "adams"}, {"weight_dtype": "int8"}, {"micro_batch_size": 0}, {"attention": "flash"}, {"fsdp": 0}],
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(MyPTError, match=next(iter(wrong))):
        Step(**{"micro_batch_size": 1, "block_size": 8} | wrong)
