"""Words that readers stumble on stay out of pages, protos, help and messages (docs/style.md)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("plain", ROOT / "scripts" / "plain.py")
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)


def test_nothing_that_people_read_has_them():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "plain.py"], capture_output=True, text=True, check=False)
    assert not done.stdout.strip()


def found(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return [line.split(": ", 1)[1] for line in plain.findings(path)]


def test_a_page_is_read_without_its_code(tmp_path):
    code = "`where absent` and [where](where absent)\n```sh\nwhere absent\n```\n"
    page = f"Empty where absent.\n{code}The place where it stands.\n"
    assert len(found(tmp_path, "page.md", page)) == 1
    assert found(tmp_path, "page.md", "10 requests a second\n") == [
        '"requests a second": say "per": 10 requests a second'
    ]
    assert not found(tmp_path, "page.md", "A request per second; mend it. <!-- plain: ok -->\n")


def test_a_page_names_people_plainly_and_a_program_need_not(tmp_path):
    line = "Whoever holds it is asked anew by the hidden gold.\n"
    assert [each.split('"')[1] for each in found(tmp_path, "page.md", line)] == ["Whoever", "anew", "hidden gold"]
    assert not found(tmp_path, "program.py", f"# {line}")


def test_of_a_program_its_texts_and_comments_are_read_and_its_names_are_not(tmp_path):
    program = 'def mend():\n    """Mends.\n\n    None where absent.\n    """\n    return "utilize it"  # via nothing\n'
    lines = found(tmp_path, "program.py", program)
    assert [line.split('"')[1] for line in lines] == ["Mends", "where", "via", "utilize"]


def test_comments_of_protos_and_makefiles_are_read(tmp_path):
    assert len(found(tmp_path, "one.proto", "// Any where absent.\nstring where = 1;\n")) == 1
