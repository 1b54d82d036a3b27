"""A learner of several processes that `torchrun` started: the one place that knows `torch.distributed` (docs/adr/0033).

Rank 0 is the learner, the others follow it. Enters: passes, as `engine.ranks` says. Whatever is drawn, the loss, the
optimiser and every store are rank 0's alone, which sends the adapter's weights with each pass; followers hold a base,
the same as rank 0's, and remember nothing between passes. So a fit is what one process would make, but for the order in
which sums are rounded. What a share raises is raised at rank 0, and the followers go on.

Shares travel as pickles over gloo, without encryption: for machines that trust each other and the network between them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
import torch
import torch.distributed as dist

from plaudit import __version__
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.ranks import Here, Made, Ranks, Share
from plaudit.errors import InternalError, LearnerProcessLost, Misconfigured, PlauditError
from plaudit.telemetry import places

# How long a follower waits for its next pass: evidence may take months. A rank 0 that ends closes the connection.
_IDLE = dt.timedelta(days=365)

log = structlog.get_logger(__name__)


def place(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank of this process and number of processes, as `torchrun` tells them; 0 of 1 without it."""
    try:
        rank, size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size or (size > 1 and not environ.get("MASTER_ADDR")):
        found = ", ".join(f"{name}={environ.get(name)}" for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
        raise Misconfigured(f"{found}: start the learner by torchrun, or unset all of them", setting="RANK")
    return rank, size


def lead(here: Here, seconds: float) -> Ranks:
    """The processes that `torchrun` started, at rank 0, once all have come.

    `seconds`: how long it waits for another one, now and at each pass. Raises LearnerProcessLost, or
    Misconfigured if one of them computes with something else.
    """
    return _Leading(here, seconds)


def follow(here: Here) -> None:
    """Compute shares for rank 0 until it ends; raises LearnerProcessLost if it goes away."""
    with _or_lost("rank 0 of this learner went away"):
        _begin(_IDLE)
        dist.gather_object(_facts(here), None, dst=0)
    try:
        _follow(here)
    finally:
        dist.destroy_process_group()


def begin(seconds: float) -> None:
    """Come together before `lead` or `follow`: for a base that is loaded in slices. `seconds` as for `lead`."""
    rank = place()[0]
    backend = "gloo"
    if torch.cuda.is_available():  # what is said stays on the CPU; slices are on GPUs, one for each process
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    with _or_lost("the processes of this learner did not come together"):
        _begin(_IDLE if rank else dt.timedelta(seconds=seconds), backend)


def _begin(patience: dt.timedelta, backend: str = "gloo") -> None:
    if dist.is_initialized():
        return
    rank, size = place()
    # Each process has a patience of its own.
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=patience)
    log.info("processes share the passes of fits", rank=rank, processes=size)


def _facts(here: Here) -> dict[str, str]:
    """What all of them must have alike: a share that is computed otherwise is another policy's."""
    return {
        "base": here.base.digest,
        # Followers that hold a slice have no engine.
        "format": f"{here.base.dtype}, {here.base.format}, {'' if here.base.slices else here.engine.base_dtype}",
        "torch": torch.__version__,
        "plaudit": __version__,
    }


def _check_alike(found: Sequence[Mapping[str, str]]) -> None:
    own = found[0]
    for rank, other in enumerate(found):
        for name in own:
            if other[name] != own[name]:
                raise Misconfigured(
                    f"process {rank} of this learner has another {name} ({other[name]}) than process 0 ({own[name]}); "
                    "start all of them from one installation, on machines of one kind, with the same settings",
                    setting="model.path",
                )


