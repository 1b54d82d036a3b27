"""`plaudit evidence export` and `plaudit evidence import`: preferences in the columns that TRL documents, out and in.

Both handle texts of people: export writes them to a file that its owner alone may read, import redacts them as the
channel's settings say. Reasons for refused lines never repeat what a line says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, channel_of, takes_settings

if TYPE_CHECKING:
    from plaudit.domain import DomainPlugin
    from plaudit.exchange.exporting import Exported
    from plaudit.exchange.importing import Imported
    from plaudit.settings import Settings

ChannelOption = Annotated[str, typer.Option("--channel", help='Channel, as "domain/tenant".')]


@takes_settings
def export(
    given: SettingsOptions,
    channel: ChannelOption,
    form: Annotated[
        Literal["dpo", "kto", "ranked"],
        typer.Option(
            "--format", help="dpo: prompt, chosen, rejected; kto: prompt, completion, label; ranked: best first."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write (JSON Lines).")],
    split: Annotated[
        Literal["train", "gate", "calibration"] | None,
        typer.Option("--split", help="Only what a turn uses for this; by default all, the gate's raters too."),
    ] = None,
    people: Annotated[bool, typer.Option("--people", help="Also who judged, as a pseudonym.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a channel's evidence as preferences for TRL and others; the file holds what people wrote."""
    named, settings = channel_of(channel), given.load_used()
    from plaudit.evidence.splits import Split
    from plaudit.evidence.store import EvidenceStore
    from plaudit.exchange.exporting import Exported, Exporter
    from plaudit.exchange.formats import Format
    from plaudit.release.registry import Registry

    declared = _plugin(settings, named.domain).declaration
    with Registry(settings.store_url, settings.registry_root) as registry:
        salt = registry.salt(named)
    store, counts = EvidenceStore(settings.store_url), Exported()
    try:
        exporter = Exporter(
            store=store,
            channel=named,
            salt=salt,
            wanted=Format(form),
            few_raters=declared.few_raters,
            policy_version=declared.policy_version,
            split=None if split is None else Split(split),
            people=people,
        )
        partial = out.with_name(f".{out.name}.partial")
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            for line in exporter.run(counts):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        partial.rename(out)
    finally:
        store.close()
    plain = {"lines": counts.lines, "left_out": dict(counts.left_out)}
    typer.echo(json.dumps(plain, indent=2) if as_json else _exported_lines(out, counts))


@takes_settings
def import_(
    given: SettingsOptions,
    source: Annotated[Path, typer.Argument(help="File of JSON Lines; - is standard input.")],
    channel: ChannelOption,
    form: Annotated[
        Literal["dpo", "kto", "ranked"] | None,
        typer.Option("--format", help="By default as each line's columns say."),
    ] = None,
    rater: Annotated[
        str, typer.Option("--rater", help="Who judged lines that name nobody; by default the file's name.")
    ] = "",
    rater_column: Annotated[str, typer.Option("--rater-column", help="Column that says who judged a line.")] = "",
    agreed: Annotated[
        bool, typer.Option("--agreed", help="The people agreed that their texts are kept and learnt from.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put preferences of a file into the log, as interactions and feedback; what was imported before counts once.

    Exit code 1 if no line could be used.
    """
    settings, named = given.load(), channel_of(channel)
    settings = settings.for_channel(named)
    from plaudit.errors import Misconfigured
    from plaudit.eventlog import open_log
    from plaudit.exchange.formats import Format
    from plaudit.exchange.importing import Importer
    from plaudit.plugins.recognisers import Recognisers
    from plaudit.release.artifacts import check_channel
    from plaudit.serving.keys import agreed_pseudonym_key
    from plaudit.store.database import Database
    from plaudit.types import Consent

    check_channel(named)
    if not agreed and not (settings.privacy.store and settings.privacy.train):
        raise Misconfigured(
            f"{named} learns only from texts whose people agreed (privacy.store, privacy.train): if these did, say "
            "--agreed",
            setting="privacy.train",
        )
    plugin = _plugin(settings, named.domain)
    from plaudit.engine.prompting import load_chat

    chat, digest, context = load_chat(settings.model.path, settings.engine.context_length)
    with closing(Database(settings.store_url)) as database:
        key = agreed_pseudonym_key(settings, database)
    importer = Importer(
        channel=named,
        plugin=plugin,
        encode=lambda messages: chat.encode(messages).tokens,
        pseudonym_key=key,
        redaction=Recognisers(settings).redaction(settings.privacy),
        base_digest=digest,
        rater=rater or f"import of {source.name}",
        rater_column=rater_column,
        consent=Consent(),
        length=lambda text: len(chat.encode_text(text)),
        most_tokens=context,
    )
    log = open_log(settings)
    try:
        with _lines(source) as lines:
            found = importer.run(lines, log, None if form is None else Format(form))
    finally:
        log.close()
    typer.echo(_imported_json(found) if as_json else _imported_lines(found))
    if found.refused and not found.taken:
        raise typer.Exit(1)


@contextmanager
def _lines(source: Path) -> Iterator[BinaryIO]:
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    with source.open("rb") as file:
        yield file


def _plugin(settings: Settings, domain: str) -> DomainPlugin:
    from plaudit.errors import UnknownDomain
    from plaudit.plugins import load_plugins

    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    if domain not in plugins:
        raise UnknownDomain(f"no plugin serves the domain {domain!r} here; there are {', '.join(sorted(plugins))}")
    return plugins[domain]


def _exported_lines(out: Path, counts: Exported) -> str:
    left = [f"  left out: {count} {why}" for why, count in sorted(counts.left_out.items())]
    return "\n".join([f"{out}: {counts.lines} lines; it holds what people wrote", *left])


def _imported_json(found: Imported) -> str:
    plain = {"lines": found.lines, "taken": found.taken, "raters": found.raters, "refused": dict(found.refused)}
    return json.dumps(plain | {"first": [dataclasses.asdict(each) for each in found.first]}, indent=2)


def _imported_lines(found: Imported) -> str:
    lines = [f"{found.taken} of {found.lines} lines are in the log, judged by {found.raters} raters; the join reads on"]
    lines += [f"refused: {count} as {reason}" for reason, count in sorted(found.refused.items())]
    lines += [f"  line {each.line}: {each.message}" for each in found.first]
    if sum(found.refused.values()) > len(found.first):
        lines.append(f"  and {sum(found.refused.values()) - len(found.first)} more")
    return "\n".join(lines)
