"""Preferences out and in: TRL's columns, refusals by line and reason, counted once, under splits and redaction."""

import io
import json
import uuid

import pytest
import structlog
from plaudit.cli import app
from plaudit.errors import UndeclaredKind
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import decode
from plaudit.evidence.join import Join
from plaudit.evidence.splits import Split, rater_split
from plaudit.evidence.store import EvidenceStore
from plaudit.exchange import importing
from plaudit.exchange.exporting import Exported, Exporter
from plaudit.exchange.formats import Format, format_of, read
from plaudit.exchange.importing import Importer
from plaudit.plugins import load_plugins
from plaudit.privacy.redaction import Redaction
from plaudit.reward.dataset import collect
from plaudit.serving.handle import pseudonym
from plaudit.settings import RewardSettings, Settings
from plaudit.testing.evidence import PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.testing.models import tiny_model
from plaudit.testing.training import Letters
from plaudit.types import Channel, Choice, FeedbackKind, Message, Purpose, Ranking, Thumbs
from typer.testing import CliRunner

CHANNEL = Channel("plain", "acme")
SALT, KEY = bytes(32), b"k" * 32
ASKED = [{"role": "user", "content": "Tea?"}]


def says(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


DPO = [
    {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."},
    {"prompt": ASKED, "chosen": says("Green.")[0], "rejected": says("None.")[0]},
    {"chosen": [*ASKED, *says("Now.")[0]], "rejected": [*ASKED, *says("Later.")[0]]},
    {"prompt": "Tea?", "chosen": [*ASKED, *says("Hot.")[0]], "rejected": [*ASKED, *says("Cold.")[0]], "score": 3},
]
KTO = [
    {"prompt": "Tea?", "completion": "Yes.", "label": True},
    {"prompt": ASKED, "completion": says("No.")[0], "label": False},
]
RANKED = [
    {"prompt": "Tea?", "completions": ["a", "b", "c"]},
    {"prompt": ASKED, "completions": says("x", "y", "z"), "ranks": [2, 3, 1]},
]


class World:
    """A log and a store on one folder, and an importer that counts characters as tokens."""

    def __init__(self, folder):
        self.settings = Settings(data_dir=folder)
        self.log, self.store = open_log(self.settings), EvidenceStore(self.settings.store_url)
        self._join = Join(self.log, self.store, {CHANNEL.domain: PlainDomain()}, self.settings.join)

    def importer(self, **changes):
        fields = {
            "channel": CHANNEL,
            "plugin": PlainDomain(),
            "encode": lambda messages: tuple(range(len(messages[-1].content))),
            "pseudonym_key": KEY,
            "redaction": Redaction(),
            "base_digest": "ab" * 32,
            "rater": "the file",
        }
        return Importer(**fields | changes)

    def take(self, lines, wanted=None, **changes):
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        found = self.importer(**changes).run(io.BytesIO(text.encode()), self.log, wanted)
        self.join()
        return found

    def join(self):
        join_all(self._join)

    def freeze(self):
        return self.store.freeze(CHANNEL, SALT)

    def export(self, wanted, **changes):
        counts = Exported()
        exporter = Exporter(store=self.store, channel=CHANNEL, salt=SALT, wanted=Format(wanted), **changes)
        return list(exporter.run(counts)), counts

    def close(self):
        for each in (self._join, self.store, self.log):
            each.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "here")
    yield made
    made.close()
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("line", "wanted", "texts"),
    [
        (line, Format.DPO, texts)
        for line, texts in zip(DPO, ["Yes. No.", "Green. None.", "Now. Later.", "Hot. Cold."], strict=True)
    ]
    + [(line, Format.KTO, texts) for line, texts in zip(KTO, ["Yes.", "No."], strict=True)]
    + [(line, Format.RANKED, texts) for line, texts in zip(RANKED, ["a b c", "z x y"], strict=True)],
)
def test_a_line_is_read_in_either_form(line, wanted, texts):
    judged = read(line, format_of(line))
    assert format_of(line) is wanted
    assert judged.prompt == (Message("user", "Tea?"),)
    assert " ".join(judged.completions) == texts
    assert judged.good is line.get("label")