@contextlib.contextmanager
def _or_lost(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's and its store's are no finer
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise LearnerProcessLost(f"{what} ({why[:200]}); start all of them again") from error


# What rank 0 says ------------------------------------------------------------------------------------


class _Adapter(NamedTuple):
    """An adapter's name, its shape (layers, rank, alpha, the layer above it) and its weights (N,), fp32."""

    name: str
    shape: tuple[int, int, int, int]
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Pass:
    """Compute a share, and keep its graph if `gradient`."""

    work: Callable[[Here, Any], Any]
    share: Any
    adapter: _Adapter | None
    gradient: bool


@dataclass(frozen=True, slots=True)
class _Back:
    """Send a gradient back through the last pass; None if it had no work."""

    gradient: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Along:
    """Gather along for a part of the base that rank 0 needs by itself."""


class _Failed(NamedTuple):
    """In place of what a follower's share came to."""

    error: PlauditError

    @classmethod
    def by(cls, error: Exception) -> _Failed:
        """Our own errors as they are; of others only the kind, for their words may quote people's."""
        if isinstance(error, PlauditError):
            return cls(error)
        rank = place()[0]
        log.error("a share of a pass broke", rank=rank, places=places(error))
        return cls(InternalError(f"{type(error).__name__} at process {rank} of this learner; its log says where"))


def _together(base: Base) -> contextlib.AbstractContextManager[None]:
    """A block in which all processes compute: of a sliced base they gather its parts together."""
    return contextlib.nullcontext() if base.slices is None else base.slices.together()


def _raise_failed(found: Sequence[Any]) -> None:
    for each in found:
        if isinstance(each, _Failed):
            raise each.error


class _Leading:
    """Ranks over gloo, at rank 0."""

    def __init__(self, here: Here, seconds: float) -> None:
        self._here, self.size = here, place()[1]
        self._what = f"a process that shares this learner's passes went away, or gave no answer for {seconds:g} s"
        self._lost: LearnerProcessLost | None = None
        # The last `forward`: own result with its graph, and by rank what the loss sees of it.
        self._own: torch.Tensor | None = None
        self._seen: list[torch.Tensor | None] = []
        found: list[Any] = [None] * self.size
        with self._talking():
            _begin(dt.timedelta(seconds=seconds))
            dist.gather_object(_facts(here), found, dst=0)
        try:
            _check_alike(found)
        except Misconfigured:
            self.close()
            raise
        self.samplers = self.size
        if here.base.slices is not None:
            self.samplers = 1
            here.base.slices.announce = lambda: self._say([_Along()] * self.size)

    def spread(
        self, work: Callable[[Here, Share], Made], shares: Sequence[Share | None], adapter: str | None
    ) -> list[Made]:
        """See Ranks."""
        with torch.no_grad():
            return [made for made in self._made(work, shares, adapter, gradient=False) if made is not None]

    def forward(
        self, work: Callable[[Here, Share], torch.Tensor], shares: Sequence[Share | None], adapter: str
    ) -> torch.Tensor:
        """See Ranks. The loss sees leaves, so that its backward pass ends there and `backward` runs on all ranks."""
        made = self._made(work, shares, adapter, gradient=True)
        self._own = made[0]
        self._seen = [None if each is None else each.detach().requires_grad_(True) for each in made]
        return torch.cat([each for each in self._seen if each is not None])

    def backward(self, adapter: str) -> None:
        """See Ranks."""
        slopes = [None if each is None else each.grad for each in self._seen]
        parameters = adapters.parameters(self._here.base, adapter)
        self._say([_Back(slope) for slope in slopes])
        try:
            with self._computing():
                if self._own is not None and slopes[0] is not None:
                    self._own.backward(slopes[0])  # type: ignore[no-untyped-call]
        finally:  # the others answer, whatever happened here
            total = _gradient(parameters)
            found: list[Any] = [None] * self.size
            if self._lost is None:
                with self._talking():
                    dist.reduce(total, dst=0)
                    dist.gather_object(None, found, dst=0)
        _raise_failed(found)
        for parameter, part in zip(parameters, _parts(total, parameters), strict=True):
            parameter.grad = part.to(parameter.device)
        self._own, self._seen = None, []

    def check(self) -> None:
        """See Ranks."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """See Ranks."""
        with contextlib.suppress(LearnerProcessLost):
            self._say([None] * self.size)
        dist.destroy_process_group()

    def _made(
        self, work: Callable[[Here, Share], Made], shares: Sequence[Share | None], adapter: str | None, gradient: bool
    ) -> list[Made | None]:
        assert len(shares) == self.size, f"{len(shares)} shares for {self.size} ranks"
        self._own, self._seen = None, []  # an update that ended early left a graph here
        sent = None if adapter is None else _sent(self._here.base, adapter)
        own: Made | None = None
        found: list[Any] = [None] * self.size
        self._say([_Pass(work, share, sent, gradient) for share in shares])
        try:
            with self._computing():
                own = None if shares[0] is None else work(self._here, shares[0])
        finally:  # the others answer, whatever happened here
            if self._lost is None:
                with self._talking():
                    dist.gather_object(None, found, dst=0)
        _raise_failed(found)
        return [own, *found[1:]]

    def _say(self, orders: Sequence[Any]) -> None:
        with self._talking():
            dist.scatter_object_list([None], [None, *orders[1:]], src=0)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        try:
            with _together(self._here.base):
                yield
        except LearnerProcessLost as error:
            self._lost = error
            raise
        except (SystemExit, KeyboardInterrupt):
            if self._here.base.slices is not None and self._here.base.slices.lost:  # amid a gather
                self._lost = LearnerProcessLost("this learner was told to end")
            raise

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Once a process is lost the others no longer stand at one place: nothing more is asked of them."""
        self.check()
        try:
            with _or_lost(self._what):
                yield
        except LearnerProcessLost as error:
            self._lost = error
            raise
        except (SystemExit, KeyboardInterrupt):  # amid what was said
            self._lost = LearnerProcessLost("this learner was told to end")
            raise


def _sent(base: Base, name: str) -> _Adapter:
    config = base.peft.peft_config[name]
    layers = list(config.layers_to_transform)
    weights = torch.cat([p.detach().flatten() for p in adapters.parameters(base, name)]).cpu()
    return _Adapter(name, (len(layers), config.r, config.lora_alpha, max(layers) + 1), weights)


# What followers do -----------------------------------------------------------------------------------


def _follow(here: Here) -> None:
    kept: torch.Tensor | None = None
    name: str | None = None
    shapes: dict[str, tuple[int, int, int, int]] = {}
    while True:
        heard: list[Any] = [None]
        with _or_lost("rank 0 of this learner went away"):
            dist.scatter_object_list(heard, None, src=0)
        order = heard[0]
        if order is None:
            return
        if isinstance(order, _Pass):
            kept, name = None, None
            try:
                made, name = _computed(here, order, shapes)
            except LearnerProcessLost:
                raise
            except Exception as error:  # that share's trouble, and its turn's
                made = _Failed.by(error)
            if order.gradient and isinstance(made, torch.Tensor):
                kept, made = made, made.detach()
            dist.gather_object(made, None, dst=0)
        elif isinstance(order, _Along):
            with _together(here.base):
                pass
        else:
            assert name is not None, "a gradient belongs to an adapter"
            parameters, broken = adapters.parameters(here.base, name), None
            for parameter in parameters:
                parameter.grad = None
            try:
                with _together(here.base), adapters.active(here.base, name):
                    if kept is not None and order.gradient is not None:
                        kept.backward(order.gradient)  # type: ignore[no-untyped-call]
            except LearnerProcessLost:
                raise
            except Exception as error:  # that share's trouble, and its turn's
                broken = _Failed.by(error)
            kept = None
            dist.reduce(_gradient(parameters), dst=0)
            dist.gather_object(broken, None, dst=0)


def _computed(here: Here, order: _Pass, shapes: dict[str, tuple[int, int, int, int]]) -> tuple[Any, str | None]:
    """What a share comes to, and the name of the adapter in force."""
    with _together(here.base):
        name = None if order.adapter is None else _put(here.base, order.adapter, shapes)
        if order.share is None:
            return None, name
        with adapters.active(here.base, name), torch.set_grad_enabled(order.gradient):
            return order.work(here, order.share), name


def _put(base: Base, sent: _Adapter, shapes: dict[str, tuple[int, int, int, int]]) -> str:
    """The adapter that was sent, on this process's base."""
    if shapes.get(sent.name) != sent.shape:
        if sent.name in shapes:
            adapters.remove(base, sent.name)
        layers, rank, alpha, stop = shapes[sent.name] = sent.shape
        adapters.inject(base, sent.name, layers=layers, rank=rank, alpha=alpha, seed=0, stop=stop)
    parameters = adapters.parameters(base, sent.name)
    for parameter, part in zip(parameters, _parts(sent.weights, parameters), strict=True):
        parameter.data.copy_(part)
    return sent.name


def _gradient(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """The gradient as one tensor (N,), fp32, on the CPU."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float().cpu() for p in parameters])


def _parts(whole: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """One tensor (N,) as tensors of the parameters' shapes."""
    parts = torch.split(whole, [p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
