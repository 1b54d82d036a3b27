"""One PPO iteration of this learner beside TRL's PPOTrainer: time and memory, on the same model, adapters and prompts.

An iteration samples four completions for each of eight new prompts, scores them by a reward model, takes the log-probs
under the base, and makes four epochs of updates. Both sides run in processes of their own and take turns (`sides.py`).
They do the same work: completions, their tokens and updates of each round are counted on both sides and must be equal.

What differs is by design, and is what is compared. Ours has one copy of the base for policy, reference and reward, a
prompt's tokens stand once in a pass for all its completions, the layers below the adapters run once, and advantages are
leave-one-out; two base answers per prompt, on which our rewards are centred, are sampled and scored within the
measured time. TRL has a value model and a reward model beside the policy; its value model is trained as a whole, as in
its own examples, or with `--value adapters` by adapters as the policy is.

The peer runs in an environment of its own, since it pins its own libraries:

    python -m venv /tmp/trl && /tmp/trl/bin/pip install torch trl peft
    python benchmarks/ppo.py --peer-python /tmp/trl/bin/python --layers 8 4 --rounds 5 --out benchmarks/results/ppo.json

A GPU (`--device cuda`) has not been measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sides
import torch
from plaudit.engine.base import Base
from plaudit.engine.frozen import quicken
from plaudit.engine.packed import number_format
from plaudit.engine.protocol import EncodedPrompt, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.learner.context import LEARNER_SLOTS
from plaudit.policy.loop import on_the_base
from plaudit.policy.optimizer import CompletionTask, Rewarded
from plaudit.policy.rollout import Sample, TrainPrompt, sample
from plaudit.policy.train import PolicyTrainer
from plaudit.reward.completion import Completion
from plaudit.reward.model import RewardModel
from plaudit.settings import EngineSettings, ModelSettings, PolicySettings, RewardSettings
from plaudit.types import Channel, Message, Prompt, Sampling
from sized import ALPHA, RANK, model_folder

HERE = Path(__file__).resolve().parent
BASE = ReleaseKey("bench/default", 0, "base")
TEMPERATURE, REFERENCES = 0.7, 2


def main() -> None:
    arguments = parsed()
    if arguments.side:
        answer(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="plaudit-ppo-") as scratch:
        folder = arguments.models or Path(scratch)
        model_folder(folder, arguments.size)
        rows = [measured(folder, layers, arguments) for layers in arguments.layers]
    sides.write({"benchmark": "ppo", "size": arguments.size, "rows": rows, **sides.machine()}, arguments.out)
    if arguments.out is not None:
        bars = {
            f"adapters on {row['adapter layers']} layers": {name: row[name]["cpu seconds"] for name in row["sides"]}
            for row in rows
        }
        title = f"One PPO iteration, {arguments.size}, {arguments.threads} thread(s)"
        sides.draw(arguments.out.with_suffix(".png"), title, "seconds of processor", bars)


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.options(parser)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 4], help="upper layers that carry adapters")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=16, help="completions of an update")
    parser.add_argument("--value", choices=("whole", "adapters"), default="whole", help="how TRL's value model learns")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def measured(folder: Path, layers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: both sides with adapters on the same layers."""
    work = [
        *("--size", arguments.size, "--layers", str(layers), "--models", str(folder), "--device", arguments.device),
        *(f"--{name}={getattr(arguments, name)}" for name in ("prompts", "samples", "prompt", "new", "epochs")),
        *(f"--{name}={getattr(arguments, name)}" for name in ("minibatch", "threads", "dtype", "value", "rounds")),
    ]
    commands = sides.commands(arguments.peer_python, [__file__, "--side", *work], [HERE / "trl_ppo.py", *work])
    facts, found = sides.in_turns(commands, rounds=arguments.rounds, warm=1, threads=arguments.threads)
    done = [{key: each[key] for key in ("completions", "tokens", "updates")} for own in found.values() for each in own]
    assert all(each == done[0] for each in done), f"the sides did not do the same work: {done}"
    parts = {key: value for key, value in vars(arguments).items() if key in ("value", "dtype", "device", "threads")}
    return {
        "adapter layers": layers,
        "work of a round": done[0],
        "sides": list(found),
        **sides.compared(found),
        "versions": {name: own["versions"] for name, own in facts.items()},
        **parts,
    }