def test_imported_lines_are_evidence_once_however_often_and_in_whatever_order(world):
    first = world.take([*DPO, *KTO, *RANKED])
    assert (first.lines, first.taken, first.raters, dict(first.refused)) == (8, 8, 1, {})
    frozen = world.freeze()
    assert frozen.counts == {"choice": 4, "ranking": 2, "thumbs": 2}
    assert world.take([*reversed(RANKED), *KTO, *DPO, DPO[0]]).taken == 9
    assert world.freeze().digest == frozen.digest
    assert world.store.counts(CHANNEL).rejected == 0
    assert {each.purpose for each in frozen.interactions.values()} == {Purpose.IMPORTED}
    assert {row.who for row in frozen.rows} == {pseudonym(KEY, CHANNEL.tenant, "the file")}, "one split and one cap"
    assert world.store.count_answered(CHANNEL, next(iter(frozen.interactions.values())).completed_at) == 0
    assert len(world.store.prompts(CHANNEL)) == 1, "its prompts are rolled out and asked as others are"
    # A reward model reads them: texts are tokenised, prompts have their tokens.
    split = rater_split(SALT, frozen.rows[0].who)
    units = collect(frozen, split, Letters(), RewardSettings())
    assert units.events or units.left_out


def test_raters_of_a_column_are_people_of_the_tenant_with_splits_of_their_own(world):
    names = [f"person {number}" for number in range(40)]
    lines = [{"prompt": f"{name}?", "chosen": "yes", "rejected": "no", "by": name} for name in names]
    assert world.take([*lines, {**DPO[0], "by": None}], rater_column="by").raters == 41
    rows = world.freeze().rows
    assert {row.who for row in rows} == {pseudonym(KEY, CHANNEL.tenant, name) for name in [*names, "the file"]}
    assert {row.rater_split for row in rows} == set(Split)
    # Two people on one pair are two acts on one interaction.
    world.take([{**DPO[0], "by": "person 1"}], rater_column="by")
    assert len(world.freeze().interactions) == 41
    assert len(world.freeze().rows) == 42


def test_refusals_name_line_and_reason_and_never_what_was_written(world, monkeypatch):
    monkeypatch.setattr(importing, "MAX_LINE_BYTES", 2_000)
    secret = "quite private"
    bad = [
        "no json\n",
        "[1]\n",
        {"prompt": secret, "answer": secret},
        {"prompt": secret, "chosen": secret, "rejected": secret},
        {"prompt": secret, "chosen": "a"},
        {"chosen": secret, "rejected": "b"},
        {"prompt": secret, "completion": "a", "label": 1},
        {"prompt": [{"role": "robot", "content": secret}], "completion": "a", "label": True},
        {"prompt": secret, "chosen": [*ASKED, {"role": "user", "content": secret}], "rejected": "b"},
        {"chosen": [*ASKED, *says("a")[0]], "rejected": [{"role": "user", "content": secret}, *says("b")[0]]},
        {"prompt": secret, "completions": ["a", "b"], "ranks": [1, 1]},
        {"prompt": secret, "completion": " ", "label": True},
        {"prompt": secret, "completion": "a\0", "label": True},
        {"prompt": " ", "completion": "a", "label": True},
        '{"prompt": "\\ud800", "completion": "a", "label": true}\n',
        {"prompt": secret, "completion": "a" * 3_000, "label": True},
        {"prompt": secret, "completion": "a" * 600, "label": True},
        {"prompt": secret, "completions": [str(number) for number in range(99)]},
    ]
    found = world.take([DPO[0], "\n", *bad, KTO[0]], most_tokens=500)
    assert (found.lines, found.taken) == (len(bad) + 2, 2)
    assert dict(found.refused) == {"INVALID_FIELD": 15, "INVALID_TEXT": 1, "EMPTY_PROMPT": 1, "PROMPT_TOO_LONG": 1}
    assert [each.line for each in found.first] == list(range(3, 3 + len(bad)))
    assert secret not in str(found)
    assert found.first[0].message == "line is not JSON"
    assert "longer than 2000 bytes" in found.first[15].message


def test_a_domain_is_asked_for_what_it_takes(world):
    class NoThumbs(PlainDomain):
        @property
        def declaration(self):
            kinds = super().declaration.kinds - {FeedbackKind.THUMBS}
            return type(super().declaration)(name="plain", version="1", action=super().declaration.action, kinds=kinds)

    assert dict(world.take([*KTO, DPO[0]], plugin=NoThumbs()).refused) == {"UNDECLARED_KIND": 2}
    with pytest.raises(UndeclaredKind, match="takes no feedback of kind thumbs"):
        world.take(KTO, Format.KTO, plugin=NoThumbs())


