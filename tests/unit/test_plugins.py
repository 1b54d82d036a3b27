"""Plugins are found, checked with their distribution's name, and guarded."""

import sys

import pytest
from plaudit.errors import Misconfigured
from plaudit.plugins import installed, load_plugins

PLUGIN = """
from plaudit.domain import Declaration, DomainPlugin
from plaudit.errors import InvalidField
from plaudit.types import Action, FeedbackKind, Outcome, Prompt

class Domain(DomainPlugin):
    declaration = Declaration(
        name={name!r}, version="1", action=Action.COMPLETION, kinds=frozenset({{FeedbackKind.THUMBS}}), {more}
    )
    def render(self, request):
        if request.passages:
            raise InvalidField("no passages, please", field="passages")
        raise ZeroDivisionError("boom")
    def parse(self, prompt, output):
        return Outcome(displayed=output)
    def to_evidence(self, interaction, feedback):
        yield 1 / 0

class NotAPlugin:
    pass

class Raises:
    def __init__(self):
        raise RuntimeError("no disk")

class BadDeclaration(Domain):
    declaration = {{"name": {name!r}}}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution into a folder of its own, with a real entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution, entry, *, name="chess", more="", version="0.3"):
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(PLUGIN.format(name=name, more=more))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[plaudit.domains]\n{entry.format(module=module)}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_an_allowed_plugin_loads_and_one_that_is_not_is_never_imported(install):
    install("plaudit-chess", "chess = {module}:Domain")
    assert set(load_plugins(("chess",))) == {"chess"}
    sys.modules.pop("plaudit_chess")
    assert "chess" not in load_plugins(("echo",))
    assert load_plugins(()) == {}
    assert "plaudit_chess" not in sys.modules


def test_unset_loads_everything_that_is_installed(install):
    install("plaudit-chess", "chess = {module}:Domain")
    assert set(load_plugins(None)) == {plugin.name for plugin in installed()} >= {"chess", "echo"}


def test_the_mapping_cannot_be_changed(install):
    plugins = load_plugins(("echo",))
    with pytest.raises(TypeError):
        plugins["echo"] = None


def test_installed_names_the_distribution_without_importing_it(install):
    install("plaudit-chess", "chess = {module}:Domain", version="2.5")
    (chess,) = [plugin for plugin in installed() if plugin.name == "chess"]
    assert (chess.distribution, chess.version, chess.value) == ("plaudit-chess", "2.5", "plaudit_chess:Domain")
    assert "plaudit_chess" not in sys.modules


@pytest.mark.parametrize(
    ("entry", "more", "words"),
    [
        ("chess = {module}:Domain", "contract_version=99", "contract version 99"),
        ("draughts = {module}:Domain", "", "declares the name 'chess'"),
        ("chess = {module}:NotAPlugin", "", "is a NotAPlugin, not a plaudit.domain.DomainPlugin"),
        ("chess = {module}:Raises", "", "RuntimeError: no disk"),
        ("chess = {module}:Missing", "", "AttributeError"),
        ("chess = {module}_gone:Domain", "", "ModuleNotFoundError"),
        ("chess = {module}:BadDeclaration", "", "declaration is a dict"),
    ],
)
def test_a_plugin_that_does_not_fit_is_refused_with_its_distribution(install, entry, more, words):
    install("plaudit-chess", entry, more=more, version="0.3")
    with pytest.raises(Misconfigured) as caught:
        load_plugins((entry.split(" ")[0],))
    assert words in caught.value.message
    assert "plaudit-chess 0.3" in caught.value.message


def test_two_distributions_of_one_domain_are_refused_with_both_names(install):
    install("plaudit-chess", "chess = {module}:Domain")
    install("other-chess", "chess = {module}:Domain", version="9.9")
    with pytest.raises(Misconfigured, match=r"plaudit-chess 0\.3.*") as caught:
        load_plugins(("chess",))
    assert "other-chess 9.9" in caught.value.message


def test_all_problems_are_reported_at_once(install):
    install("plaudit-chess", "chess = {module}:NotAPlugin")
    with pytest.raises(Misconfigured) as caught:
        load_plugins(("chess", "go"))
    assert "NotAPlugin" in caught.value.message
    assert "'go', which is not installed" in caught.value.message
