"""Trains the tiny model that the package carries: `python scripts/tiny.py`, some minutes on two cores.

Writes service/plaudit/testing/tiny/: a Llama of 0.85 million parameters that knows the toy language
(plaudit.testing.toy_language), in half precision. Same seed and same torch: same model, up to rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from plaudit.engine.threads import settle_kernels
from plaudit.testing.models import CHAT_TEMPLATE, WEIGHTS, llama, train_tokenizer
from plaudit.testing.toy_language import corpus
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

FOLDER = Path(__file__).resolve().parent.parent / "service" / "plaudit" / "testing" / "tiny"
SEED = 0
STEPS = 500
BATCH = 64
LR = 3e-3


def main() -> None:
    """Train and write."""
    settle_kernels()
    dialogues = corpus(SEED, STEPS * BATCH)
    tokenizer = train_tokenizer([f"{user} {answer}" for user, answer in dialogues[:5000]] + [CHAT_TEMPLATE], 512)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(llama(tokenizer, hidden=128, intermediate=384, layers=4))
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for user, answer in dialogues
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    for step in range(STEPS):
        batch = tokenizer(
            rows[step * BATCH : (step + 1) * BATCH], return_tensors="pt", padding=True, add_special_tokens=False
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    folder = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    half = {name: values.half() for name, values in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
