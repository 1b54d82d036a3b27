"""What the tree promises: who imports whom, which paths the pages name, and which words and tolerances are not used."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "service" / "plaudit"
PAGES = [ROOT / "README.md", ROOT / "docs" / "architecture.md"]
SOURCES = sorted(
    path
    for folder in ("service", "plugins", "tests", "benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if "v1" not in path.parts and "build" not in path.parts
)


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_import_contracts_hold():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_plaudit_imports_no_torch_and_one_copy():
    program = (
        "import sys, plaudit, plaudit.types, plaudit.errors, plaudit.domain, plaudit.settings, plaudit.cli\n"
        "heavy = {'torch', 'transformers', 'kafka', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not {'service', 'service.plaudit'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tests_run_on_one_copy_of_the_package():
    import plaudit

    assert Path(plaudit.__file__).parent == SERVICE
    assert not [name for name in sys.modules if name.startswith("service.plaudit")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_path_that_the_page_names_exists(page):
    """Code spans such as `serving/` or `docs/settings.md`, from the top or from service/plaudit."""
    spans = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|py|toml|proto|yaml))`", page.read_text(encoding="utf-8"))
    made_by_commands = re.compile(r"(demo-report|plaudit-data|\.venv|build)\b")
    named = {span for span in spans if not made_by_commands.match(span)}
    missing = sorted(n for n in named if not any((top / n).exists() for top in (ROOT, SERVICE, page.parent)))
    assert not missing


def test_architecture_page_tells_the_nine_stages():
    rows = re.findall(r"^\| (\d) \|.*\| (.*`.*) \|", PAGES[1].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 10))


def test_architecture_page_names_every_folder_of_the_service():
    page = PAGES[1].read_text(encoding="utf-8")
    folders = {path.parent.name for path in SERVICE.glob("*/__init__.py")}
    assert {"serving", "settings"} <= folders
    assert sorted(name for name in folders if f"`{name}/`" not in page) == []


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_no_numeric_assertion_is_too_loose_to_fail():
    """A relative tolerance above 1e-2 passes wrong numbers: say `abs=` or `atol=` with its reason instead."""
    loose = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("rtol", "rel") and isinstance(node.value, ast.Constant):
                value = node.value.value
                loose += [f"{path.relative_to(ROOT)}:{node.value.lineno} {node.arg}={value}"] * (value > 1e-2)
    assert not loose


# Written apart, so that this file does not hold what it looks for.
FORBIDDEN = {
    "history or intent in a comment": r"#.*\b(this P" + r"R|FIX" + r"ME|XX" + r"X|TO" + r"DO(?!\(#\d+\)))",
    "a place on somebody's machine": r"(?<![\w.])/(home/\w+|Us" + r"ers/\w+|wo" + r"rk|op" + r"t|root)/",
    "remote code of a model": r"trust_remote_" + r"code\s*=\s*True",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_sources_are_free_of(what):
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


# The core: what runs in production. Simulated people, demos and what serves tests know the domains they are about.
OUTSIDE_THE_CORE = ("v1", "testing", "simulate", "demo", "cli/demo.py", "cli/people.py")
CORE = [
    path
    for path in sorted(SERVICE.rglob("*.py"))
    if not any(path.is_relative_to(SERVICE / outside) for outside in OUTSIDE_THE_CORE)
]
# An answer that repeats its question is called so too.
ENGLISH = {("release/texts.py", "echo")}


def shipped_domains():
    projects = (ROOT / "plugins").glob("*/pyproject.toml")
    announced = [tomllib.loads(path.read_text(encoding="utf-8"))["project"]["entry-points"] for path in projects]
    return {name for groups in announced for name in groups.get("plaudit.domains", {})}


def test_no_line_of_the_core_names_a_shipped_domain():
    """As a text of its own, as a channel (domain/tenant), as a distribution or as a package."""
    domains = shipped_domains()
    assert {"echo", "instruction", "moderation"} <= domains
    named = re.compile(
        "|".join(rf"[\"']{name}[\"']|\b{name}/|\bplaudit[-_]{name.replace('-', '[-_]')}\b" for name in sorted(domains))
    )
    found = []
    for path in CORE:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in named.finditer(line):
                place = path.relative_to(SERVICE).as_posix()
                if (place, match.group().strip("\"'")) not in ENGLISH:
                    found.append(f"{place}:{number} {line.strip()[:100]}")
    assert not found


# Who may ask what kind of action a domain has, and why.
MAY_ASK = {
    "learner/actions": "the learner's seam: `of` is the one place of the learner that asks",
    "serving/generation.py": "the door: Generate and Choose",
    "serving/server.py": "which domains the HTTP door offers as models",
    "learner/plan.py": "the interactions that a plan makes up",
    "learner/valuing.py": "the door of `plaudit release estimate`",
    "learner/adopt.py": "the door of `plaudit release import`",
    "exchange/importing.py": "the door of `plaudit evidence import`",
    "types.py": "what an interaction is",
    "domain.py": "what a domain may declare",
    "plugins/returned.py": "what its members may return",
    "eventlog/bodies.py": "the names of both kinds in records",
}


def test_nobody_but_the_seams_asks_for_a_kind_of_action():
    """`Action.CHOICE` and `Action.COMPLETION`, wherever they stand."""
    asks = []
    for path in CORE:
        place = path.relative_to(SERVICE).as_posix()
        if not any(place == one or place.startswith(f"{one}/") for one in MAY_ASK):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("Action"):
                    asks.append(f"{place}:{node.lineno} {ast.unparse(node)}")
    assert not asks, "ask learner.actions.of, or let the record say it (Interaction.options)"


def test_modules_are_named_after_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert not [str(path.relative_to(ROOT)) for path in SOURCES if path.stem in vague or path.parent.name in vague]


def test_generated_code_is_not_newer_than_the_runtime_that_is_asked_for():
    """A lower bound below the generator's version would install a runtime that refuses to import the code."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    grpc_code = (SERVICE / "v1" / "feedback_pb2_grpc.py").read_text(encoding="utf-8")
    generated = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", grpc_code)[1]
    assert f'"grpcio>={generated}"' in project
    header = (SERVICE / "v1" / "feedback_pb2.py").read_text(encoding="utf-8")
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", header)[1]
    wanted = re.search(r'"protobuf>=([\d.]+)"', project)[1]
    assert tuple(map(int, wanted.split("."))) >= tuple(map(int, protobuf.split(".")))


def test_nothing_points_to_a_page_that_is_not_here():
    """ "methods 4.5" or "architecture 8" name pages that no reader of this repository has."""
    elsewhere = re.compile(
        r"\b(?:methods|architecture)(?:\.md)? (?:§ ?)?\d|\((?:methods|architecture)[,:)]", re.IGNORECASE
    )
    found = []
    for path in tracked():
        if path.suffix in {".py", ".md", ".proto", ".yaml", ".toml", ".json"} and path != Path(__file__).resolve():
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if elsewhere.search(line)]
    assert not found


def test_every_mutant_changes_a_line_that_is_there():
    """`make mutants` runs once a week; a line that moved is noticed here."""
    stale = []
    for mutant in tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))["mutant"]:
        path = ROOT / mutant["file"]
        if not path.exists() or path.read_text(encoding="utf-8").count(mutant["before"]) != 1:
            stale.append(f"{mutant['name']}: {mutant['file']}")
        stale += [test for test in mutant["tests"] if not (ROOT / test.partition("::")[0]).exists()]
    assert not stale
