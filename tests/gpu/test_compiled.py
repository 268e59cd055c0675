"""Layers that Inductor compiled train as they do uncompiled."""

import pytest

from mypt.errors import RecipeError
from tests.gpu.conftest import losses

pytestmark = pytest.mark.gpu

BOUNDS = {"float32": 2e-3, "bf16": 0.03}  # nats per token, of each of 12 steps


@pytest.mark.parametrize("precision", BOUNDS)
def test_compiled_layers_train_as_uncompiled_ones(gpu_recipe, trained, precision):
    content = gpu_recipe(hardware={"attention": "sdpa"})
    content["training"] |= {"max_steps": 12, "bf16": precision == "bf16"}
    eager = losses(trained(content, "eager"))
    content["training"]["torch_compile"] = True
    try:
        trainer = trained(content, "compiled")
    except RecipeError as error:
        if "it needs the" not in str(error):
            raise
        pytest.skip(f"no compiler here: {error}")
    assert losses(trainer) == pytest.approx(eager, abs=BOUNDS[precision])
