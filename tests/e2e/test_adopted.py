"""A channel whose first release is an imported adapter: the next turn goes on from its weights, in its shape."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from plaudit.learner.adopt import adopt
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.release.moves import Promote
from plaudit.release.registry import Registry
from plaudit.types import Channel
from transformers import AutoModelForCausalLM

CHANNEL = Channel("instruction", "default")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_turn_goes_on_from_an_imported_adapter(settings_of, learner_of, tmp_path):
    settings = settings_of()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(settings.model.path)
    shape = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2]}
    peft = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", use_rslora=True, **shape))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(str(tmp_path / "adapter"))
    made = adopt(settings, CHANNEL, tmp_path / "adapter", actor="test")
    assert made.row.version == 1
    with Registry(settings.store_url, settings.registry_root) as registry:
        registry.change(CHANNEL, Promote(1), expected_generation=None, actor="test", reason="test")
    learner = learner_of(settings)
    result = look(learner, CHANNEL, Watch())
    assert result.outcome in (TurnOutcome.PROMOTED, TurnOutcome.REJECTED), result.reason
    manifest = learner.registry.manifest(CHANNEL, 2)
    assert manifest.parent == 1
    assert (manifest.adapter.rank, manifest.adapter.layers) == (4, 1)
