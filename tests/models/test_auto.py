"""Auto classes know MyPT in any order of imports, and a checkpoint carries its code to machines without mypt."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from mypt import MyPTConfig, MyPTForCausalLM, MyPTForSequenceClassification

TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BUILD = f"""
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
config = AutoConfig.for_model('mypt', **{TINY!r})
print(type(config).__name__, type(AutoModel.from_config(config)).__name__,
      type(AutoModelForCausalLM.from_config(config)).__name__,
      type(AutoModelForSequenceClassification.from_config(config)).__name__)
"""
# The import that comes first decides which of transformers' modules are half-way through when ours are needed.
ORDERS = [
    "import mypt\nfrom transformers import AutoModel",
    "from transformers import AutoModel, AutoModelForCausalLM\nimport mypt",
    "import mypt\nfrom transformers import LlamaForCausalLM, AutoModel",
    "from mypt import MyPTForCausalLM\nfrom transformers import AutoModel",
]
MORE_ORDERS = [
    "import transformers\nimport mypt\nfrom transformers import AutoModel",
    "import mypt\nfrom transformers import Trainer, AutoModel",
    "from mypt import preset_config\npreset_config('tiny')\nfrom transformers import AutoModel",
]


def python(code: str, **options) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("order", [*ORDERS, *(pytest.param(order, marks=pytest.mark.slow) for order in MORE_ORDERS)])
def test_auto_classes_know_mypt_in_any_order_of_imports(order):
    names = "MyPTConfig MyPTModel MyPTForCausalLM MyPTForSequenceClassification"
    assert python(order + BUILD).split() == names.split()


def test_the_configuration_alone_is_registered_without_the_model():
    code = "import mypt, sys\nfrom transformers import AutoConfig\nprint(type(AutoConfig.for_model('mypt')).__name__)"
    assert python(code + "\nprint('mypt.models.modeling_mypt' in sys.modules)").split() == ["MyPTConfig", "False"]


WITHOUT_MYPT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'mypt':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
import torch, transformers
"""


def test_a_checkpoint_loads_without_mypt(tmp_path):
    torch.manual_seed(0)
    model = MyPTForCausalLM(MyPTConfig(**TINY, unpadded_vocab_size=60)).eval()
    model.save_pretrained(tmp_path / "model")
    MyPTForSequenceClassification(MyPTConfig(**TINY, num_labels=3)).save_pretrained(tmp_path / "classifier")
    tokens = torch.arange(20)[None]
    torch.save(model(tokens).logits, tmp_path / "logits.pt")
    code = f"""{WITHOUT_MYPT}
model = transformers.AutoModelForCausalLM.from_pretrained('model', trust_remote_code=True).eval()
assert torch.equal(model(torch.arange(20)[None]).logits, torch.load('logits.pt'))
assert model.generate(torch.arange(5)[None], do_sample=True, temperature=9., max_new_tokens=99).max() < 60
model.save_pretrained('again')
classifier = transformers.AutoModelForSequenceClassification.from_pretrained('classifier', trust_remote_code=True)
assert classifier(torch.arange(20)[None]).logits.shape == (1, 3)
print(type(model).__module__, any(name.partition('.')[0] == 'mypt' for name in sys.modules))
"""
    environment = {"PATH": "", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    module, mypt_imported = python(code, cwd=tmp_path, env=environment).split()
    assert module.startswith("transformers_modules")
    assert mypt_imported == "False"
    # Passing through a machine without mypt loses neither code nor weights.
    again = MyPTForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    for name in ("configuration_mypt.py", "modeling_mypt.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_with_mypt_installed_the_code_beside_the_weights_is_not_run(tmp_path):
    MyPTForCausalLM(MyPTConfig(**TINY)).save_pretrained(tmp_path)
    (tmp_path / "modeling_mypt.py").write_text("raise SystemExit('executed')")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is MyPTForCausalLM
