"""An adapter that PEFT made becomes a release whose logits are PEFT's own; what cannot be served is refused by name."""

import json
import shutil

import pytest
import structlog
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from plaudit.cli import app
from plaudit.client import Plaudit
from plaudit.engine import adapter_files, adapters, foreign
from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import BadArtifact, ProofFailed
from plaudit.learner import adopt as module
from plaudit.learner.adopt import adopt
from plaudit.learner.recover import is_left
from plaudit.plugins import load_plugins
from plaudit.release.artifacts import file_digest
from plaudit.release.registry import Registry
from plaudit.settings import ModelSettings, Settings
from plaudit.testing.models import tiny_model
from plaudit.testing.serving import local_server, serve_settings
from plaudit.types import Channel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

# PEFT asks transformers for names that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
CHANNEL = Channel("instruction", "default")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODEL = ModelSettings(adapter_layers=3, adapter_rank=8)
SHAPES = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "few": {"r": 8, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2]},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    "patterns": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ALL,
        "rank_pattern": {r"layers\.2\.self_attn\.q_proj": 6, "down_proj": 3},
        "alpha_pattern": {"v_proj": 16},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "model", layers=3, hidden=32)


@pytest.fixture(scope="module")
def base(path):
    return Base.load(path)


@pytest.fixture
def made(path, tmp_path):
    """Adapters by PEFT itself, with weights in both matrices."""

    def make(**config):
        torch.manual_seed(0)
        peft = get_peft_model(
            AutoModelForCausalLM.from_pretrained(str(path)), LoraConfig(task_type="CAUSAL_LM", **config)
        )
        for name, parameter in peft.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        peft.save_pretrained(str(folder))
        return folder

    return make


