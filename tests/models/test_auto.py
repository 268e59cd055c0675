"""Auto classes know MyPT in any order of imports, and a checkpoint carries its code to machines without mypt."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mypt import MyPTConfig, MyPTForCausalLM, MyPTForSequenceClassification
from tests.processes import bare_python

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
    result = bare_python(code, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("order", [*ORDERS, *(pytest.param(order, marks=pytest.mark.slow) for order in MORE_ORDERS)])
def test_auto_classes_know_mypt_in_any_order_of_imports(order):
    names = "MyPTConfig MyPTModel MyPTForCausalLM MyPTForSequenceClassification"
    assert python(order + BUILD).split() == names.split()


def test_the_configuration_alone_is_registered_without_the_model():
    code = "import mypt, sys\nfrom transformers import AutoConfig\nprint(type(AutoConfig.for_model('mypt')).__name__)"
    assert python(code + "\nprint('mypt.models.modeling_mypt' in sys.modules)").split() == ["MyPTConfig", "False"]


def test_label_smoothing_of_a_stock_trainer_is_qwen3s(tmp_path):
    from transformers import Qwen3ForCausalLM, Trainer, TrainingArguments

    from mypt.conversion.weights import from_mypt

    torch.manual_seed(0)
    ours = MyPTForCausalLM(MyPTConfig(**TINY))
    theirs = from_mypt(ours, "qwen3")
    assert type(theirs) is Qwen3ForCausalLM
    arguments = TrainingArguments(output_dir=tmp_path, label_smoothing_factor=0.2, use_cpu=True)
    ids = torch.randint(64, (2, 12))
    losses = [Trainer(m, arguments).compute_loss(m, {"input_ids": ids, "labels": ids}) for m in (ours, theirs)]
    assert losses[0] == losses[1]
    log_probs = ours(ids).logits[:, :-1].log_softmax(-1)
    expected = -0.8 * log_probs.gather(-1, ids[:, 1:, None]).mean() - 0.2 * log_probs.mean()
    assert losses[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_tables_of_class_names_know_every_class():
    from transformers.models.auto import modeling_auto

    assert modeling_auto.MODEL_MAPPING_NAMES["mypt"] == "MyPTModel"
    for name in ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"):
        table = "CAUSAL_LM" if name == "CausalLM" else re.sub("(?<!^)(?=[A-Z])", "_", name).upper()
        assert getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")["mypt"] == f"MyPTFor{name}"


def test_peft_adapts_the_layers_that_it_adapts_in_llama():
    peft = pytest.importorskip("peft")
    for method in ("LoraConfig", "IA3Config", "LNTuningConfig", "VeraConfig", "OFTConfig", "LoHaConfig"):
        config, trained = getattr(peft, method), []
        for model in (MyPTForCausalLM(MyPTConfig(**TINY)), LlamaForCausalLM(LlamaConfig(**TINY))):
            model = peft.get_peft_model(model, config(task_type="CAUSAL_LM"))
            trained.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        assert trained[0] == trained[1] != set(), method


@pytest.mark.slow
def test_peft_may_be_imported_first():
    python(f"""
import peft, mypt
peft.get_peft_model(mypt.MyPTForCausalLM(mypt.MyPTConfig(**{TINY!r})), peft.LoraConfig())
""")


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
assert 'MyPTForCausalLM' in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
decoder = transformers.AutoModel.from_pretrained('model', trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(model.lm_head(decoder(torch.arange(20)[None]).last_hidden_state), torch.load('logits.pt'))
for kind in ('SequenceClassification', 'TokenClassification', 'QuestionAnswering'):
    auto = getattr(transformers, f'AutoModelFor{{kind}}')
    assert type(auto.from_pretrained('model', trust_remote_code=True)).__name__ == f'MyPTFor{{kind}}'
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
