"""What a turn asks again: prompts in their groups, and releases as they answer callers, if they draw at all."""

from types import SimpleNamespace

import pytest
from plaudit.decoding import channel_sampling, policy_temperature
from plaudit.domain import DecodeSpec
from plaudit.engine.protocol import EncodedPrompt, ReleaseKey
from plaudit.evidence.store import PromptRow
from plaudit.learner import actions
from plaudit.learner.context import Turn
from plaudit.learner.measure import Measurer
from plaudit.learner.outcome import TurnEnded, TurnOutcome
from plaudit.learner.steps.freeze import freeze
from plaudit.plugins import guard, load_plugins
from plaudit.policy.rollout import TrainPrompt
from plaudit.settings import EngineSettings, PolicySettings
from plaudit.types import Channel, Message, Option, Prompt
from plaudit_echo.plugin import Echo


@pytest.mark.parametrize("domain", ["echo", "echo-choice"])
def test_a_plugin_that_names_groups_otherwise_moves_no_prompt_between_training_and_the_gate(domain):
    plugin, policy = load_plugins((domain,))[domain], PolicySettings()
    turn = SimpleNamespace(
        plugin=plugin,
        engine=SimpleNamespace(
            encode=lambda messages: EncodedPrompt((1, 2)), encode_text=lambda text: (3,), context_length=1_000
        ),
        sampling=channel_sampling(plugin, policy),
        settings=SimpleNamespace(policy=policy, engine=EngineSettings()),
    )
    options = (Option("yes", "yes"), Option("no", "no")) if domain == "echo-choice" else ()
    row = PromptRow(
        group="as an earlier version named it",
        interaction_id="i",
        messages=(Message("user", "Is it so?"),),
        passages=(),
        prompt_tokens=(1, 2),
        policy_version="",
        options=options,
    )
    (prompt,), left_out = actions.of(plugin.declaration.action).prompts(turn, [row])
    assert (prompt.group, len(prompt.options), +left_out) == (row.group, len(options), {})


def test_releases_are_sampled_as_they_answer_callers():
    """What is live keeps its temperature when the settings get another one: the gate compares with what is served."""
    prompt = TrainPrompt(rendered=Prompt(messages=(), group="g"), encoded=EncodedPrompt((1, 2)))
    candidate, live, base = (ReleaseKey("echo/default", version, "d") for version in (2, 1, 0))
    jobs = []

    class Engine:
        def submit(self, asked):
            jobs.extend(asked)
            return [SimpleNamespace(result=lambda: SimpleNamespace(text="")) for _ in asked]

    policy = PolicySettings(temperature=0.7)
    turn = SimpleNamespace(
        plugin=load_plugins(("echo",))["echo"],
        settings=SimpleNamespace(policy=policy),
        channel=Channel("echo", "default"),
        learner=SimpleNamespace(
            registry=SimpleNamespace(manifest=lambda channel, version: SimpleNamespace(temperature=1.0))
        ),
    )
    new = channel_sampling(turn.plugin, policy)
    measurer = Measurer(
        None,
        Engine(),
        turn.plugin,
        None,
        None,
        new,
        samples=2,
        start_layer=0,
        seed=1,
        answers=None,
        probe_seed=2,
        detail=lambda text: None,
    )
    measurer.served[live] = Turn.served(turn, live.version)
    measurer.sampled([prompt], candidate, "candidate")
    measurer.sampled([prompt], live, "live")
    measurer.answers_to([prompt], live, base, 0, 1)
    assert [(job.release, job.sampling.temperature) for job in jobs] == [
        *[(candidate, 0.7)] * 2,
        *[(live, 1.0)] * 3,
    ]


def test_a_domain_that_draws_nothing_is_waited_for_by_name_and_has_a_temperature_for_its_releases():
    class Greedy(Echo):
        def decode_spec(self, prompt, mode):
            return DecodeSpec(temperature=0.0)

    (plugin,) = guard([Greedy()]).values()
    policy = PolicySettings(temperature=0.6)
    turn = SimpleNamespace(begin=lambda number, name: None, sampling=channel_sampling(plugin, policy))
    with pytest.raises(TurnEnded, match="takes the most probable token each time") as ended:
        freeze(turn)
    assert ended.value.outcome is TurnOutcome.WAITED
    assert policy_temperature(plugin, policy) == 0.6
