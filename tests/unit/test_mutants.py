"""The list of broken promises (`make mutants`) names code and tests that are there."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _script():
    specification = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


SCRIPT = _script()


@pytest.mark.parametrize("mutant", SCRIPT.mutants(), ids=lambda mutant: mutant.name)
def test_each_change_can_be_made_and_its_tests_are_there(mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.applied(text) != text
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file()
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


def test_a_change_whose_line_is_gone_says_so():
    gone = SCRIPT.Mutant("gone", "some.py", "a = 1", "a = 2", ("tests/unit/test_mutants.py",))
    with pytest.raises(ValueError, match=r"0 times in some\.py"):
        gone.applied("b = 1")
    with pytest.raises(ValueError, match="2 times"):
        gone.applied("a = 1\na = 1")