def answer(arguments: argparse.Namespace) -> None:
    """The rounds of our side."""
    rounds = sides.Rounds()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="plaudit-ppo-ours-") as scratch, ExitStack() as cleanup:
        ours = Ours(arguments, Path(scratch), cleanup)
        rounds.wait(versions={"torch": torch.__version__})
        for number in range(1_000_000):
            rounds.wait(**ours.iterate(number))


class Ours:
    """The learner's own iteration."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path, cleanup: ExitStack) -> None:
        self._arguments = arguments
        source = model_folder(arguments.models or scratch, arguments.size)
        base = self._base = Base.load(source, device=arguments.device, dtype="float32")
        # Completions end at their length alone, here as there.
        base.eos_ids = frozenset()
        model = ModelSettings(adapter_layers=arguments.layers[0], adapter_rank=RANK, adapter_alpha=ALPHA)
        rows = arguments.prompts * arguments.samples
        # As the learner sets up an engine for rollouts, and a lane for the references: a turn asks for all of its own
        # at once, so that its lanes are full.
        widths = EngineSettings(
            widths=tuple(sorted({arguments.prompts * REFERENCES, rows, 2 * rows})),
            prefill_chunk=max(16, rows * 64),
            adapter_slots=LEARNER_SLOTS,
            dtype=arguments.dtype,
        )
        self._engine = TorchEngine(base, widths, model)
        cleanup.callback(self._engine.close)
        quicken(base, number_format(arguments.dtype))
        self._engine.stage(BASE, None, temperature=TEMPERATURE)
        self._reward = RewardModel(base, RewardSettings(), model)
        self._reward.freeze()
        self._references: dict[str, list[Completion]] = {}
        settings = PolicySettings(
            temperature=TEMPERATURE,
            prompts=arguments.prompts,
            samples=arguments.samples,
            epochs=arguments.epochs,
            minibatch=arguments.minibatch,
            max_tokens=arguments.new,
            update_kl=10.0,  # no epoch ends early
            practice_share=0.0,
        )
        task = CompletionTask(
            channel=Channel("bench", "default"),
            engine=self._engine,
            base=base,
            live=None,
            data=None,  # type: ignore[arg-type]  # an iteration does not read it
            references=None,  # type: ignore[arg-type]  # sampled below, of each round's prompts
            train=(),
            held_out=(),
            reward=self._rewards,
            sampling=Sampling(temperature=TEMPERATURE, max_tokens=arguments.new),
            model=model,
            settings=settings,
            seed=0,
            folder=scratch / "work",
            progress=lambda line: None,
        )
        cleanup.enter_context(on_the_base(task))
        self._trainer = PolicyTrainer(task)
        self._sampling = task.sampling

    def iterate(self, number: int) -> dict[str, int]:
        """One iteration on prompts of its own; what it did."""
        arguments = self._arguments
        prompts = self._prompts(number)
        answers = sample(self._engine, prompts, BASE, self._sampling, samples=REFERENCES, seed=number)
        self._references = {prompt.group: [] for prompt in prompts}
        for each in answers:
            self._references[each.prompt.group].append(_whole(each))
        stats = self._trainer.iterate(prompts, number)
        count = arguments.prompts * arguments.samples
        return {"completions": count, "tokens": round(stats.mean_tokens * count), "updates": stats.updates}

    def _rewards(self, samples: Sequence[Sample]) -> Rewarded:
        """Scores of whole completions, centred on the base's answers: no plugin decides how much of them is shown."""
        made = [_whole(each) for each in samples]
        references = [self._references[each.prompt.group] for each in samples]
        scores = self._reward.shaped(self._reward.judge(made, references))
        self._reward.cache.forget(made)
        return Rewarded(scores.double(), [])

    def _prompts(self, number: int) -> list[TrainPrompt]:
        generator = torch.Generator().manual_seed(number)
        size = (self._arguments.prompts, self._arguments.prompt)
        ids = torch.randint(3, self._base.vocab_size, size, generator=generator).tolist()
        found = []
        for place, tokens in enumerate(ids):
            name = f"{number}-{place}"
            rendered = Prompt(messages=(Message("user", name),), group=name)
            found.append(TrainPrompt(rendered=rendered, encoded=EncodedPrompt(tuple(tokens))))
        return found


def _whole(each: Sample) -> Completion:
    return Completion(each.prompt.encoded.tokens, each.generated.tokens)


if __name__ == "__main__":
    main()
