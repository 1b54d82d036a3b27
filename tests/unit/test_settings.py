"""Settings: precedence of the sources, all problems at once, masking, and the page made from them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from plaudit.errors import Misconfigured
from plaudit.settings import Section, Settings, digest, fields, load_settings, resolved
from plaudit.settings import text as settings_text
from plaudit.types import Channel

DOCS = Path(__file__).parents[2] / "docs"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def problems(**sources) -> str:
    with pytest.raises(Misconfigured) as caught:
        load_settings(**{"environ": {}, **sources})
    return caught.value.message


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path):
    config = write(tmp_path / "p.toml", "[serve]\nport = 1\nworkers = 11\ndrain_seconds = 3.5\n")
    environ = {"PLAUDIT_SERVE__PORT": "2", "PLAUDIT_SERVE__WORKERS": "22"}

    serve = load_settings(config, ["serve.port=3"], environ).serve

    assert (serve.port, serve.workers, serve.drain_seconds) == (3, 22, 3.5)


def test_a_file_is_found_by_the_environment_and_in_the_working_directory(tmp_path, monkeypatch):
    named = write(tmp_path / "named.toml", 'log_level = "debug"')
    assert load_settings(environ={"PLAUDIT_CONFIG": str(named)}).log_level == "debug"
    write(tmp_path / "plaudit.toml", 'log_level = "error"')
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).log_level == "error"


def test_lists_and_tables_are_json_in_text_sources(tmp_path):
    environ = {"PLAUDIT_SERVE__HANDLE_KEYS": '{"K1": "secret-one"}', "PLAUDIT_PLUGINS__ALLOW": '["instruction"]'}

    found = load_settings(overrides=["engine.widths=[2, 8]"], environ=environ)

    assert found.engine.widths == (2, 8)
    assert found.plugins.allow == ("instruction",)
    assert found.serve.handle_keys["K1"].get_secret_value() == "secret-one"
    assert load_settings(overrides=["plugins.allow=null"], environ=environ).plugins.allow is None


def test_a_table_in_the_file_stays_whole(tmp_path):
    config = write(tmp_path / "p.toml", '[serve.handle_keys]\n2026 = "a"\n2027 = "b"\n')
    assert list(load_settings(config, environ={}).serve.handle_keys) == ["2026", "2027"]


@pytest.mark.parametrize(
    ("sources", "where"),
    [
        ({"overrides": ["serve.prot=1"]}, "--set serve.prot"),
        ({"environ": {"PLAUDIT_SERVE__PROT": "1"}}, "environment variable PLAUDIT_SERVE__PROT"),
    ],
)
def test_an_unknown_key_names_its_source_and_the_nearest_key(sources, where):
    message = problems(**sources)
    assert where in message
    assert "did you mean 'serve.port'?" in message


def test_an_unknown_key_in_the_file_names_the_file(tmp_path):
    config = write(tmp_path / "p.toml", "[polcy]\ntemperature = 1\n")
    message = problems(config=config)
    assert str(config) in message
    assert "'policy.temperature'" in message


def test_a_key_without_its_section_is_found():
    assert "did you mean 'serve.port'?" in problems(overrides=["port=1"])


def test_all_problems_of_all_sources_come_in_one_error(tmp_path):
    config = write(tmp_path / "p.toml", "nonsense = 1\n[serve]\nport = 70000\n")
    message = problems(
        config=config,
        environ={"PLAUDIT_MODEL__DEVICE": "abacus", "PLAUDIT_ENGINE__WIDTHS": "[1"},
        overrides=["policy.temperature=-1", "no equals sign"],
    )
    assert message.startswith("6 problems")
    for part in ("nonsense", "serve.port", "PLAUDIT_MODEL__DEVICE", "engine.widths", "policy.temperature", "key=value"):
        assert part in message
    assert f"{config}: serve.port" in message


def test_a_missing_or_broken_file_is_named(tmp_path):
    assert "cannot be read" in problems(config=tmp_path / "absent.toml")
    assert "is not TOML" in problems(config=write(tmp_path / "broken.toml", "[serve"))


def test_variables_that_are_no_settings_are_left_alone():
    environ = {
        "PLAUDIT_DATA": "/x",
        "PLAUDIT_CACHE": "/y",
        "PLAUDIT_TEST_KAFKA": "127.0.0.1:1",
        "PLAUDIT_SERVE_SERVICE_HOST": "10.0.0.1",
        "PLAUDIT_SERVE_PORT": "tcp://10.0.0.1:50051",
        "PLAUDIT_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(environ=environ) == Settings()
    assert "PLAUDIT_PORT" in problems(environ={"PLAUDIT_PORT": "50051"})
    assert str(load_settings(environ={"PLAUDIT_DATA_DIR": "/z"}).data_dir) == "/z"


def test_secrets_are_masked_and_do_not_enter_the_digest():
    def with_password(password: str) -> Settings:
        url = f"postgresql://plaudit:{password}@db/plaudit"
        return load_settings(overrides=[f"store.url={url}", 'serve.handle_keys={"k": "' + password + '"}'], environ={})

    one, other = with_password("open-sesame"), with_password("swordfish")

    assert "open-sesame" not in str(resolved(one)) + settings_text.toml(resolved(one)) + repr(one)
    assert digest(one) == digest(other) != digest(Settings())


def test_a_bad_secret_is_not_repeated_in_the_error():
    assert "hunter2" not in problems(overrides=['serve.handle_keys=["hunter2"]', "serve.handle_keys=hunter2"])


def test_toml_of_the_settings_reads_back_to_the_same_settings(tmp_path):
    before = load_settings(
        overrides=["engine.widths=[1, 3]", 'model.path=C:\\dir "quoted" ü', "learn.nice=3"], environ={}
    )
    text = settings_text.toml(resolved(before))

    after = load_settings(write(tmp_path / "p.toml", text), environ={})

    assert after == before
    assert tomllib.loads(text)["learn"]["nice"] == 3


def test_every_setting_says_what_it_means():
    page = settings_text.table()
    for path, _ in fields():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{path}` "))
        assert row.rstrip(" |").split("|")[-1].strip(), path


def test_the_settings_page_is_up_to_date():
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_text.table(), (
        "run: plaudit settings table > docs/settings.md"
    )


CHANNELS = """
[policy]
kl_target = 10
advantage = "rloo"
[channels."moderation/*".policy]
kl_target = 4
[channels."moderation/acme"]
policy.kl_target = 6
gate.prompts = 200
[channels."*/*".learn]
promote = false
"""


def test_a_channel_has_settings_of_its_own_the_more_exact_pattern_winning(tmp_path):
    found = load_settings(write(tmp_path / "p.toml", CHANNELS), environ={})

    assert found.policy.kl_target == 10
    acme = found.for_channel(Channel("moderation", "acme"))
    assert (acme.policy.kl_target, acme.gate.prompts, acme.learn.promote) == (6, 200, False)
    assert acme.learn.poll_seconds == found.learn.poll_seconds
    assert acme.policy.advantage == "rloo"
    other = found.for_channel(Channel("moderation", "other"))
    assert (other.policy.kl_target, other.gate.prompts) == (4, found.gate.prompts)
    assert found.for_channel(Channel("instruction", "acme")).policy == found.policy


def test_the_order_of_patterns_in_the_file_changes_nothing(tmp_path):
    tables = ["a/*", "a/b*", "a/b?", "a/bc"]
    lines = {name: f'[channels."{name}".policy]\nkl_target = {1 + i}\n' for i, name in enumerate(tables)}
    for order in (tables, tables[::-1]):
        found = load_settings(write(tmp_path / "p.toml", "".join(lines[name] for name in order)), environ={})
        assert found.for_channel(Channel("a", "bc")).policy.kl_target == 4
        assert found.for_channel(Channel("a", "bd")).policy.kl_target == 3
        assert found.for_channel(Channel("a", "z")).policy.kl_target == 1


def test_a_channels_setting_may_come_from_a_flag_and_reads_back(tmp_path):
    flag = 'channels."a/b.c".policy.kl_target=6'
    found = load_settings(overrides=[flag], environ={})
    assert found.for_channel(Channel("a", "b.c")).policy.kl_target == 6
    assert resolved(found)["channels"] == {"a/b.c": {"policy": {"kl_target": 6.0}}}
    text = settings_text.toml(resolved(found))
    assert load_settings(write(tmp_path / "p.toml", text), environ={}).channels == found.channels
    assert digest(found) != digest(Settings())


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ('channels."a/b".policy.kl_traget=6', "did you mean 'policy.kl_target'?"),
        ('channels."a/b".learn.poll_seconds=6', "unknown key"),
        ('channels."a/b".serve.port=6', "unknown key"),
        ('channels."a/b".policy.kl_target=-1', "the smallest is 0.01"),
        ('channels."a".policy.kl_target=6', 'such as "a/*"'),
        ('channels."a/b".gate.prompts=10', "the largest is min_prompts=10"),
    ],
)
def test_a_wrong_setting_of_a_channel_is_refused_at_the_start(flag, words):
    assert words in problems(overrides=[flag])


def test_what_only_stands_together_is_checked_for_the_channel_as_a_whole():
    flags = ["policy.advantage=rloo", 'channels."a/b".policy.samples=1']
    assert "the smallest is samples=2" in problems(overrides=flags)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("gate.samples=0", "gate.samples='0' is too small; the smallest is 1"),
        ("policy.minibatch=0", "policy.minibatch='0' is too small; the smallest is 1"),
        ("policy.lr=3", "policy.lr='3' is too large; the largest is 0.1"),
        ("policy.kl_target=nan", "policy.kl_target"),
        ("policy.kl_target=inf", "the largest is 1000"),
        ("learn.seed=-1", "the smallest is 0"),
    ],
)
def test_a_nonsense_number_is_refused_with_the_nearest_sensible_one(flag, words):
    assert words in problems(overrides=[flag])


def test_rloo_needs_two_samples():
    assert "samples=2" in problems(overrides=["policy.samples=1", "policy.advantage=rloo"])


def _numbers(section: type[Section], prefix: str = ""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _numbers(field.annotation, f"{prefix}{name}.")
        elif field.annotation in (int, float, int | None, float | None):
            yield f"{prefix}{name}", field


def test_every_number_has_a_smallest_and_a_largest_value():
    unbounded = [
        name
        for name, field in _numbers(Settings)
        if not all(any(hasattr(part, bound) for part in field.metadata) for bound in ("ge", "le"))
    ]
    assert not unbounded


def test_what_a_section_or_all_of_it_contradicts_is_said_with_where_it_was_set():
    with pytest.raises(Misconfigured) as wrong:
        load_settings(overrides=["engine.kind=vllm", "serve.port=1"], environ={})
    assert "- --set engine.kind: engine: kind=vllm needs servers" in str(wrong.value)
    with pytest.raises(Misconfigured) as wrong:
        load_settings(overrides=["model.shard=true"], environ={})
    assert "- settings that stand together: model.shard=true needs servers" in str(wrong.value)
