"""A base is right or refused, has one digest, and carries what was trained on it: seeded models of many families."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from plaudit.engine import adapter_files, adapters, attention, limits
from plaudit.engine.base import Base
from plaudit.engine.outline import outline
from plaudit.engine.protocol import Job, ReleaseKey
from plaudit.engine.source import Source
from plaudit.engine.targets import LLAMA_LINEARS, targets
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Misconfigured
from plaudit.reward import rows
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.models import tiny_family, tiny_model
from plaudit.types import Message, Sampling
from safetensors.torch import load_file, save_file

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SECOND_HALF = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **more}}


LONG = rope(
    "longrope",
    original_max_position_embeddings=128,
    short_factor=[1.0] * 8,
    long_factor=[2.0] * 8,
    attention_factor=1.0,
)
YARN = rope("yarn", original_max_position_embeddings=128)
RIGHT = {
    "llama": {},
    "llama yarn": YARN,
    "llama dynamic": rope("dynamic"),
    "mistral": {"sliding_window": None},
    "qwen2": {"sliding_window": 64, "use_sliding_window": False},
    "qwen3_moe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4},
}
WINDOWS = {
    "mistral": {"sliding_window": 64},
    "qwen2": SECOND_HALF,
    "qwen3_moe": {**EXPERTS, "use_sliding_window": True, "sliding_window": 64},
    "cohere2": {"sliding_window": 64},
    "gemma2": {"head_dim": 16, "sliding_window": 64},
    "gemma3_text": {"head_dim": 16, "sliding_window": 64},
    "gpt_oss": {"head_dim": 16, "sliding_window": 64, "num_local_experts": 4, **YARN},
}
OTHERS = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi": {},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.3},
    "cohere": {},
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    made = tmp_path_factory.mktemp("families")

    def folder(name, **changes):
        return tiny_family(made / f"{name}-{abs(hash(str(changes)))}", name.split()[0], **changes)

    return folder


@pytest.mark.parametrize("name", RIGHT)
def test_a_family_that_is_computed_rightly_is_served_at_its_whole_context(make, name):
    assert Base.load(make(name, **RIGHT[name])).context_length == 512


@pytest.mark.parametrize("name", [*WINDOWS, *OTHERS])
def test_a_base_of_any_make_decodes_beyond_its_windows_as_its_own_code_does(make, name):
    """Greedy tokens of `generate`, on a prompt of more than two windows; and their log-probs by the learner's pass."""
    base = Base.load(make(name, **{**WINDOWS, **OTHERS}[name]))
    assert base.context_length == 512
    prompt = base.encode([Message("user", "how to make tea " * 30)])
    assert len(prompt.tokens) > 140
    with torch.no_grad():
        own = base.model.config._attn_implementation
        base.model.set_attn_implementation("eager")
        ids = torch.tensor([prompt.tokens])
        wanted = base.model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        base.model.set_attn_implementation(own)
    engine = TorchEngine(base, EngineSettings(widths=(4,)), ModelSettings())
    key, sampling = ReleaseKey("x/y", 0, "0"), Sampling(temperature=0.0, max_tokens=12)
    engine.stage(key, None)
    made = engine.submit([Job(prompt=prompt, release=key, sampling=sampling, seed=0)])[0].result(60)
    engine.close()
    whole = wanted[0, len(prompt.tokens) :].tolist()
    assert list(made.tokens) == whole[: len(made.tokens)]
    assert len(made.tokens) == len(whole) or whole[len(made.tokens)] in base.eos_ids
    sample = torch.tensor([[*prompt.tokens, *made.tokens]])
    with torch.no_grad():
        logprobs = torch.log_softmax(base.logits(base.upper(base.trunk(sample, 1), 1)), -1)[0]
    for at, (token, logprob) in enumerate(zip(made.tokens, made.logprobs_raw, strict=True)):
        assert logprob == pytest.approx(logprobs[len(prompt.tokens) - 1 + at, token].item(), abs=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_completions_of_one_prompt_are_seen_through_the_window_from_where_they_stand(make, name):
    """Behind one prompt in one sequence, as the learner lays them, each gives what it gives alone."""
    base = Base.load(make(name, **WINDOWS[name]))
    draw = torch.Generator().manual_seed(0)
    prompt, *completions = (torch.randint(base.vocab_size, (n,), generator=draw).tolist() for n in (70, 40, 50))
    row = rows.Row(tuple(prompt), tuple(map(tuple, completions)))
    tokens = [*prompt, *(token for each in completions for token in (*each, 0))]
    positions, bias = rows.layout([row], base.device, base.dtype)
    with torch.no_grad():
        hidden = base.embed(torch.tensor([tokens]), positions)
        together = base.run_layers(hidden, 0, base.num_layers, positions=positions, mask=bias)[0]
        at = len(prompt)
        for each in completions:
            alone = base.trunk(torch.tensor([[*prompt, *each]]), base.num_layers)[0, len(prompt) :]
            torch.testing.assert_close(together[at : at + len(each)], alone, atol=1e-4, rtol=1e-4)
            at += len(each) + 1


@pytest.mark.parametrize("name", ["mistral", "qwen3_moe", "gemma3_text"])
def test_a_window_that_its_layers_would_not_tell_is_found_by_computing(make, name, monkeypatch):
    told = attention.grouped_attention

    def deaf(*args, sliding_window=None, **options):
        return told(*args, **options)

    monkeypatch.setattr(attention, "grouped_attention", deaf)
    with pytest.raises(Misconfigured, match=r"from token 64 on .* set engine.context_length to 64 or less"):
        Base.load(make(name, **WINDOWS[name]))


def test_the_check_finds_what_changes_for_long_texts_only(make, monkeypatch):
    folder = make("llama longrope", **LONG)
    with pytest.raises(Misconfigured, match=r"set engine.context_length to 128 or less") as refused:
        Base.load(folder)
    assert refused.value.metadata["setting"] == "engine.context_length"
    assert Base.load(folder, context_length=128).context_length == 128
    monkeypatch.setattr(limits, "_limits", lambda config: [])
    with pytest.raises(Misconfigured, match="changes with length"):
        Base.load(folder)


def test_a_bf16_base_is_checked_as_sharply(make, monkeypatch):
    monkeypatch.setattr(limits, "_limits", lambda config: [])
    with pytest.raises(Misconfigured, match="changes with length"):
        Base.load(make("llama longrope", **LONG), dtype="bfloat16")
    base = Base.load(make("llama"), dtype="bfloat16")
    assert base.dtype == torch.bfloat16
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}


