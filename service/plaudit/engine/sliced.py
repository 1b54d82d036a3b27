"""A frozen base that fits no single device: each process of a learner holds a slice of it (docs/adr/0043).

In: a folder of safetensors, processes that `torchrun` started. Out: a Base like any other, whose layers, embedding and
head are gathered from all processes while they are computed with, one at a time, and then dropped again (torch's
`fully_shard`; Zhao et al. 2023, arXiv:2304.11277). Adapters are whole on each process.

A gather needs all processes, and their passes differ. So each says before a layer which one it needs next, and all
gather what any of them asks for; whoever has nothing left to compute goes on gathering for the others. Rank 0 may
compute by itself at any time: it tells the others to gather along (`Slices.alone`).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from plaudit.engine import fidelity, source
from plaudit.engine.attention import ATTENTION, register_attention
from plaudit.engine.base import Base, generation_config
from plaudit.engine.decoder import Stacked
from plaudit.engine.threads import settle_kernels
from plaudit.errors import LearnerProcessLost, Misconfigured
from plaudit.settings import Settings

_NOTHING = -1
# Layers of the copy on which it is tried out whether this engine computes the family as its own code does.
_TRIED_LAYERS = 2


class Slices:
    """What gathers the parts of a sliced base: each a module, or several that share weights."""

    def __init__(self, parts: Sequence[Sequence[Any]], device: torch.device) -> None:
        self._parts, self._device = parts, device
        self._held: int | None = None
        self._together = False
        self.lost = False
        # Rank 0's: tells the others to gather along.
        self.announce: Callable[[], None] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes enter; behind it they gather until none needs anything more."""
        self._together = True
        try:
            yield
        finally:
            try:
                while not self.lost and self._round(_NOTHING):
                    pass
            finally:
                self._together = False
                self.drop()

    def take(self, part: int) -> None:
        """Gather a part; what was held before is dropped."""
        if self._together:
            self._round(part)
            return
        assert self.announce is not None, "only rank 0 computes by itself"
        self.announce()
        with self.together():
            self._round(part)
            held, self._held = self._held, None
        self._held = held

    def drop(self) -> None:
        """Keep no part but for this process's slice of it."""
        if self._held is not None:
            self._parts[self._held][0].reshard()
            self._held = None

    def _round(self, wanted: int) -> bool:
        """Gather what any process asks for, and keep what is `wanted` here; whether anybody asked."""
        self.drop()
        try:
            mine = torch.tensor([wanted], device=self._device)
            asked = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(asked, mine)
            parts = sorted({int(each) for each in asked} - {_NOTHING})
            for part in parts:
                module = self._parts[part][0]
                module.unshard()
                if part == wanted:
                    self._held = part
                else:
                    module.reshard()
        except BaseException as error:  # amid a gather; also the SystemExit of a signal
            self.lost = True  # the others no longer stand at one place with this process
            if not isinstance(error, RuntimeError):  # gloo's and NCCL's are no finer
                raise
            raise LearnerProcessLost(
                "a process that holds a slice of this learner's base went away; start all of them again"
            ) from error
        return bool(parts)


class _Gathered:
    """What a part's `forward` is replaced by: gathers it for the pass, drops it, and gathers it again for the gradient.

    Autograd goes back in the order in which passes came, the last one first, so that what is held when the next part is
    taken has been gone through.
    """

    def __init__(self, slices: Slices, part: int, module: Any) -> None:
        self._slices, self._part, self._module = slices, part, module

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        self._slices.take(self._part)
        try:
            made: torch.Tensor = type(self._module).forward(self._module, *args, **options)
        finally:
            self._slices.drop()
        if made.requires_grad:
            made = _WayBack.apply(made, self)  # type: ignore[no-untyped-call]
        return made

    def take(self) -> None:
        """Gather it for the way back."""
        self._slices.take(self._part)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """Of a linear: the gradient (N, in) of its inputs, of the product's (N, out)."""
        self._slices.take(self._part)
        try:
            found: torch.Tensor = gradient.to(self._module.weight.dtype) @ self._module.weight
            return found
        finally:
            self._slices.drop()


class _WayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, made: torch.Tensor, part: _Gathered) -> torch.Tensor:
        ctx.part = part
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.part.take()
        return gradients[0], None