def test_personal_data_is_replaced_before_the_log(world):
    line = {"prompt": "Write to ann@example.org", "chosen": "To ann@example.org!", "rejected": "No."}
    world.take([line], redaction=Redaction(("email",)))
    raw = b"".join(record.value for record in world.log.consumer((Topic.INTERACTIONS,), "t", dict).poll(1, 10))
    assert b"[EMAIL]" in raw
    assert b"ann@" not in raw
    world.take([line], redaction=Redaction(("email",)))
    assert len(world.freeze().rows) == 1


def test_what_was_given_here_goes_out_and_comes_in_elsewhere_as_the_same_evidence(world, tmp_path):
    """Round trip: the lines of a deployment are evidence of the same kinds and texts in another."""
    for number in range(3):
        made = make_interaction(f"i{number}", candidates=3)
        append(world.log, made)
    acts = [
        make_feedback("f0", "i0", Choice("a", "b")),
        make_feedback("f1", "i0", Choice("a", "b", tie=True, tie_offered=True), rater="ben"),
        make_feedback("f2", "i1", Ranking(("c", "a", "b"))),
        make_feedback("f3", "i2", Thumbs("b", False), rater="cem"),
    ]
    append(world.log, *acts)
    world.join()
    found = {wanted: world.export(wanted, people=True) for wanted in Format}
    dpo, counts = found[Format.DPO]
    assert counts.left_out == {"Pair gives no dpo line": 1, "Binary gives no dpo line": 1}
    prompt = [{"role": "user", "content": "group of i0"}]
    assert dpo[0] == {
        "prompt": prompt,
        "chosen": says("text a")[0],
        "rejected": says("text b")[0],
        "rater": "ann",
    }
    assert len(dpo) == 1 + 3, "of three ranked answers each is better than those behind it"
    (kto,), _ = found[Format.KTO]
    assert (kto["completion"], kto["label"]) == (says("text b")[0], False)
    (ranked,), _ = found[Format.RANKED]
    assert ranked["completions"] == says("text c", "text a", "text b")

    there = World(tmp_path / "there")
    for wanted, (lines, _) in found.items():
        assert there.take(lines, wanted, rater_column="rater").taken == len(lines)
    again = {wanted: there.export(wanted)[0] for wanted in Format}
    for wanted, (lines, _) in found.items():
        plain = sorted(json.dumps({k: v for k, v in line.items() if k != "rater"}) for line in lines)
        got = sorted(map(json.dumps, again[wanted]))
        assert set(plain) <= set(got), wanted
    there.close()
    splits = [len(world.export("dpo", split=split)[0]) for split in Split]
    assert sum(splits) <= len(dpo)


def test_the_commands_write_a_private_file_and_read_it_again(tmp_path):
    """With the real plugin, the tiny model's own chat template, and every step by command."""
    tiny_model(tmp_path / "model", layers=1, hidden=32)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in DPO) + "no json\n")
    where = ["--data-dir", str(tmp_path / "data"), "--set", f"model.path={tmp_path / 'model'}"]

    def command(*words):
        done = CliRunner().invoke(app, ["evidence", *words, "--channel", "instruction/default", *where])
        structlog.reset_defaults()  # its standard error is closed
        assert not done.exception or isinstance(done.exception, SystemExit), repr(done.exception)
        return done.exit_code, done.stdout

    for _ in range(2):
        code, said = command("import", str(lines), "--json")
        assert (code, json.loads(said)["taken"], json.loads(said)["refused"]) == (0, 4, {"INVALID_FIELD": 1})
    settings = Settings(data_dir=tmp_path / "data")
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, load_plugins(("instruction",)), settings.join)
    join_all(join)
    (first, *_) = [decode(r.value) for r in log.consumer((Topic.INTERACTIONS,), "t", dict).poll(1, 10)]
    assert first.prompt_tokens
    assert uuid.UUID(first.interaction_id).version == 5
    from plaudit.release.registry import Registry

    with Registry(settings.store_url, settings.registry_root) as registry:
        registry.ensure_channel(first.channel, "ab" * 32)
    for each in (join, store, log):
        each.close()
    out = tmp_path / "out.jsonl"
    code, said = command("export", "--format", "dpo", "--out", str(out))
    assert code == 0
    assert "4 lines" in said
    assert out.stat().st_mode & 0o077 == 0
    columns = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(set(line) == {"prompt", "chosen", "rejected"} for line in columns)
    structlog.reset_defaults()
