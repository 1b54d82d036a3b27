"""The doctor: what is wrong is found, named, and comes with a remedy."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import pytest
from plaudit import cli
from plaudit.doctor import diagnose, render
from plaudit.errors import Misconfigured
from plaudit.settings import load_settings
from plaudit.testing.models import tiny_family, tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def settings(tmp_path, model):
    def make(*overrides: str):
        always = [f"data_dir={tmp_path / 'data'}", f"model.path={model}", "serve.port=0"]
        always += [f"{process}.metrics_port=0" for process in ("serve", "join", "learn")]
        return load_settings(overrides=[*always, *overrides], environ={})

    return make


def by_check(settings, **options):
    return {finding.check: finding for finding in diagnose(settings, **options)}


def test_bfloat16_is_named_and_refused_if_the_processor_does_not_multiply_it(settings, monkeypatch):
    from plaudit.engine import packed

    assert "number format" not in by_check(settings())
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: False)
    found = by_check(settings("model.learner_dtype=auto"))["number format"]
    assert (found.status, found.message.endswith("are float32")) == ("good", True)
    found = by_check(settings("model.learner_dtype=bfloat16"))["number format"]
    assert found.status == "bad"
    assert "set model.learner_dtype to auto or float32" in found.message


def test_servers_are_asked_for_what_serves_and_for_a_learner_in_slices(settings):
    remote = ["engine.kind=vllm", 'engine.vllm.servers=["http://127.0.0.1:9"]', "engine.vllm.check_base=false"]
    assert "vllm" not in by_check(settings(*remote), role="learn")
    found = by_check(settings(*remote, "model.shard=true"), role="learn")["vllm"]
    assert (found.status, "127.0.0.1:9" in found.message) == ("bad", True)


def test_a_sound_set_up_has_no_complaint(settings):
    findings = by_check(settings())
    assert {name for name, finding in findings.items() if finding.status == "bad"} == set()
    assert "llama" in findings["model"].message
    assert render(list(findings.values())).endswith("all good")


@pytest.mark.parametrize(
    ("override", "check", "word"),
    [
        ("model.path=", "model", "empty"),
        ("model.path=/nowhere/model", "model", "does not exist"),
        ("model.threads=4096", "threads", "4096"),
        ('plugins.allow=["chess"]', "plugins", "chess"),
        ("plugins.allow=[]", "plugins", "no domain"),
        ('channels."echo-choice/acme".decision.costs=[["maybe", "yes", 2]]', "decision", "'maybe'"),
        ("log.kind=kafka", "event log", "bootstrap"),
        ("store.url=nonsense", "store", "SQLAlchemy"),
        ("data_dir=/proc/plaudit", "data directory", "cannot be written"),
    ],
)
def test_what_is_broken_is_named_with_a_remedy(settings, override, check, word):
    finding = by_check(settings(override))[check]
    assert finding.status == "bad"
    assert word in finding.message
    assert finding.remedy


def test_a_broker_that_does_not_answer_is_named(settings):
    finding = by_check(settings("log.kind=kafka", "log.kafka.bootstrap=127.0.0.1:1"))["event log"]
    assert finding.status == "bad"
    assert "127.0.0.1:1" in finding.message


def test_a_damaged_log_is_found(settings, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "log.sqlite").write_bytes(b"not a database, but long enough to be read as one " * 40)
    assert by_check(settings())["event log"].status == "bad"


def test_a_model_without_a_chat_template_is_found(settings, model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "config.json").write_text("{")
    for path in broken.glob("chat_template*"):
        path.unlink()
    config = json.loads((broken / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (broken / "tokenizer_config.json").write_text(json.dumps(config))

    message = by_check(settings(f"model.path={broken}"))["model"].message
    assert "config.json" in message
    assert "no chat template" in message


def test_what_the_start_would_refuse_a_base_for_is_told_before(settings, tmp_path):
    for name in ("bloom", "falcon"):
        finding = by_check(settings(f"model.path={tiny_family(tmp_path / name, name)}"), role="serve")["model"]
        assert (finding.status, "Llama family" in finding.message) == ("bad", True)
    gpt2 = tiny_family(tmp_path / "gpt2", "gpt2", n_embd=64, n_layer=2, n_head=4)
    window = tiny_family(tmp_path / "mistral", "mistral", sliding_window=64)
    for folder in (gpt2, window):
        assert by_check(settings(f"model.path={folder}"), role="serve")["model"].status == "good"
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "attention_factor": 1.0}
    longer = tiny_family(tmp_path / "longrope", "llama", rope_parameters={**rope, **factors})
    finding = by_check(settings(f"model.path={longer}"))["model"]
    assert (finding.status, "set engine.context_length to 128 or less" in finding.message) == ("bad", True)
    assert by_check(settings(f"model.path={longer}", "engine.context_length=128"))["model"].status == "good"
    assert "knows 512 positions" in by_check(settings("engine.context_length=4096"))["model"].message


def test_the_base_s_adapters_and_its_system_message_are_told(settings, model, tmp_path):
    message = by_check(settings())["model"].message
    assert "adapters on q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in message
    assert "takes a system message" in message
    strict = shutil.copytree(model, tmp_path / "strict")
    template = strict / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    finding = by_check(settings(f"model.path={strict}"))["model"]
    assert (finding.status, "refuses a system message" in finding.message) == ("good", True)


def test_packages_of_serving_leave_out_peft_and_those_of_learning_name_it():
    from plaudit.doctor import _PACKAGES

    assert "peft" not in _PACKAGES["serve"]
    assert "peft" in _PACKAGES["learn"]


def test_a_taken_port_is_found(settings):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        finding = by_check(settings(f"serve.port={port}"))["ports"]
    assert (finding.status, f"serve.port = {port}" in finding.message) == ("bad", True)


def test_missing_keys_are_a_note_on_a_laptop_and_a_problem_in_production(settings):
    assert by_check(settings())["keys"].status == "note"
    assert by_check(settings(), production=True)["keys"].status == "bad"
    keys = ['serve.handle_keys={"k": "0123456789abcdef0123"}', "serve.pseudonym_key=0123456789abcdef0123"]
    finding = by_check(settings(*keys), production=True)["keys"]
    assert finding.status == "good"
    assert "0123456789" not in finding.message


def test_a_role_is_asked_for_no_more_than_it_needs(settings):
    assert {"model", "keys", "threads"} & set(by_check(settings("model.path="), role="join")) == set()


def test_bad_settings_are_a_finding(settings):
    findings = diagnose(settings(), settings_error=Misconfigured("serve.port: not a number"))
    assert [(finding.check, finding.status) for finding in findings][-1] == ("settings", "bad")


def test_the_command_prints_json_and_fails_where_something_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plaudit", "doctor", "--json", "--data-dir", "d", "--set", "serve.nothing=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    rows = json.loads(capsys.readouterr().out)
    assert {"check", "status", "message", "remedy"} == set(rows[0])
    assert any("serve.nothing" in row["message"] for row in rows)
