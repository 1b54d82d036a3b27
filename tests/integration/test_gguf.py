"""A base out of one GGUF file: weights, tokenizer and chat template."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from plaudit.engine import source
from plaudit.engine.base import Base
from plaudit.engine.outline import outline
from plaudit.engine.prompting import load_chat
from plaudit.errors import Misconfigured
from plaudit.testing.models import tiny_model
from plaudit.types import Message
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def written(folder, file):
    """A Llama of `folder` as a GGUF file of half-precision weights."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    vocabulary = tokenizer["model"]["vocab"] | {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    special = {each["id"] for each in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_bos_token_id(config["eos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, weight in load_file(folder / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, index, part = stem.split(".", 3)
            place = f"blk.{index}.{PARTS[part]}"
        else:
            place = WHOLE[stem]
        values = weight.numpy()
        writer.add_tensor(f"{place}.weight", values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("gguf")
    written(tiny_model(made / "tiny"), made / "tiny.gguf")
    return made / "tiny.gguf"


def test_a_gguf_file_is_a_base(file):
    base = Base.load(file)
    ids = base.encode([Message("user", "how to make tea")]).tokens
    other = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        ours = base.logits(base.upper(base.trunk(torch.tensor([ids]), 1), 1))
        torch.testing.assert_close(ours, other(torch.tensor([ids])).logits, atol=1e-4, rtol=1e-4)
    chat, digest, context = load_chat(file)
    assert (chat.encode([Message("user", "how to make tea")]).tokens, digest) == (ids, base.digest)
    assert context == base.context_length == outline(source.find(file), 0)[1]


def test_the_digest_of_a_gguf_file_is_of_its_bytes(file, tmp_path):
    folder = tiny_model(tmp_path / "tiny")
    (tmp_path / "again.gguf").write_bytes(file.read_bytes())
    digests = [load_chat(each)[1] for each in (file, tmp_path / "again.gguf", folder)]
    assert digests[0] == digests[1] != digests[2]


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(Misconfigured, match="is a file; name the folder"):
        source.find(tmp_path / "model.bin")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    with pytest.raises(Misconfigured, match="cannot be read"):
        Base.load(tmp_path / "torn.gguf")


def test_a_gguf_file_of_a_hub_id_is_taken_from_the_cache(file, monkeypatch):
    asked = []
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda *args: asked.append(args) or str(file))
    assert source.find("owner/name/tiny.gguf") == source.Source(file.parent, "tiny.gguf")
    assert asked == [("owner/name", "tiny.gguf")]
