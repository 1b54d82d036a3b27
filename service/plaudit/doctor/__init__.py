"""Checks that a process can run here, and how one that runs is (`running`); says how to fix what is wrong.

Enters: settings and the role that is to run. Leaves: findings, each in plain words with a remedy. Changes nothing that
a start of the process would not make itself; never prints a secret.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from plaudit.deciding import costs_of
from plaudit.doctor import running, vllm
from plaudit.doctor.findings import Finding, Status
from plaudit.domain import DomainPlugin
from plaudit.errors import Misconfigured, PlauditError
from plaudit.settings import STORE_FILE, Settings
from plaudit.store.files import private_folder
from plaudit.types import Channel

Role = Literal["all", "serve", "join", "learn"]

OLDEST_PYTHON = (3, 11)
_MODEL_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "jinja2")
_PACKAGES: dict[str, tuple[str, ...]] = {
    "serve": (*_MODEL_PACKAGES, "grpc", "google.protobuf"),
    "join": ("sqlalchemy", "google.protobuf"),
    "learn": (*_MODEL_PACKAGES, "peft", "sqlalchemy"),
}
_WAIT_SECONDS = 5.0
_CLOSES = "set access.required, access.tls.certificate and access.tls.key (docs/access.md)"


def diagnose(
    settings: Settings, *, role: Role = "all", production: bool = False, settings_error: PlauditError | None = None
) -> list[Finding]:
    """Findings of all checks that concern `role`. A check that cannot run is a finding too, never an exception."""
    roles = ("serve", "join", "learn") if role == "all" else (role,)
    if settings_error is not None:
        return [_python(), Finding("settings", "bad", settings_error.message, "fix the lines named above")]
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("packages", lambda: _packages(roles, settings)),
        ("data directory", lambda: _data_dir(settings)),
        ("event log", lambda: _log(settings)),
        ("store", lambda: _store(settings)),
        ("registry", lambda: _registry(settings)),
        ("plugins", lambda: _plugins(settings)),
    ]
    if "serve" in roles or "learn" in roles:
        checks += [("model", lambda: _model(settings)), ("threads", lambda: _threads(settings))]
        checks += [("number format", lambda: _formats(settings, roles))]
    if _servers_sample(settings, roles):
        checks += [(vllm.CHECK, lambda: vllm.servers(settings))]
    if "serve" in roles:
        checks += [("keys", lambda: _keys(settings, production)), ("access", lambda: _access(settings, production))]
    checks += [("ports", lambda: _ports(settings, roles)), ("running", lambda: _running(settings))]
    findings = [_python()]
    for name, check in checks:
        findings += _safely(name, check)
    return findings


def render(findings: list[Finding]) -> str:
    """Findings as lines for people."""
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.status]}  {finding.check}: {finding.message}")
        if finding.remedy:
            lines.append(f"      -> {finding.remedy}")
    bad = sum(finding.status == "bad" for finding in findings)
    lines.append(f"{bad} problem{'s' * (bad != 1)}" if bad else "all good")
    return "\n".join(lines)


def _safely(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    # The doctor meets whatever a broken installation throws; what it must not do is fall ill itself.
    try:
        yield from check()
    except PlauditError as error:
        yield Finding(name, "bad", error.message, "see the message")
    except Exception as error:
        yield Finding(name, "bad", f"the check failed with {type(error).__name__}: {error}", "fix what it names")


def _servers_sample(settings: Settings, roles: tuple[str, ...]) -> bool:
    """Whether vLLM servers do: for what serves, and for a learner that holds its base in slices."""
    return settings.engine.kind == "vllm" and ("serve" in roles or settings.model.shard)


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding("python", "good", version)
    return Finding("python", "bad", f"{version} is too old", "install Python 3.11 or later")


def _packages(roles: tuple[str, ...], settings: Settings) -> Iterator[Finding]:
    wanted = {package: role for role in roles for package in _PACKAGES[role]}
    if settings.log.kind == "kafka":
        wanted["kafka"] = "log.kind = kafka"
    if _servers_sample(settings, roles):
        wanted["httpx"] = "engine.kind = vllm"
    missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    extra = {"kafka": "kafka", "httpx": "vllm"}.get(" ".join(missing), "service")
    if missing:
        yield Finding("packages", "bad", f"missing: {', '.join(missing)}", f"run: pip install 'plaudit[{extra}]'")
    else:
        yield Finding("packages", "good", f"{len(wanted)} needed packages are installed")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    path = settings.data_dir.absolute()
    try:
        private_folder(path)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        remedy = "give the process's user write access, or set data_dir to a folder that it may write"
        yield Finding("data directory", "bad", f"{path} cannot be written: {error.strerror}", remedy)
        return
    yield Finding("data directory", "good", f"{path} can be written")
    yield from running.disk(settings)


def _log(settings: Settings) -> Iterator[Finding]:
    from plaudit.eventlog import LOG_FILE

    if settings.log.kind == "sqlite":
        yield _sqlite("event log", settings.data_dir / LOG_FILE, "restore the file from a backup; the log is the truth")
        return
    yield from _kafka_retention(settings)
    servers = settings.log.kafka.bootstrap
    remedy = "check log.kafka.bootstrap, the network and the broker's own log"
    if not servers:
        yield Finding("event log", "bad", "log.kind is kafka and log.kafka.bootstrap is empty", "name the brokers")
        return
    answers = [_connects(server.strip()) for server in servers.split(",")]
    if not any(answers):
        yield Finding("event log", "bad", f"no broker answers at {servers}", remedy)
        return
    from plaudit.eventlog import open_log

    open_log(settings).close()
    yield Finding("event log", "good", f"Kafka at {servers}; topics are there")


def _kafka_retention(settings: Settings) -> Iterator[Finding]:
    promised, kept = settings.shortest_retention_days, settings.log.kafka.retention_days
    if promised and (not kept or kept > promised):
        yield Finding(
            "retention",
            "note",
            f"privacy.retention_days promises {promised:g} days, and Kafka's topics keep records "
            + (f"{kept:g} days" if kept else "for ever"),
            "lower log.kafka.retention_days, which holds for every channel, and the retention of topics that exist",
        )


def _store(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(settings.store_url)
    except SQLAlchemyError:
        yield Finding("store", "bad", "store.url is not an SQLAlchemy URL", "write it as postgresql://user@host/name")
        return
    if url.get_backend_name() == "sqlite" and url.database:
        remedy = "delete it: the join makes it anew from the log"
        yield _sqlite("store", Path(url.database), remedy)
        return
    shown = url.render_as_string(hide_password=True)
    try:
        with create_engine(url).connect() as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        yield Finding("store", "bad", f"{shown} does not answer: {reason}", "check store.url, network and password")
    else:
        yield Finding("store", "good", f"{shown} answers")


def _registry(settings: Settings) -> Iterator[Finding]:
    from plaudit.release.registry import Registry

    if not settings.store.url.get_secret_value() and not (settings.data_dir / STORE_FILE).exists():
        yield Finding("registry", "good", f"{settings.registry_root} is made at the first start")
        return
    registry = Registry(settings.store_url, settings.registry_root)
    states = registry.states()
    for state in states:
        if not state.live:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                registry.fetch(state.channel, state.live, Path(folder))
            except PlauditError as error:
                remedy = "restore the artifacts from a backup, or: plaudit release rollback " + str(state.channel)
                yield Finding("registry", "bad", f"{state.channel}@{state.live}: {error.message}", remedy)
                return
    count = f"{len(states)} channel{'s' * (len(states) != 1)}"
    yield Finding("registry", "good", f"{settings.registry_root}: {count}; digests of live releases are right")


def _plugins(settings: Settings) -> Iterator[Finding]:
    from plaudit.plugins import load_plugins

    try:
        found = load_plugins(settings.plugins.allow)
    except PlauditError as error:
        remedy = "reinstall the distribution it names, or leave the domain out of plugins.allow"
        yield Finding("plugins", "bad", error.message, remedy)
        return
    if found:
        yield from _costs(settings, found)
        yield Finding("plugins", "good", ", ".join(f"{name} {found[name].declaration.version}" for name in found))
    else:
        yield Finding(
            "plugins", "bad", "no domain loads", "install one (`plaudit plugins new` writes one); see plugins.allow"
        )


def _costs(settings: Settings, found: Mapping[str, DomainPlugin]) -> Iterator[Finding]:
    """Costs of decisions that name labels which their domain does not declare: each call of that channel would fail."""
    for pattern in settings.channels:
        domain, _, tenant = pattern.partition("/")
        if domain in found:
            channel = Channel(domain, tenant)
            try:
                costs_of(found[domain].declaration, settings.for_channel(channel).decision.costs)
            except PlauditError as error:
                yield Finding("decision", "bad", f"channels.{pattern}: {error.message}", "name labels that it declares")


def _model(settings: Settings) -> Iterator[Finding]:
    name = settings.model.path
    folder = Path(name)
    if not name:
        yield Finding(
            "model",
            "bad",
            "model.path is empty",
            "name a folder or a hub id; `plaudit model prepare` makes one. If processes run here with --config or "
            "--set, give the doctor the same",
        )
        return
    if not folder.exists():
        if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            yield Finding("model", "bad", f"{name} does not exist", "correct model.path, or: plaudit model prepare")
        else:
            yield Finding(
                "model", "note", f"there is no folder {name} here; taken for a hub id, it is fetched at the first start"
            )
        return
    if folder.is_file() and folder.suffix == ".gguf":
        yield from _base(name, settings)
        return
    problems = _model_problems(folder)
    if problems:
        remedy = "save the model again in the Hugging Face format (save_pretrained of model and tokenizer)"
        yield Finding("model", "bad", f"{folder}: {'; '.join(problems)}", remedy)
    else:
        yield from _base(name, settings)


def _base(folder: str, settings: Settings) -> Iterator[Finding]:
    from plaudit.engine.outline import outline
    from plaudit.engine.source import find
    from plaudit.engine.targets import targets

    try:
        base, context = outline(find(folder), settings.engine.context_length)
    except Misconfigured as error:
        yield Finding("model", "bad", f"{folder}: {error.message}", "do what the message says, or use another base")
        return
    names = targets(base, settings.model.adapter_layers)
    if not names:
        yield Finding("model", "bad", f"{folder}: no linear of it can carry an adapter", "use another base")
        return
    system = "takes" if base.chat.takes_system else "refuses"
    words = f"{base.model.config.model_type}, context {context}, adapters on {', '.join(names)}"
    yield Finding("model", "good", f"{folder} ({words}); its chat template {system} a system message")


def _formats(settings: Settings, roles: tuple[str, ...]) -> Iterator[Finding]:
    """What bfloat16 or int8, if it is asked for, means on this processor; a refusal is the message of the setting."""
    from plaudit.engine.packed import number_format

    asked: dict[str, str] = {"engine.dtype": settings.engine.dtype}
    if "learn" in roles:
        asked["model.learner_dtype"] = settings.model.learner_dtype
    for setting, name in asked.items():
        if name in ("auto", "bfloat16", "int8") and settings.model.device != "cuda":
            found = str(number_format(name, setting)).removeprefix("torch.")
            yield Finding("number format", "good", f"{setting} = {name}: linears on this processor are {found}")


def _model_problems(folder: Path) -> list[str]:
    problems = []
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        problems.append("config.json is missing or not JSON")
    if not any(folder.glob("*.safetensors")):
        problems.append("no *.safetensors (other formats are not loaded)")
    if not ((folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists()):
        problems.append("no tokenizer")
    elif not _has_chat_template(folder):
        problems.append("the tokenizer has no chat template")
    return problems


def _has_chat_template(folder: Path) -> bool:
    if any(folder.glob("chat_template*")):
        return True
    config = folder / "tokenizer_config.json"
    return config.exists() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _threads(settings: Settings) -> Iterator[Finding]:
    cores, wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 0
    wanted = settings.model.threads
    words = f"model.threads {wanted or 'unset'}, {cores} core{'s' * (cores != 1)} for this process"
    if wanted > cores:
        yield Finding("threads", "bad", words, f"set model.threads to {cores} or less: more only wait for each other")
    elif "OMP_NUM_THREADS" in os.environ and int(os.environ["OMP_NUM_THREADS"] or 0) > cores:
        yield Finding(
            "threads", "note", f"{words}; OMP_NUM_THREADS is larger", f"set OMP_NUM_THREADS to {cores} or less"
        )
    else:
        yield Finding("threads", "good", words)


def _keys(settings: Settings, production: bool) -> Iterator[Finding]:
    status: Status = "bad" if production else "note"
    remedy = "set it from a secret; every replica needs the same, and the pseudonym key must never change"
    missing = [
        name
        for name, value in (
            ("serve.handle_keys", settings.serve.handle_keys),
            ("serve.pseudonym_key", settings.serve.pseudonym_key.get_secret_value()),
        )
        if not value
    ]
    if missing:
        words = f"{' and '.join(missing)} unset, so this data directory makes its own"
        yield Finding("keys", status, words, remedy if production else "")
        return
    from plaudit.serving.keys import handle_signer, pseudonym_key

    handle_signer(settings)
    pseudonym_key(settings)
    yield Finding("keys", "good", f"{len(settings.serve.handle_keys)} handle keys and a pseudonym key")


def _access(settings: Settings, production: bool) -> Iterator[Finding]:
    from plaudit.access.admission import check_exposure, exposed_without
    from plaudit.access.tls import Certificates
    from plaudit.access.tokens import Tokens

    check_exposure(settings)
    access = settings.access
    if access.tls.certificate:
        Certificates(access.tls)
    if access.tokens.jwks:
        Tokens(access.tokens)
    missing = exposed_without(settings)
    if missing:
        yield Finding("access", "bad" if production else "note", f"open, without {' and '.join(missing)}", _CLOSES)
    elif not access.required:
        words = "whoever reaches loopback may call everything"
        yield Finding("access", "bad" if production else "note", words, _CLOSES if production else "")
    else:
        words = "credentials are needed" + (", ports are encrypted" if access.tls.certificate else "")
        yield Finding("access", "good", words)


def _ports(settings: Settings, roles: tuple[str, ...]) -> Iterator[Finding]:
    from plaudit.store.database import Database
    from plaudit.store.processes import processes

    seen = []
    if settings.store.url.get_secret_value() or (settings.data_dir / STORE_FILE).exists():
        database = Database(settings.store_url)
        try:
            seen = processes(database)
        finally:
            database.close()
    yield from running.ports(settings, roles, seen)


def _running(settings: Settings) -> Iterator[Finding]:
    from plaudit.plugins import load_plugins

    yield from running.running(settings, load_plugins(settings.plugins.allow))


def _connects(server: str) -> bool:
    host, _, port = server.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_WAIT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _sqlite(check: str, path: Path, remedy: str) -> Finding:
    if not path.exists():
        return Finding(check, "good", f"{path} is made at the first start")
    try:
        connection: Any = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_WAIT_SECONDS)
        try:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        answer = str(error)
    if answer == "ok":
        return Finding(check, "good", f"{path} is sound")
    return Finding(check, "bad", f"{path} is damaged or unreadable: {answer}", remedy)