def load(settings: Settings, rank: int, size: int) -> Base:
    """This process's slice of the base that settings name; all processes that `torchrun` started call it.

    No process ever holds more of it than its slice and the part that is computed with: the model is built without
    weights, and of each tensor's rows those of the slice are read. Raises Misconfigured.
    """
    model = settings.model
    settle_kernels()
    register_attention()
    where = ("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device
    number = {"auto": torch.bfloat16 if where == "cuda" else torch.float32}.get(model.dtype)
    found = source.find(model.path)
    if found.gguf is not None:
        raise Misconfigured(
            "a GGUF file cannot be read in slices (model.shard); save the model as safetensors", setting="model.shard"
        )
    folder = found.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        config = AutoConfig.from_pretrained(str(folder))
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, dtype=number or getattr(torch, model.dtype))
        made.generation_config = generation_config(folder, config)
    except Exception as error:  # the libraries raise what they like for a folder that is incomplete or damaged
        raise Misconfigured(
            f"the model at {str(model.path)!r} cannot be read ({type(error).__name__}); give a folder with "
            "config.json, safetensors and tokenizer",
            setting="model.path",
        ) from error
    made.requires_grad_(False).eval()
    context = _tried(config, tokenizer, settings.engine.context_length)
    base = Base(made, tokenizer, source.digest(found, tokenizer))
    base.context_length = context
    made.set_attn_implementation(ATTENTION)
    device = torch.device(where, torch.cuda.current_device()) if where == "cuda" else torch.device(where)
    base.slices = _slice(base, folder, device, rank, size)
    return base


def _tried(config: Any, tokenizer: Any, context_length: int) -> int:
    """The context in force: tried out on a copy of the model with few layers and drawn weights."""
    few = copy.deepcopy(config)
    few.num_hidden_layers = min(_TRIED_LAYERS, config.num_hidden_layers)
    kinds = getattr(few, "layer_types", None)
    if kinds:
        few.layer_types = kinds[: few.num_hidden_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = AutoModelForCausalLM.from_config(few, dtype=torch.float32).requires_grad_(False).eval()
    base = Base(drawn, tokenizer, "")
    context = fidelity.check(base, ATTENTION, context_length)
    if not isinstance(base.decoder, Stacked):
        raise Misconfigured(
            f"a {type(drawn).__name__} is run by its own forward pass, which does not go in slices; "
            "set model.shard = false, or use a base of the Llama family",
            setting="model.shard",
        )
    return context


def _slice(base: Base, folder: Path, device: torch.device, rank: int, size: int) -> Slices:
    model: Any = base.model
    layers = [base.layer(index) for index in range(base.num_layers)]
    head, embedding = model.lm_head, base.embedding
    tied = head.weight is embedding.weight
    parts: list[list[Any]] = [[layer] for layer in layers]
    parts += [[embedding, head]] if tied else [[embedding], [head]]
    mesh = init_device_mesh(device.type, (size,))
    for part in parts:
        fully_shard(part if len(part) > 1 else part[0], mesh=mesh)
    model.to_empty(device=device)
    if tied:
        head._parameters["weight"] = embedding._parameters["weight"]
    _fill_positions(model, device)
    _fill(model, folder, rank, size)
    slices = Slices(parts, device)
    for number, part in enumerate(parts):
        for module in part:
            # FSDP's own hooks gather when this process comes by; here all have to agree on it first.
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
            module.forward = _Gathered(slices, number, module)
    return slices


def _fill_positions(model: Any, device: torch.device) -> None:
    """The one thing of a decoder that is not stored: the angles of positions."""
    decoder = model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config).to(device)
    own = {name for name, _ in decoder.rotary_emb.named_buffers(prefix="model.rotary_emb")}
    other = sorted({name for name, _ in model.named_buffers()} - own)
    if other:
        raise Misconfigured(
            f"{type(model).__name__} computes {other[0]} when it is loaded, which a sliced base does not; "
            "unset model.shard, or use another base",
            setting="model.shard",
        )


@torch.no_grad()
def _fill(model: PreTrainedModel, folder: Path, rank: int, size: int) -> None:
    stored = _stored(folder)
    for name, parameter in model.named_parameters():
        if name not in stored or tuple(stored[name].get_shape()) != tuple(parameter.shape):
            raise Misconfigured(
                f"the safetensors in {folder} have no tensor {name} of shape {tuple(parameter.shape)}, and a sliced "
                "base is read by the names of its parameters; save the model again with transformers, or unset "
                "model.shard",
                setting="model.shard",
            )
        if isinstance(parameter, DTensor):
            local = parameter.to_local()
            begin = min(rank * math.ceil(parameter.shape[0] / size), parameter.shape[0])
            local.copy_(stored[name][begin : begin + len(local)])
        else:
            parameter.copy_(stored[name][:])


def _stored(folder: Path) -> Mapping[str, Any]:
    """Slices of the tensors in the safetensors of a folder, by name; nothing is read yet."""
    files: list[Any] = [safe_open(file, framework="pt") for file in sorted(folder.glob("*.safetensors"))]
    return {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