def test_more_context_than_the_model_has_positions_is_refused(make):
    with pytest.raises(Misconfigured, match="knows 512 positions; set it to 512 or less"):
        Base.load(make("llama"), context_length=4096)


def test_an_engine_takes_no_more_context_than_was_checked(make):
    base = Base.load(make("llama"), context_length=256)
    with pytest.raises(Misconfigured, match="checked up to 256"):
        TorchEngine(base, EngineSettings(context_length=512), ModelSettings())


REFUSED = ("bloom", "falcon", "mpt")


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_served_is_refused_in_one_way(make, name):
    with pytest.raises(Misconfigured, match="use a base of the Llama family") as refused:
        Base.load(make(name))
    assert "engine.context_length" not in refused.value.message


def test_chunked_attention_is_served_up_to_a_chunk(make):
    changes = {"num_local_experts": 2, "attention_chunk_size": 64, "intermediate_size_mlp": 64, "head_dim": 16}
    with pytest.raises(Misconfigured, match=r"set engine.context_length to 64 or less"):
        Base.load(make("llama4_text", **changes))


LARGE = {"vocab_size": 128256, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
WIDE = {"hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072, **LARGE}
SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
STRETCHED = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
PHI = {"hidden_size": 3072, "original_max_position_embeddings": 4096, "rope_scaling": STRETCHED, "pad_token_id": 0}
REAL = {
    "llama": ({"rope_scaling": {"rope_type": "llama3", **SCALED}}, None),
    "mistral": ({"sliding_window": 4096}, None),
    "phi3": (PHI, "engine.context_length to 4096 or less"),
    "granite": ({"logits_scaling": 8.0, "embedding_multiplier": 12.0}, None),
    "gemma3_text": ({"head_dim": 256}, None),
    "bloom": ({}, "Llama family"),
}


@pytest.mark.parametrize("family", REAL)
def test_a_large_base_is_judged_without_its_weights(make, tmp_path, family):
    changes, refusal = REAL[family]
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(make("llama") / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **WIDE, **changes}))
    if refusal is None:
        base, context = outline(Source(tmp_path), 8192)
        assert (context, targets(base, 10)) == (8192, LLAMA_LINEARS)
        assert sum(p.numel() for p in base.model.parameters()) < 2e7
    else:
        with pytest.raises(Misconfigured, match=refusal):
            outline(Source(tmp_path), 8192)


