"""`plaudit model prepare`: the tiny model is there at once; what takes long leaves nothing behind if it is ended."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest
import structlog
import torch
from plaudit import cli
from plaudit.engine.base import Base
from plaudit.testing.models import SMOLLM2_PACKAGE, pretrained_tiny
from plaudit.testing.toy_language import corpus


def test_the_tiny_model_comes_with_the_package_and_knows_the_toy_language(tmp_path):
    base = Base.load(pretrained_tiny(tmp_path / "tiny"), device="cpu", dtype="float32")
    rows = [
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for user, answer in corpus(1, 32)
    ]
    batch = base.tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.inference_mode():
        loss = base.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    # Nats per token; a model that knows nothing has log 512 = 6.2.
    assert loss.item() < 1.5


def test_a_model_that_the_demo_has_made_is_copied(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "cache" / "smollm2"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    (kept / "READY").write_text("")
    monkeypatch.setenv("PLAUDIT_CACHE", str(kept.parent))
    monkeypatch.setattr(sys, "argv", ["plaudit", "model", "prepare", "smollm2", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "READY"}
    structlog.reset_defaults()


def test_a_signal_leaves_no_folder_behind(tmp_path):
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        pytest.skip(f"needs the package {SMOLLM2_PACKAGE}")
    out = tmp_path / "models" / "smollm2"
    command = [sys.executable, "-m", "plaudit", "model", "prepare", "smollm2", "--out", str(out)]
    environment = {**os.environ, "PLAUDIT_CACHE": str(tmp_path / "empty")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 300
        while not (out.parent.exists() and list(out.parent.iterdir())) and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.05)
        assert [path.name.startswith(".smollm2-") for path in out.parent.iterdir()] == [True]
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert list(out.parent.iterdir()) == []
