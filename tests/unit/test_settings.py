"""Settings: precedence of the sources, all problems at once, masking, and the page made from them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from plaudit import settings_text
from plaudit.errors import Misconfigured
from plaudit.settings import Settings, digest, fields, load_settings, resolved

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