def test_what_a_family_trains_is_what_its_bank_holds(make):
    """An adapter that PEFT trained loads into the bank and gives the trainer's log-probs, experts left out."""
    experts = dict.fromkeys(("qwen3_moe", "qwen2_moe", "mixtral"), LLAMA_LINEARS[:4])
    fused = {"phi3": ("o_proj", "down_proj"), "gpt2": ("c_attn", "c_fc"), "gemma3_text": LLAMA_LINEARS}
    neox = {"gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")}
    for name, wanted in {**experts, **fused, **neox}.items():
        base = Base.load(make(name, **{**RIGHT, **WINDOWS, **OTHERS}.get(name, {})))
        assert targets(base, 2) == wanted
        adapters.inject(base, "made", layers=2, rank=4, alpha=8, seed=1)
        for parameter in adapters.parameters(base, "made"):
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
        prompt = base.encode([Message("user", "how to make tea")])
        with adapters.active(base, "made"), torch.no_grad():
            hidden = base.upper(base.trunk(torch.tensor([prompt.tokens]), 0), 0)
            trained = torch.log_softmax(base.logits(hidden), -1)[0, -1]
        folder = make("llama").parent / f"adapter-{name}"
        adapters.save(base, "made", folder)
        adapters.remove(base, "made")
        engine = TorchEngine(base, EngineSettings(widths=(4,)), ModelSettings(adapter_layers=2, adapter_rank=4))
        key = ReleaseKey("x/y", 1, "1")
        engine.stage(key, folder)
        sampling = Sampling(temperature=1.0, max_tokens=1)
        made = engine.submit([Job(prompt=prompt, release=key, sampling=sampling, seed=0)])[0].result(60)
        engine.close()
        assert made.logprobs_raw[0] == pytest.approx(trained[made.tokens[0]].item(), abs=1e-4)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern")
def test_a_trainer_that_would_adapt_other_weights_than_the_bank_is_refused(make, monkeypatch):
    base = Base.load(make("qwen3_moe", **EXPERTS))
    monkeypatch.setattr(adapters, "targets", lambda base, span: LLAMA_LINEARS)
    with pytest.raises(Misconfigured, match="this engine cannot serve"):
        adapters.inject(base, "made", layers=2, rank=4, alpha=8, seed=1)
    assert base.peft is None


def test_the_digest_is_the_same_in_every_number_format_and_however_the_weights_are_cut(make, tmp_path):
    folder = make("llama")
    one = Base.load(folder, dtype="float32").digest
    assert Base.load(folder, dtype="bfloat16").digest == one
    cut = shutil.copytree(folder, tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    (cut / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(where.values()):
        save_file({n: weights[n] for n in names if where[n] == part}, cut / part, metadata={"format": "pt"})
    (cut / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert Base.load(cut).digest == one


def test_the_digest_tells_models_apart(make, tmp_path):
    folder = make("llama")
    seen = {Base.load(folder).digest, Base.load(tiny_model(tmp_path / "tiny")).digest}
    for change in ("weights", "config", "template"):
        other = shutil.copytree(folder, tmp_path / change)
        if change == "weights":
            weights = load_file(other / "model.safetensors")
            weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
            save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        elif change == "config":
            config = json.loads((other / "config.json").read_text())
            (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
        else:
            template = other / "chat_template.jinja"
            template.write_text(template.read_text().replace("You help.", "You do."))
        seen.add(Base.load(other).digest)
    assert len(seen) == 5


@pytest.mark.parametrize(
    "path", ["/nowhere/model", "./models/tiny", "models/tiny/none", "modells/tiny", "tinny", "a b"]
)
def test_a_mistyped_path_is_an_error_at_once(path, monkeypatch):
    # Nobody answers at this hub; without the variable the question leaves the machine.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(Misconfigured, match="plaudit model prepare"):
        Base.load(path)
    assert time.monotonic() - began < 40


def test_weights_that_are_no_safetensors_are_refused(make, tmp_path):
    broken = shutil.copytree(make("llama"), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Misconfigured, match="safetensors"):
        Base.load(broken)
    (broken / "model.safetensors").unlink()
    torch.save({}, broken / "pytorch_model.bin")
    with pytest.raises(Misconfigured, match="safetensors"):
        Base.load(broken)


def test_an_adapter_is_read_back_as_it_was_written(make, tmp_path):
    adapter_files.write(tmp_path / "a", {"r": 2, "target_modules": {"q_proj"}}, {"x": torch.ones(2)})
    config, state = adapter_files.read(tmp_path / "a")
    assert (config, state["x"].tolist()) == ({"r": 2, "target_modules": ["q_proj"]}, [1.0, 1.0])
