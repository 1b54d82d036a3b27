"""The folder from which servers load adapters.

In: an adapter's files wherever they lie. Out: its name, and a copy under that name which nobody changes. The name is
the SHA-256 of the files, so that one name means one set of weights for ever, on every server and for every process that
shares the servers. A server may read a file again long after it was loaded (its own cache of adapters is bounded), so a
copy stays as long as it may be wanted: the longest unused of more than `most` go.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from plaudit.engine import adapter_files
from plaudit.errors import BadArtifact, Misconfigured
from plaudit.settings import Settings

PREFIX = "plaudit-"


@dataclass(frozen=True, slots=True)
class Named:
    """An adapter on the shelf: its name at the servers, and its folder as they see it."""

    name: str
    path: str


class Shelf:
    """Copies of adapters in `folder`, which servers see as `there`."""

    def __init__(self, folder: Path, there: str, *, rank: int, most: int) -> None:
        self._folder = folder.absolute()
        self._there = there or str(self._folder)
        self._rank = rank
        self._most = most

    @classmethod
    def of(cls, settings: Settings) -> Shelf:
        """The shelf that settings name."""
        wanted = settings.engine.vllm
        return cls(
            Path(wanted.adapters) if wanted.adapters else settings.data_dir / "vllm-adapters",
            wanted.adapters_there,
            rank=settings.model.adapter_rank,
            most=settings.serve.cached_releases,
        )

    def put(self, adapter: Path) -> Named:
        """A copy of an adapter; raises BadArtifact if it is none that can be served."""
        config, state = adapter_files.read(adapter)
        if int(config["r"]) > self._rank:
            raise BadArtifact(f"adapter of rank {config['r']} is above model.adapter_rank ({self._rank}); raise it")
        if not all(bool(torch.isfinite(each).all()) for each in state.values()):
            raise BadArtifact("adapter has weights that are not finite numbers; train the release anew")
        sha = hashlib.sha256()
        for file in (adapter_files.CONFIG, adapter_files.WEIGHTS):
            sha.update((adapter / file).read_bytes())
        name = f"{PREFIX}{sha.hexdigest()[:32]}"
        try:
            self._copy(adapter, self._folder / name)
        except OSError as error:
            raise Misconfigured(
                f"an adapter cannot be copied to {self._folder} ({error.strerror}); set engine.vllm.adapters to a "
                "folder that this process may write and the servers can read",
                setting="engine.vllm.adapters",
            ) from error
        return Named(name, f"{self._there.rstrip('/')}/{name}")

    def remove(self, named: Named) -> None:
        """Deletes a copy that nobody will ask for again."""
        shutil.rmtree(self._folder / named.name, ignore_errors=True)

    def _copy(self, adapter: Path, to: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not to.is_dir():
            made = Path(tempfile.mkdtemp(dir=self._folder, prefix=".new-"))
            for file in (adapter_files.CONFIG, adapter_files.WEIGHTS):
                shutil.copyfile(adapter / file, made / file)
            made.chmod(0o755)  # servers run as other users
            try:
                made.rename(to)
            except OSError:  # another process was quicker
                shutil.rmtree(made)
                if not to.is_dir():
                    raise
        os.utime(to)
        kept = sorted(self._folder.glob(f"{PREFIX}*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[self._most :]:
            shutil.rmtree(old, ignore_errors=True)
