"""Memory of generation against the cache that a model really keeps."""

import torch

from mypt.models.modeling_mypt import MyPTForCausalLM
from mypt.models.presets import preset_config
from mypt.planning.memory import generation_memory


def test_the_cache_of_keys_and_values_is_exact():
    config = preset_config("modern-tiny", vocab_size=512, num_hidden_layers=2)
    model = MyPTForCausalLM(config).eval()
    with torch.no_grad():
        cache = model(torch.randint(512, (3, 40)), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert generation_memory(config.to_dict(), context=40, batch_size=3)["kv_cache"] == held