def edited(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_is_written_gives_peft_s_own_logits(path, base, made, tmp_path, shape):
    folder = made(**shape)
    ids = torch.arange(40)[None] * 7 % base.vocab_size
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(path)), str(folder))(ids).logits
        bare = base.model(input_ids=ids).logits
    config, state = foreign.read(folder, base, MODEL)
    assert adapters.names(base) == []
    adapter_files.write(tmp_path / "ours", config, state)
    adapters.load(base, "ours", tmp_path / "ours")
    try:
        with adapters.active(base, "ours"), torch.no_grad():
            ours = base.model(input_ids=ids).logits
    finally:
        adapters.remove(base, "ours")
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float((bare - theirs).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("shape", "changes", "why"),
    [
        ({"use_dora": True}, {}, "says use_dora"),
        ({"modules_to_save": ["lm_head"]}, {}, "says modules_to_save"),
        ({"bias": "lora_only"}, {}, "says bias"),
        ({"target_modules": ["q_proj", "lm_head"]}, {}, "lm_head.*nothing else"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {}, "embed_tokens.*nothing else"),
        ({"r": 16}, {}, "rank 16.*adapter_rank 8"),
        ({}, {"lora_alpha": None}, "not numbers above 0"),
        ({}, {"r": 5}, "has rank 4, its configuration says 5"),
        ({}, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({}, {"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({}, {"layer_replication": [[0, 2], [1, 3]]}, "says layer_replication"),
        ({}, {"brand_new": True}, "says brand_new, which this version does not know"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_what_the_engine_does_not_compute_is_refused_by_name(base, made, shape, changes, why):
    folder = edited(made(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **shape}), **changes)
    with pytest.raises(BadArtifact, match=why):
        foreign.read(folder, base, MODEL)


def test_layers_files_and_weights_that_do_not_fit_are_refused(base, made, tmp_path):
    folder = made(**SHAPES["plain"])
    with pytest.raises(BadArtifact, match=r"begins at layer 0.*set model.adapter_layers to 3"):
        foreign.read(folder, base, ModelSettings(adapter_layers=2))
    weights = folder / "adapter_model.safetensors"
    state = load_file(weights)
    name = next(each for each in state if "q_proj.lora_A" in each)

    def refused(why, **changes):
        save_file({each: tensor for each, tensor in {**state, **changes}.items() if tensor is not None}, weights)
        with pytest.raises(BadArtifact, match=why):
            foreign.read(folder, base, MODEL)

    refused("not a matrix of finite numbers", **{name: state[name] * float("nan")})
    refused("one of lora_A and lora_B is missing", **{name: None})
    refused("does not fit this base", **{name: torch.zeros(4, 7)})
    far = {side: name.replace("lora_A", side) for side in ("lora_A", "lora_B")}
    moved = {each.replace("layers.0", "layers.9"): state[each] for each in far.values()}
    refused(r"layers\.9.*slots for", **moved, **dict.fromkeys(far.values()))
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(BadArtifact, match=r"adapter_model.bin may run code"):
        foreign.read(folder, base, MODEL)
    with pytest.raises(BadArtifact, match=r"has no adapter_config.json"):
        foreign.read(tmp_path, base, MODEL)


def test_an_imported_adapter_is_proved_promoted_by_hand_and_served(path, base, made, tmp_path, monkeypatch):
    folder = made(**SHAPES["patterns"])
    data = tmp_path / "data"
    options = ["--data-dir", str(data), "--set", f"model.path={path}", "--set", "model.adapter_layers=3"]
    wrong = CliRunner().invoke(app, ["release", "import", str(CHANNEL), str(folder), "--sha256", "ab" * 32, *options])
    assert isinstance(wrong.exception, BadArtifact)
    done = CliRunner().invoke(app, ["release", "import", str(CHANNEL), str(folder), "--json", *options])
    structlog.reset_defaults()
    said = json.loads(done.stdout)
    assert (done.exit_code, said["version"], said["state"]) == (0, 1, "gated")
    assert said["proof"]["greatest"] < 1e-3 < said["proof"]["from_base"]

    settings = Settings(data_dir=data, model=MODEL.model_copy(update={"path": str(path)}))
    with Registry(settings.store_url, settings.registry_root) as registry:
        manifest = registry.manifest(CHANNEL, 1)
        assert (manifest.parent, manifest.generation, manifest.as_of, manifest.reward_model) == (0, None, None, None)
        imported = manifest.settings["imported"]
        assert imported["weights_sha256"] == file_digest(folder / "adapter_model.safetensors")
        checks = json.loads(registry.release(CHANNEL, 1).decision_json)["checks"]
        assert checks[0]["name"] == "imported"
        assert "no gate judged it" in checks[0]["note"]
        # It is the operator's: no learner promotes it by itself.
        assert not is_left(type("Learner", (), {"registry": registry}), CHANNEL, may_promote=True)
    assert CliRunner().invoke(app, ["release", "promote", str(CHANNEL), "1", *options]).exit_code == 0
    structlog.reset_defaults()

    engine = TorchEngine(base, settings.engine, settings.model)
    serving = serve_settings(data).model_copy(update={"model": settings.model})
    plugins = load_plugins(("instruction",))
    with local_server(data, engine, plugins, settings=serving) as server, Plaudit(server.target) as client:
        reply = client.generate(CHANNEL.domain, "Name three colours.", max_tokens=4, seed=1)
        assert {each.release_version for each in reply.completions} == {1}
    engine.close()

    # An adapter that PEFT reads otherwise than we do is not taken, whatever the reason.
    weights = folder / "adapter_model.safetensors"
    real = foreign.read
    monkeypatch.setattr(
        module.foreign, "read", lambda *a, **k: (lambda c, s: (c, {n: 1.1 * t for n, t in s.items()}))(*real(*a, **k))
    )
    with pytest.raises(ProofFailed, match="difference from the trainer's log-probs"):
        adopt(settings, CHANNEL, folder, actor="test", sha256=file_digest(weights))
    with Registry(settings.store_url, settings.registry_root) as registry:
        assert len(registry.releases(CHANNEL)) == 2, "what fails leaves nothing"
