"""The manifest: one canonical text, one digest, and nothing that leaves its folder."""

from __future__ import annotations

import datetime as dt
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plaudit.release.manifest import (
    Adapter,
    Manifest,
    Offsets,
    Probe,
    canonical_json,
    check_artifact_path,
    folder_digest,
)
from plaudit.types import Channel
from pydantic import ValidationError

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def full(**fields: object) -> Manifest:
    given = {
        "channel": Channel("instruction", "acme"),
        "version": 3,
        "parent": 2,
        "base_digest": "b" * 64,
        "temperature": 0.7,
        "adapter": Adapter(digest="a" * 64, rank=8, alpha=16, layers=10),
        "reward_model": "c" * 64,
        "as_of": NOON,
        "offsets": (Offsets(topic="plaudit.feedback", partition=0, first=0, next=812),),
        "evidence_digest": "e" * 64,
        "evidence_counts": {"pair": 412, "binary": 400},
        "settings": {"policy": {"lr": 2e-3, "advantage": "gae"}, "names": ["é", None, True]},
        "seeds": {"policy": 1},
        "versions": {"python": "3.11.7", "plugin:instruction": "1.0"},
        "kl": 8.1,
        "created_at": NOON,
        "probes": (Probe(prompt_tokens=(1, 2), completion_tokens=(3, 4), logprobs=(-0.1, -1 / 3)),),
        "artifacts": {"policy/adapter_model.safetensors": "a" * 64},
    }
    return Manifest.model_validate({**given, **fields})


def test_a_manifest_survives_json_with_its_digest() -> None:
    manifest = full()
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.digest == manifest.digest == hashlib.sha256(manifest.to_json().encode()).hexdigest()


def test_the_text_is_canonical() -> None:
    text = full().to_json()
    assert text.startswith('{"adapter":{"alpha":16,"digest":')
    assert '"channel":"instruction/acme"' in text
    assert '"created_at":"2026-03-01T12:00:00Z"' in text
    assert "é" in text
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1}) == '{"a":2,"b":1}'


def test_the_same_moment_in_another_zone_gives_the_same_digest() -> None:
    abroad = NOON.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert full(created_at=abroad).digest == full().digest


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4},
        {"temperature": 0.8},
        {"evidence_counts": {"pair": 413, "binary": 400}},
        {"seeds": {"policy": 2}},
        {"kl": None},
        {"artifacts": {}},
    ],
)
def test_any_change_changes_the_digest(change: dict[str, object]) -> None:
    assert full().replace(**change).digest != full().digest


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5), st.text(max_size=10))
def test_numbers_and_texts_come_back_to_the_bit(logprobs: list[float], text: str) -> None:
    probe = Probe(prompt_tokens=(1,), completion_tokens=tuple(range(len(logprobs))), logprobs=tuple(logprobs))
    try:
        manifest = full(probes=(probe,), versions={"a": text})
    except ValidationError:
        assert not text.isprintable()  # lone surrogates have no UTF-8
        return
    assert Manifest.from_json(manifest.to_json()).probes[0].logprobs == tuple(logprobs)


@pytest.mark.parametrize(
    "fields",
    [
        {"channel": "no-slash"},
        {"temperature": 0.0},
        {"kl": float("nan")},
        {"created_at": dt.datetime(2026, 3, 1)},
        {"evidence": {}},
        {"salt": "0" * 64},
        {"version": 0},
        {"reward_model": "abc"},
        {"artifacts": {"policy/adapter_model.safetensors": "A" * 64}},
        {"probes": [{"prompt_tokens": [1], "completion_tokens": [2], "logprobs": []}]},
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        full(**fields)


@pytest.mark.parametrize(
    "path",
    [
        "../x.json",
        "policy/../../x.json",
        "/etc/x.json",
        "policy//x.json",
        "policy/.x.json",
        ".x.json",
        "policy\\..\\x.json",
        "x\n.json",
        "x",
        "x.bin",
        "x.PKL",
        "x.json.pt",
        "",
        "manifest.json",
    ],
)
def test_a_path_that_leaves_the_folder_or_may_run_code_is_refused(path: str) -> None:
    with pytest.raises(ValueError):
        check_artifact_path(path)
    with pytest.raises(ValidationError):
        full(artifacts={path: "a" * 64})


@pytest.mark.parametrize(
    "path", ["policy/adapter_model.safetensors", "reward/heads.safetensors", "README.md", "a/b/c.txt"]
)
def test_ordinary_paths_are_taken(path: str) -> None:
    check_artifact_path(path)


def test_the_digest_of_a_folder_covers_its_paths_and_no_others() -> None:
    artifacts = {"reward/a.json": "1" * 64, "reward/b.json": "2" * 64, "policy/c.json": "3" * 64}
    reward = folder_digest(artifacts, "reward")
    assert reward == folder_digest({**artifacts, "policy/c.json": "4" * 64}, "reward")
    assert reward != folder_digest({**artifacts, "reward/a.json": "2" * 64, "reward/b.json": "1" * 64}, "reward")
    assert reward != folder_digest({**artifacts, "rewards/d.json": "5" * 64, "reward/e.json": "5" * 64}, "reward")
    assert reward == folder_digest({**artifacts, "rewards/d.json": "5" * 64}, "reward")
