"""Keeps the chart's generated parts: the schema's `settings` and README.md's table of values.

Enters: service/plaudit/settings/ and helm/plaudit/values.yaml. Leaves: helm/plaudit/values.schema.json (its property
`settings` only) and the table between the markers of helm/plaudit/README.md. With --check it writes nothing and
exits with 1 where a file would change.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from plaudit.settings import Settings

CHART = Path(__file__).resolve().parent.parent / "helm" / "plaudit"
# Secrets come by reference, and the chart itself mounts the data directory.
NOT_IN_VALUES = ("data_dir", "serve.handle_keys", "serve.pseudonym_key", "store.url")
SENTENCE = re.compile(r"^(?P<indent> *)# -- (?P<sentence>.+)$")
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_]+):")
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"


def settings_schema() -> dict[str, Any]:
    """JSON schema of the settings that may stand in values, without references."""
    whole = Settings.model_json_schema()
    definitions = whole.pop("$defs")

    def plain(node: Any, path: str) -> Any:
        if isinstance(node, list):
            return [plain(item, path) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return plain(definitions[node["$ref"].rpartition("/")[2]], path)
        # Defaults are the program's; repeated here they would be a second truth.
        kept = {key: plain(value, path) for key, value in node.items() if key not in ("title", "default", "properties")}
        if "properties" in node:
            below = {name: f"{path}.{name}".lstrip(".") for name in node["properties"]}
            kept["properties"] = {
                name: plain(value, below[name])
                for name, value in node["properties"].items()
                if not below[name].startswith(NOT_IN_VALUES)
            }
        return kept

    schema: dict[str, Any] = plain(whole, "")
    schema["description"] = "Settings of all processes, rendered as TOML."
    # The templates read these, so a values file may not take them away with null.
    schema["required"] = ["log", "serve"]
    return schema


def values_table(text: str) -> str:
    """Markdown table of every documented key of values.yaml with its default."""
    values = yaml.safe_load(text)
    rows = ["| Key | Default | Meaning |", "|---|---|---|"]
    above: list[tuple[int, str]] = []
    sentence = ""
    for line in text.splitlines():
        if found := SENTENCE.match(line):
            sentence = found["sentence"]
        elif found := KEY.match(line):
            indent = len(found["indent"])
            above = [(depth, name) for depth, name in above if depth < indent] + [(indent, found["key"])]
            path = [name for _, name in above]
            if sentence:
                rows.append(f"| `{'.'.join(path)}` | `{_default(values, path)}` | {sentence} |")
            sentence = ""
    return "\n".join(rows)


def _default(values: Any, path: list[str]) -> str:
    for name in path:
        values = values[name]
    return json.dumps(values)


def rendered() -> dict[Path, str]:
    """What each file with a generated part should hold."""
    schema_path, readme_path = CHART / "values.schema.json", CHART / "README.md"
    schema = json.loads(schema_path.read_text(encoding="utf-8"))
    schema["properties"]["settings"] = settings_schema()
    readme = readme_path.read_text(encoding="utf-8")
    head, _, rest = readme.partition(BEGIN)
    tail = rest.partition(END)[2]
    table = values_table((CHART / "values.yaml").read_text(encoding="utf-8"))
    return {
        schema_path: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        readme_path: f"{head}{BEGIN}\n{table}\n{END}{tail}",
    }


def main() -> int:
    """Writes the generated parts, or with --check names the files that are stale."""
    stale = [path for path, text in rendered().items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            sys.stderr.write(f"{path.name} is stale: run `make chart-docs`\n")
        return 1 if stale else 0
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
