"""Finds words that a reader stumbles on: in pages, protos, the Makefile, docstrings, comments and messages.

`python scripts/plain.py [PATH...]` prints one line per finding and exits with 1 if there is any. docs/style.md says
what the rules are for; each has few false alarms. A line that must say it all the same carries the mark `plain: ok`.
Code spans (`like this`), fenced blocks and links' targets are not read.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = "plain: ok"

_STATE = (
    r"(absent|given|empty|zero|false|true|unset|unknown|missing|accepted|refused|needed|asked for|wanted|none|possible"
    r"|there (is|are|was|were) (one|none|no|any|nothing)|(there|it|they|one|none|nothing|nobody|neither|both|something)"
    r" (is|are|has|have|does|do|can|cannot|may|must|ends?|fails?|differs?|needs?|says?|names?|exists?|comes?)"
    r"|`[^`]+` (is|are)|[a-z_.]+ is (set|empty|false|true|absent|given|missing|on|off|named|none|not|zero|unset))"
)
RULES: tuple[tuple[str, str], ...] = (
    (rf"\bwhere (?={_STATE}\b)", '"if", unless a place is meant'),
    (rf"\b(raises? \w+|None|false|empty) where\b(?! {_STATE}\b)", '"if"'),
    (r"\biff\b", '"if and only if", or plain "if"'),
    (r"\butili[sz](e|es|ed|ing|ation)\b", '"use"'),
    (r"\bvia\b", '"by", "through" or "over"'),
    (r"\bleverag(e|es|ed|ing)\b(?! moss)", '"use"'),
    (r"\bmend(s|ed|ing)?\b", '"fix"'),
    (r"\bgone back to\b", '"rolled back to"'),
    (r"\bhidden taste\b", '"hidden preference"'),
    (
        r"\b(nats|tokens|requests|answers|samples|completions|looks|lines?|times|bytes|attempts?) an? "
        r"(second|minute|hour|day|sequence|token|prompt|stage|release|channel|turn|rater|person)\b",
        '"per"',
    ),
    (r"\bin order to\b", '"to"'),
    (r"\b(obviously|of course|simply)\b", "nothing: leave it out"),
    (r"\bmade again on an idle\b", '"generated again"'),
    (r"\bprior to\b", '"before"'),
    (r"\bin case (it|there|the|of an?)\b", '"if"'),
    (r"\b(thereof|therein|whence|hitherto|aforementioned)\b", "a plain word"),
)
# Words of toy languages, which nobody reads as prose.
VOCABULARY = ("vocabulary.py", "toy_language.py", "edits.py")
# First pages speak to people who do not know the glossary.
FIRST = (
    "README.md",
    "docs/first-assistant.md",
    "docs/thumbs.md",
    "docs/http.md",
    "docs/kubernetes.md",
)
FIRST_RULES: tuple[tuple[str, str], ...] = (
    (r"\bacts?\b(?! of)(?! on)", '"feedback" (a thumb, a choice, ...)'),
    (r"\bacts of feedback\b", '"pieces of feedback"'),
    (r"\bgold\b", '"hidden preference"'),
    (r"\bheld out\b", '"held-out prompts"'),
)
# Pages, but not the records of decisions, speak to people who did not grow up with English.
PAGE_RULES: tuple[tuple[str, str], ...] = (
    (r"\bwhoever\b", '"anyone who", or the person or program by name'),
    (r"\banew\b", '"again"'),
    (r"\bhidden gold\b", '"hidden preference"'),
)
# Regular expressions are no prose.
_PATTERN = re.compile(r"\\b|\(\?")
_COMPILED = [(re.compile(pattern, re.IGNORECASE), better) for pattern, better in RULES]
_FIRST = [(re.compile(pattern, re.IGNORECASE), better) for pattern, better in FIRST_RULES]
_PAGE = [(re.compile(pattern, re.IGNORECASE), better) for pattern, better in PAGE_RULES]


def main() -> None:
    """Print what is found."""
    found = [line for path in paths(sys.argv[1:]) for line in findings(path)]
    print("\n".join(found))
    sys.exit(int(bool(found)))


def paths(named: list[str]) -> list[Path]:
    """The files to read: those named, or all that git knows and people read."""
    if named:
        return [
            path
            for name in named
            for path in (sorted(Path(name).rglob("*.py")) if Path(name).is_dir() else [Path(name)])
        ]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return [ROOT / name for name in listed if name and read(name)]


def read(name: str) -> bool:
    """Whether a file's words are checked: pages (not the list of changes), protos, the Makefile, the package."""
    path = Path(name)
    if name in ("CHANGELOG.md", "docs/style.md") or name.startswith("service/plaudit/v1/") or path.name in VOCABULARY:
        return False
    return (
        path.suffix in {".md", ".proto"}
        or name == "Makefile"
        or (path.suffix == ".py" and path.parts[0] in {"service", "plugins"})
    )


def findings(path: Path) -> Iterator[str]:
    """One line per finding in a file."""
    name = path.resolve().relative_to(ROOT).as_posix() if path.resolve().is_relative_to(ROOT) else str(path)
    is_page = path.suffix == ".md" and not name.startswith("docs/adr/")
    rules = [*_COMPILED, *(_PAGE if is_page else []), *(_FIRST if name in FIRST else [])]
    content = path.read_text(encoding="utf-8")
    if not any(pattern.search(content) for pattern, _ in rules):
        return
    for number, text in sorted(set(texts(path, content))):
        if MARK in text:
            continue
        bare = re.sub(r"`[^`]*`|\]\([^)]*\)", "``", text) if path.suffix == ".md" else text
        for pattern, better in rules:
            for match in pattern.finditer(bare):
                yield f'{name}:{number}: "{match.group().strip()}": say {better}: {text.strip()[:110]}'


def texts(path: Path, content: str) -> Iterator[tuple[int, str]]:
    """Lines of words with their numbers: of a page without its code, of a program its texts and comments alone."""
    if path.suffix == ".md":
        fenced = False
        for number, line in enumerate(content.splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if not fenced:
                yield number, line
    elif path.suffix == ".py":
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _PATTERN.search(node.value):
                for offset, line in enumerate(node.value.splitlines()):
                    yield node.lineno + offset, line
        for token in tokenize.generate_tokens(io.StringIO(content).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    else:
        comment = "//" if path.suffix == ".proto" else "#"
        for number, line in enumerate(content.splitlines(), 1):
            if comment in line:
                yield number, line.partition(comment)[2]


if __name__ == "__main__":
    main()
