"""The reward model on a tiny base: it learns a planted preference, files keep it, and nothing else moves."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.errors import BadArtifact
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.outcome import TurnEnded, TurnOutcome
from plaudit.learner.steps.fit import _waits_for_contrast
from plaudit.reward import fit as fitting
from plaudit.reward.batch import Batch, Shared, Treatment
from plaudit.reward.calibration import RewardReport, calibrate, expected_calibration_error, fit_temperature, measure
from plaudit.reward.comparisons import Comparison, comparisons, complete_references, other_references, thumb_contrasts
from plaudit.reward.completion import Completion
from plaudit.reward.dataset import collect
from plaudit.reward.fit import NothingToFit, fit_reward
from plaudit.reward.model import RewardModel, trunk_cache
from plaudit.reward.rows import pack
from plaudit.reward.shown import shown_tokens
from plaudit.reward.units import Unit
from plaudit.reward.weights import _shares_kept, bootstrap_weight
from plaudit.settings import ModelSettings, RewardSettings
from plaudit.testing.models import tiny_model
from plaudit.types import (
    Action,
    Binary,
    Candidate,
    Channel,
    Demo,
    Evidence,
    FeedbackKind,
    Interaction,
    Label,
    Message,
    Pair,
    PairOutcome,
    Purpose,
    RankingEvidence,
    Sampling,
    Scalar,
)

NOW = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
CHANNEL = Channel("toy", "test")
WORDS = [
    *("you", "your", "cup", "walk", "rain", "book", "kind", "warm"),
    *("plain", "short", "help", "list", "three", "how", "what", "the"),
]
LIKED = "tea"
SETTINGS = RewardSettings(epochs=1.5, units_per_step=6, heads=3, adapter_layers=2)
MODEL = ModelSettings()
READ = 3  # Two thirds of the tiny base's four layers, where heads read by default.
SPLITS = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.GATE, Split.CALIBRATION)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    # Threads only wait for each other on matrices this small.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Base.load(tiny_model(tmp_path_factory.mktemp("models") / "tiny"), device="cpu", dtype="float32")
    torch.set_num_threads(threads)


def candidate(base: Base, name: str, text: str, **other: object) -> Candidate:
    tokens = (*base.encode_text(text), min(base.eos_ids))
    fields = {
        "candidate_id": name,
        "release_version": 0,
        "release_digest": "",
        "tokens": tokens,
        "logprobs_raw": (0.0,) * len(tokens),
        "logprobs_sampled": (0.0,) * len(tokens),
        "text": text,
        "displayed_text": text,
        "finish_reason": None,
        "sampling": Sampling(),
        "seed": 0,
        "width": 4,
    }
    return Candidate(**(fields | other))


def interaction(name: str, group: str, candidates: Sequence[Candidate], prompt: Sequence[int] = (3, 4)) -> Interaction:
    return Interaction(
        interaction_id=name,
        channel=CHANNEL,
        purpose=Purpose.SERVE,
        action=Action.COMPLETION,
        messages=(Message("user", group),),
        prompt_group=group,
        candidates=tuple(candidates),
        completed_at=NOW,
        prompt_tokens=tuple(prompt),
    )


def row(
    name: str, evidence: Evidence, kind: FeedbackKind, who: str, split: Split, group: str = "g", **other: object
) -> EvidenceRow:
    fields = {
        "interaction_id": name,
        "feedback_id": f"f-{name}-{who}",
        "index": 0,
        "kind": kind,
        "evidence": evidence,
        "who": who,
        "accepted_at": NOW,
        "rater_split": split,
        "group_split": Split.TRAIN,
        "prompt_group": group,
    }
    return EvidenceRow(**(fields | other))


def frozen(interactions: Sequence[Interaction], rows: Sequence[EvidenceRow]) -> FrozenDataSet:
    return FrozenDataSet(
        channel=CHANNEL,
        as_of=NOW,
        digest="0" * 64,
        offsets=(),
        rows=tuple(rows),
        interactions={each.interaction_id: each for each in interactions},
    )


def sentence(rng: np.random.Generator) -> str:
    words = rng.choice(WORDS, size=rng.integers(3, 7)).tolist()
    if rng.random() < 0.5:
        words[rng.integers(len(words))] = LIKED
    return " ".join(words)


def planted(base: Base, size: int, seed: int = 0) -> FrozenDataSet:
    """People of several splits who all like one word, with leniencies of their own."""
    rng = np.random.default_rng(seed)
    interactions, rows = [], []
    leniency = rng.normal(size=25)
    for number in range(size):
        group = f"g{number % 40}"
        prompt = base.encode([Message("user", f"{WORDS[number % 16]} {WORDS[number % 5]}")]).tokens
        name, person = f"i{number:04}", int(rng.integers(25))
        # Two texts with and two without the word would be unlike served candidates: let chance decide.
        candidates = [candidate(base, f"c{i}", sentence(rng)) for i in range(4)]
        worth = np.array([3.0 if LIKED in c.text.split() else 0.0 for c in candidates])
        interactions.append(interaction(name, group, candidates, prompt))
        kind = rng.choice(["thumbs", "choice", "ranking", "correction"], p=[0.4, 0.35, 0.2, 0.05])
        evidence: Evidence
        if kind == "thumbs":
            up = rng.random() < 1 / (1 + np.exp(-(worth[0] - 1.5 + leniency[person])))
            evidence = Binary(candidate="c0", positive=bool(up))
        elif kind == "choice":
            lead = worth[0] - worth[1] + rng.logistic()
            outcome = PairOutcome.TIE if abs(lead) < 0.3 else PairOutcome.FIRST if lead > 0 else PairOutcome.SECOND
            evidence = Pair(first="c0", second="c1", outcome=outcome, tie_offered=True)
        elif kind == "ranking":
            order = np.argsort(-(worth + rng.gumbel(size=4)))
            evidence = RankingEvidence(order=tuple(f"c{i}" for i in order))
        else:
            evidence = Demo(candidate="c1", text=f"{LIKED} {sentence(rng)}", margin=0.2)
        rows.append(row(name, evidence, FeedbackKind(kind), f"rater{person}", SPLITS[person % 5], group))
    return frozen(interactions, rows)


@pytest.fixture(scope="module")
def data(base: Base) -> FrozenDataSet:
    return planted(base, 700)


@pytest.fixture(scope="module")
def weights_before(base: Base, data: FrozenDataSet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}


@pytest.fixture(scope="module")
def fitted(base: Base, data: FrozenDataSet, weights_before: dict[str, torch.Tensor]) -> Iterator[RewardModel]:
    model = fit_reward(base, data, {}, SETTINGS, MODEL, seed=3)
    yield model
    model.close()


def judged(base: Base, seed: int = 77) -> list[Completion]:
    rng = np.random.default_rng(seed)
    prompt = base.encode([Message("user", "kind rain")]).tokens
    return [Completion(prompt, base.encode_text(sentence(rng))) for _ in range(12)]


# Learning.


def test_the_full_fit_learns_a_planted_preference(fitted: RewardModel, data: FrozenDataSet, base: Base):
    rng = np.random.default_rng(5)
    held_out = []
    for number in range(60):
        prompt = base.encode([Message("user", f"{WORDS[number % 11]} {WORDS[number % 7]}")]).tokens
        plain = [w for w in sentence(rng).split() if w != LIKED] or ["cup"]
        liked = plain.copy()
        liked[int(rng.integers(len(liked)))] = LIKED
        held_out.append(
            (
                Completion(prompt, base.encode_text(" ".join(liked))),
                Completion(prompt, base.encode_text(" ".join(plain))),
            )
        )
    scores = fitted.scores([each for pair in held_out for each in pair]).mean(1).view(-1, 2)
    assert (scores[:, 0] > scores[:, 1]).float().mean().item() > 0.8


def test_calibration_raters_confirm_it_and_the_report_survives_json(fitted: RewardModel, data: FrozenDataSet):
    report = calibrate(fitted, data)
    assert report.comparisons > 100
    assert report.raters == 5
    # Candidates that both have the word, or both lack it, are coin flips: no model reaches more than about .75.
    assert report.accuracy > 0.58
    # With 23 comparisons a bin, chance alone makes .09 of a calibrated model.
    assert report.ece < 0.17
    assert report.nll <= report.nll_uncalibrated + 0.05
    assert sum(right for _, right in report.outcomes) / report.comparisons == pytest.approx(report.accuracy)
    read = RewardReport.from_json(report.to_json())
    assert dataclasses.replace(read, outcomes=report.outcomes) == report
    # The report travels with the release: it tells raters apart and names none.
    assert [right for _, right in read.outcomes] == [right for _, right in report.outcomes]
    assert len({who for who, _ in read.outcomes}) == report.raters
    assert not any(who in report.to_json() for who, _ in report.outcomes)


def test_heads_alone_learn_it_too_and_leave_the_base_without_adapter(base: Base, data: FrozenDataSet):
    model = fit_reward(
        base, data, {}, SETTINGS.model_copy(update={"adapter": False}), MODEL, split=Split.GATE, name="x"
    )
    assert model.adapter is None
    assert calibrate(model, data).accuracy > 0.6
    heads = model.scores(judged(base))
    assert not torch.allclose(heads[:, 0], heads[:, 1]), "bootstrap draws must tell the heads apart"


@pytest.mark.apart
def test_an_adapters_training_begins_at_the_heads_optimum(base: Base, data: FrozenDataSet):
    still = SETTINGS.model_copy(update={"adapter_lr": 0.0, "head_lr": 0.0})
    alone = SETTINGS.model_copy(update={"adapter": False})
    one, two = (fit_reward(base, data, {}, each, MODEL, seed=3, name="begin") for each in (still, alone))
    completions = judged(base)
    torch.testing.assert_close(one.scores(completions), two.scores(completions), atol=1e-4, rtol=1e-4)
    one.close()


def test_heads_read_two_thirds_of_the_way_up_unless_told_otherwise(base: Base):
    spans = [trunk_cache(base, SETTINGS.model_copy(update={"layer": layer})) for layer in (0, 2, 99)]
    assert [(each.start, each.stop) for each in spans] == [(1, READ), (0, 2), (2, 4)]


def test_all_treatments_are_measured_and_recorded(fitted: RewardModel):
    choice = fitted.facts["treatment_choice"]
    assert set(choice["nll"]) == {"A", "B", "C"}
    assert all(value > 0 for value in choice["nll"].values())
    assert choice["judged_by"] == "thumbs", "five calibration raters gave fewer pairs than LEAST_PAIRS"
    best = min("BC", key=lambda each: choice["nll"][each])
    better = choice["difference"] > choice["standard_error"]
    assert choice["chosen"] == (best if better else "A") == fitted.treatment.value


def test_the_same_seed_gives_the_same_model(base: Base):
    small = planted(base, 80, seed=9)
    settings = SETTINGS.model_copy(update={"epochs": 0.5})
    found = []
    for name in ("one", "two"):
        model = fit_reward(base, small, {}, settings, MODEL, seed=4, name=name, treatment=Treatment.CENTRED)
        found.append((model.weight.clone(), [p.detach().clone() for p in model.adapter_parameters()]))
        model.close()
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_split_without_evidence_is_refused(base: Base):
    with pytest.raises(NothingToFit, match="no act of gate raters compares anything; left out: none"):
        fit_reward(base, frozen([], []), {}, SETTINGS, MODEL, split=Split.GATE)


def test_evidence_that_compares_nothing_is_refused_with_counts(base: Base):
    asked = [interaction(f"i{n}", f"g{n}", [candidate(base, "c0", "tea")]) for n in range(4)]
    rows = [
        row(f"i{n}", Binary(candidate="c0", positive=True), FeedbackKind.THUMBS, f"r{n}", Split.TRAIN, f"g{n}")
        for n in range(3)
    ]
    same = Pair(first="c0", second="c0", outcome=PairOutcome.FIRST)
    rows += [row("i3", same, FeedbackKind.CHOICE, "r3", Split.TRAIN, "g3")]
    references = {"g0": [((3, 4), base.encode_text("cup"))]}
    with pytest.raises(NothingToFit) as error:
        fit_reward(base, frozen(asked, rows), references, SETTINGS, MODEL)
    assert "2 no_reference, 1 same_text, 1 thumbs_of_a_rater_without_contrast" in str(error.value)
    with pytest.raises(TurnEnded) as ended, _waits_for_contrast():
        fit_reward(base, frozen(asked, rows), references, SETTINGS, MODEL)
    assert ended.value.outcome is TurnOutcome.WAITED


def test_raters_whose_thumbs_all_point_one_way_are_fitted_by_what_they_allow(base: Base):
    """Contrasts need an up and a down of one rater; scores centred within the rater do not."""
    texts = ["tea", "cup", "tea walk", "rain"]
    asked = [interaction(f"i{n}", "g", [candidate(base, "c0", text)]) for n, text in enumerate(texts)]
    rows = [
        row(f"i{n}", Binary(candidate="c0", positive=n < 2), FeedbackKind.THUMBS, f"r{n // 2}", Split.TRAIN)
        for n in range(4)
    ]
    alone = SETTINGS.model_copy(update={"adapter": False})
    model = fit_reward(base, frozen(asked, rows), {}, alone, MODEL, name="oneway")
    assert model.treatment is Treatment.CENTRED
    model.close()


def test_references_are_of_exactly_the_thumbs_prompt(base: Base):
    asked = [
        interaction("i", "g", [candidate(base, "c0", "tea")], (3, 4)),
        interaction("j", "g", [candidate(base, "c0", "rain")], (3, 5)),
    ]
    thumb = Binary(candidate="c0", positive=True)
    data = frozen(asked, [row(name, thumb, FeedbackKind.THUMBS, "ann", Split.TRAIN) for name in "ij"])
    given = {"g": [((3, last), base.encode_text(text)) for last in (5, 4, 6) for text in ("cup", "walk", "warm")]}
    found = complete_references(data, base, given, groups=["g"], most=2)
    thumbs = [thumb for unit in collect(data, Split.TRAIN, base, SETTINGS).thumbs for thumb in unit.thumbs]
    for each in thumbs:
        cited = other_references(each, found)
        assert [c.prompt for c in cited] == [each.completion.prompt] * 2


def test_contrasts_of_thumbs_never_mix_centred_scores_with_others(base: Base):
    texts, last = ("tea", "rain", "cup"), (4, 5, 4)
    asked = [
        interaction(f"i{n}", "g", [candidate(base, "c0", text)], (3, end))
        for n, (text, end) in enumerate(zip(texts, last, strict=True))
    ]
    rows = [
        row(f"i{n}", Binary(candidate="c0", positive=n == 0), FeedbackKind.THUMBS, "ann", Split.CALIBRATION)
        for n in range(3)
    ]
    units = collect(frozen(asked, rows), Split.CALIBRATION, base, SETTINGS)
    assert len(thumb_contrasts(units, None)) == 2
    assert not thumb_contrasts(units, {})
    (only,) = thumb_contrasts(units, {"g": (Completion((3, 4), (7,)),)})
    assert (only.worse.prompt, len(only.better_references), len(only.worse_references)) == ((3, 4), 1, 1)


def test_treatments_are_judged_on_the_same_contrasts_if_some_thumbs_cannot_be_centred(base: Base):
    """One of the calibration rater's two contrasts has no reference: it judged PLAIN alone, and the fit broke."""
    texts, last, raters = ("tea", "rain", "tea", "rain", "cup"), (4, 4, 4, 5, 4), ("ann", "ann", "bob", "bob", "bob")
    asked = [
        interaction(f"i{n}", "g", [candidate(base, "c0", text)], (3, end))
        for n, (text, end) in enumerate(zip(texts, last, strict=True))
    ]
    rows = [
        row(
            f"i{n}",
            Binary(candidate="c0", positive=texts[n] == "tea"),
            FeedbackKind.THUMBS,
            who,
            Split.TRAIN if who == "ann" else Split.CALIBRATION,
        )
        for n, who in enumerate(raters)
    ]
    references = {"g": [((3, 4), base.encode_text("walk"))]}
    alone = SETTINGS.model_copy(update={"adapter": False})
    model = fit_reward(base, frozen(asked, rows), references, alone, MODEL, name="some")
    choice = model.facts["treatment_choice"]
    assert (choice["judged_by"], choice["count"]) == ("thumbs", 1)
    model.close()


# What moves, and what does not.


def test_the_fit_leaves_the_base_as_it_was(fitted: RewardModel, base: Base, weights_before: dict[str, torch.Tensor]):
    now = {name.replace(".base_layer", ""): tensor for name, tensor in base.model.state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in weights_before.items())
    moved = [p for p in fitted.adapter_parameters() if p.abs().sum() > 0]
    assert len(moved) == len(fitted.adapter_parameters()), "B starts at 0: every adapter weight must have moved"


def test_only_reward_parameters_take_gradient(base: Base, data: FrozenDataSet):
    model = RewardModel(base, SETTINGS, MODEL, name="fresh", seed=1)
    other = RewardModel(base, SETTINGS, MODEL, name="other", seed=1)
    units = collect(data, Split.TRAIN, base, SETTINGS)
    several = (*units.pairs[:3], *units.rankings[:2], *units.thumbs[:2])
    batch = Batch(several, {}, heads=3, seed=0, treatment=Treatment.CONTRAST)
    with model.switched_on():
        batch.loss(model.score(model.features(batch.completions)), model.shared, center=0.01).backward()
    mine = {id(p) for p in model.adapter_parameters()}
    for name, parameter in base.model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in mine), name
    assert all(p.grad is None for p in other.adapter_parameters())
    assert model.weight.grad is not None
    assert model.weight.grad.abs().sum() > 0
    model.close()
    other.close()


def test_switched_off_the_adapter_is_the_base(fitted: RewardModel, base: Base):
    tokens = torch.tensor([[*base.encode_text("tea for you")]])
    with torch.no_grad():
        off = base.upper(base.trunk(tokens, 0), 0)
        with adapters.active(base, None):
            again = base.upper(base.trunk(tokens, 0), 0)
        with fitted.switched_on():
            on = base.upper(base.trunk(tokens, 0), 0)
    assert torch.equal(off, again)
    assert (on - off).abs().max() > 1e-3


# Packing.


def test_packed_states_equal_those_of_each_completion_alone(fitted: RewardModel, base: Base):
    completions = judged(base)
    completions += [Completion(base.encode([Message("user", "cup")]).tokens, base.encode_text("how"))]
    completions += [Completion(completions[0].prompt, ())]
    assert len(pack(completions)) == 2, "two prompts: rows of one pass share the system text"
    packed = fitted.features(completions, trunk_cache(base, SETTINGS))
    end = base.tokenizer.eos_token_id
    for completion, feature in zip(completions, packed, strict=True):
        tokens = torch.tensor([[*completion.prompt, *completion.shown, end]])
        with torch.no_grad(), fitted.switched_on():
            state = base.trunk(tokens, READ)[0, len(completion.prompt) :]
        mean = (state[:-1] if completion.shown else state).mean(0)
        width = (base.hidden_size,)
        alone = torch.cat([torch.layer_norm(state[-1], width), torch.layer_norm(mean, width)])
        torch.testing.assert_close(feature.detach(), alone, atol=2e-4, rtol=1e-4)


def test_seeded_trunk_activations_serve_as_well_as_computed_ones(fitted: RewardModel, base: Base):
    completion = judged(base)[0]
    tokens = torch.tensor([[*completion.prompt, *completion.shown, base.tokenizer.eos_token_id]])
    cache = trunk_cache(base, SETTINGS)
    cache.put(completion, base.trunk(tokens, cache.start)[0])
    torch.testing.assert_close(fitted.scores([completion], cache), fitted.scores([completion]), atol=1e-4, rtol=1e-4)


def test_a_trunk_cache_of_other_layers_is_refused(fitted: RewardModel, base: Base):
    with pytest.raises(AssertionError, match="a cache of layers"):
        fitted.scores(judged(base), trunk_cache(base, SETTINGS.model_copy(update={"layer": 1})))


def test_what_stands_in_padding_never_reaches_loss_or_gradient(base: Base, data: FrozenDataSet):
    units = collect(data, Split.TRAIN, base, SETTINGS)
    found = complete_references(data, base, {}, groups={t.event.group for u in units.thumbs for t in u.thumbs}, most=3)
    for treatment in Treatment:
        batch = Batch(units.all, found, heads=2, seed=0, treatment=treatment)
        scores = torch.randn(len(batch.completions), 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        shared = Shared.start()
        loss = batch.loss(scores, shared, center=0.01)
        loss.backward()
        assert loss.isfinite()
        assert scores.grad.isfinite().all()
        assert all(parameter.grad.isfinite() for parameter in shared.all if parameter.grad is not None)


def test_minibatches_estimate_the_full_loss(base: Base, data: FrozenDataSet):
    units = collect(data, Split.TRAIN, base, SETTINGS)
    several = (*units.pairs[:12], *units.rankings[:6], *units.thumbs[:6])
    scores: dict[Completion, torch.Tensor] = {}
    rng = np.random.default_rng(0)

    def loss(part: Sequence[Unit], draw: np.random.Generator | None) -> float:
        batch = Batch(part, {}, heads=1, seed=0, treatment=Treatment.PLAIN, rng=draw)
        for completion in batch.completions:
            scores.setdefault(completion, torch.from_numpy(rng.normal(size=1)).float())
        rows = torch.stack([scores[each] for each in batch.completions])
        return batch.loss(rows, Shared.start(), center=0.01).item()

    full = loss(several, None)
    draw = np.random.default_rng(1)
    epochs = [sum(loss(step, draw) for step in fitting._steps(several, 6, draw)) for _ in range(40)]
    assert np.mean(epochs) == pytest.approx(full, abs=4 * np.std(epochs) / np.sqrt(40) + 1e-3)


# Files.


def test_a_saved_model_gives_equal_scores(fitted: RewardModel, base: Base, tmp_path: Path):
    fitted.save(tmp_path)
    loaded = RewardModel.load(base, tmp_path, name="loaded")
    completions = judged(base)
    references = [completions[:4]] * len(completions)
    # A cache of its own each: trunk bits depend on what shared a pass.
    caches = [trunk_cache(base, SETTINGS), trunk_cache(base, SETTINGS)]
    one, two = (m.scores(completions, cache) for m, cache in zip((loaded, fitted), caches, strict=True))
    assert torch.equal(one, two)
    one, two = (m.judge(completions, references, cache) for m, cache in zip((loaded, fitted), caches, strict=True))
    assert torch.equal(one, two)
    assert (loaded.treatment, loaded.temperature, loaded.facts) == (fitted.treatment, fitted.temperature, fitted.facts)
    loaded.close()


@pytest.mark.parametrize(
    "damage", ["heads", "adapter", "card", "missing", "pickle", "foreign base", "wrong heads", "truncated card"]
)
def test_a_damaged_or_foreign_file_is_a_bad_artifact(fitted: RewardModel, base: Base, tmp_path: Path, damage: str):
    fitted.save(tmp_path)
    card = json.loads((tmp_path / "reward.json").read_text())
    if damage in ("heads", "adapter"):
        path = tmp_path / ("heads.safetensors" if damage == "heads" else "adapter/adapter_model.safetensors")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "card":
        (tmp_path / "reward.json").write_text("[]")
    elif damage == "missing":
        (tmp_path / "heads.safetensors").unlink()
    elif damage == "pickle":
        torch.save({"weight": torch.zeros(1)}, tmp_path / "heads.safetensors")
    elif damage == "foreign base":
        (tmp_path / "reward.json").write_text(json.dumps(card | {"base_digest": "f" * 64}))
    elif damage == "wrong heads":
        (tmp_path / "reward.json").write_text(json.dumps(card | {"settings": card["settings"] | {"heads": 7}}))
    else:
        (tmp_path / "reward.json").write_text((tmp_path / "reward.json").read_text()[:50])
    before = set(base.peft.peft_config)
    with pytest.raises(BadArtifact):
        RewardModel.load(base, tmp_path, name="damaged")
    assert set(base.peft.peft_config) == before


# The score that PPO receives.


@pytest.fixture
def bare(base: Base) -> RewardModel:
    return RewardModel(base, SETTINGS.model_copy(update={"adapter": False}), MODEL)


def test_centred_pessimistic_and_shaped_by_pencil(bare: RewardModel):
    bare.scales = torch.tensor([1.0, 2.0, 0.5])
    scores = torch.tensor([[3.0, 5.0, 2.0]])
    references = torch.tensor([[[1.0, 0.0, 1.0], [3.0, 2.0, 1.0]]])  # (1, 2, 3), means 2, 1, 1
    centred = bare.reference_centred(scores, references)
    assert centred.tolist() == [[1.0, 2.0, 2.0]]
    # Mean 5/3; deviations -2/3, 1/3, 1/3: variance (6/9) / 2 = 1/3.
    lower = bare.pessimistic(centred)
    assert lower.item() == pytest.approx(5 / 3 - 0.5 * (1 / 3) ** 0.5)
    assert bare.shaped(torch.tensor(1.5)).item() == pytest.approx(1 / (1 + np.exp(-1)))


def test_masked_references_are_never_read(bare: RewardModel):
    references = torch.tensor([[[1.0, 0.0, 1.0], [torch.nan] * 3]])
    centred = bare.reference_centred(torch.ones(1, 3), references, torch.tensor([[True, False]]))
    assert centred.tolist() == [[0.0, 1.0, 0.0]]


def test_scales_pool_the_spread_within_prompts_and_ignore_that_between(bare: RewardModel, monkeypatch):
    values = {Completion((1,), (i,)): float(v) for i, v in enumerate((0, 2))}  # variance 2
    values |= {Completion((2,), (i,)): 100.0 + v for i, v in enumerate((0, 4))}  # variance 8
    values |= {Completion((3,), (0,)): 1e6}
    monkeypatch.setattr(bare, "scores", lambda several, cache=None: torch.tensor([[values[c]] * 3 for c in several]))
    bank = {str(p): [c for c in values if c.prompt == (p,)] for p in (1, 2, 3)}
    bare.measure_scales(bank)
    assert bare.scales.tolist() == pytest.approx([5**0.5] * 3)


# The data set.


def test_train_gate_and_calibration_share_no_event(base: Base, data: FrozenDataSet):
    seen = [
        {who for u in collect(data, split, base, SETTINGS).thumbs for who in [u.who]}
        | {c.who for c in comparisons(collect(data, split, base, SETTINGS))}
        for split in Split
    ]
    assert all(seen)
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_train_raters_on_gate_groups_are_left_out(base: Base):
    prompt = (3, 4)
    asked = interaction("i", "g", [candidate(base, "c0", "tea"), candidate(base, "c1", "cup")], prompt)
    pair = Pair(first="c0", second="c1", outcome=PairOutcome.FIRST)
    rows = [
        row("i", pair, FeedbackKind.CHOICE, "a", Split.TRAIN, group_split=Split.GATE),
        row("i", pair, FeedbackKind.CHOICE, "b", Split.GATE, group_split=Split.GATE),
    ]
    data = frozen([asked], rows)
    assert collect(data, Split.TRAIN, base, SETTINGS).events == 0
    assert collect(data, Split.GATE, base, SETTINGS).events == 1


def test_acts_that_name_nobody_teach_under_one_cap_and_judge_nothing(base: Base):
    asked = [
        interaction(f"i{n}", "g", [candidate(base, "c0", "tea"), candidate(base, "c1", "cup")], (3, 4))
        for n in range(42)
    ]
    pair = Pair(first="c0", second="c1", outcome=PairOutcome.FIRST)

    def said(split: Split, *named: str) -> FrozenDataSet:
        whos = ["nameless"] * 40 + list(named)
        return frozen(asked, [row(f"i{n}", pair, FeedbackKind.CHOICE, who, split) for n, who in enumerate(whos)])

    units = collect(said(Split.TRAIN, "fresh"), Split.TRAIN, base, SETTINGS)
    weight = {u.event.who: u.event.weight for u in units.pairs}
    assert weight["nameless"] / weight["fresh"] == pytest.approx(0.5)
    judges = collect(said(Split.CALIBRATION, "ann", "session:s"), Split.CALIBRATION, base, SETTINGS)
    assert [each.who for each in comparisons(judges)] == ["ann", "session:s"]
    assert judges.left_out == {"nameless": 40}


def test_acts_of_any_age_have_a_weight(base: Base):
    asked = [
        interaction(f"i{n}", "g", [candidate(base, "c0", "tea"), candidate(base, "c1", "cup")], (3, 4))
        for n in range(3)
    ]
    pair = Pair(first="c0", second="c1", outcome=PairOutcome.FIRST)
    # Four hundred days are forty thousand half-lives: no float holds what is left then.
    ages = {"old": 400, "older": 500, "fresh": 0}
    rows = [
        row(f"i{n}", pair, FeedbackKind.CHOICE, who, Split.TRAIN, accepted_at=NOW - dt.timedelta(days=days))
        for n, (who, days) in enumerate(ages.items())
    ]
    quick = SETTINGS.model_copy(update={"half_life_days": 0.01})
    weight = {u.event.who: u.event.weight for u in collect(frozen(asked, rows), Split.TRAIN, base, quick).pairs}
    assert weight == {"fresh": pytest.approx(3), "old": pytest.approx(0), "older": pytest.approx(0)}
    alone = collect(frozen(asked, rows[:2]), Split.TRAIN, base, quick)
    assert [u.event.weight for u in alone.pairs] == pytest.approx([1, 1])


def test_weights_decay_with_age_are_capped_a_rater_and_have_mean_one(base: Base):
    prompt = (3, 4)
    asked = [
        interaction(f"i{n}", "g", [candidate(base, "c0", "tea"), candidate(base, "c1", "cup")], prompt)
        for n in range(42)
    ]
    pair = Pair(first="c0", second="c1", outcome=PairOutcome.FIRST)
    rows = [row(f"i{n}", pair, FeedbackKind.CHOICE, "heavy", Split.TRAIN) for n in range(40)]
    rows += [row("i40", pair, FeedbackKind.CHOICE, "fresh", Split.TRAIN)]
    old = NOW - dt.timedelta(days=30)
    rows += [row("i41", pair, FeedbackKind.CHOICE, "old", Split.TRAIN, accepted_at=old)]
    units = collect(frozen(asked, rows), Split.TRAIN, base, SETTINGS)
    weight = {u.event.who: u.event.weight for u in units.pairs}
    assert np.mean([u.event.weight for u in units.pairs]) == pytest.approx(1)
    # One half-life is a half; 40 events under a cap of 20 count a half each.
    assert weight["old"] / weight["fresh"] == pytest.approx(0.5)
    assert weight["heavy"] / weight["fresh"] == pytest.approx(0.5)


def test_corrections_hold_at_most_a_fifth_of_the_weight(base: Base):
    prompt = (3, 4)
    asked = [
        interaction(f"i{n}", "g", [candidate(base, "c0", "tea"), candidate(base, "c1", "cup")], prompt)
        for n in range(12)
    ]
    rows = [
        row("i0", Pair(first="c0", second="c1", outcome=PairOutcome.FIRST), FeedbackKind.CHOICE, "p", Split.TRAIN),
        *(
            row(f"i{n}", Demo(candidate="c0", text="kind", margin=0.1), FeedbackKind.CORRECTION, f"r{n}", Split.TRAIN)
            for n in range(1, 12)
        ),
    ]
    units = collect(frozen(asked, rows), Split.TRAIN, base, SETTINGS)
    demos = sum(u.event.weight for u in units.demos)
    assert demos / (demos + units.pairs[0].event.weight) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        # Cutting signals after corrections let corrections hold half.
        ((50.0, 100.0, 10.0), (0.2, 0.3, 0.5)),
        ((50.0, 1.0, 10.0), (0.2, 1 / 13.75, 10 / 13.75)),
        # Small enough beside signals, too large once these are cut.
        ((19.0, 60.0, 21.0), (0.2, 0.3, 0.5)),
        ((50.0, 100.0, 0.0), (0.7, 0.3, 0.0)),
        ((5.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
        ((0.0, 5.0, 0.0), (0.0, 1.0, 0.0)),
    ],
)
def test_no_kind_holds_more_than_its_share_once_all_are_cut(weights: tuple[float, ...], shares: tuple[float, ...]):
    kinds = (FeedbackKind.CORRECTION, FeedbackKind.SIGNAL, FeedbackKind.THUMBS)
    of_kind = {kind: weight for kind, weight in zip(kinds, weights, strict=True) if weight}
    kept = {kind: weight * _shares_kept(of_kind).get(kind, 1.0) for kind, weight in of_kind.items()}
    found = [kept.get(kind, 0.0) / sum(kept.values()) for kind in kinds]
    assert found == pytest.approx(shares)
    assert _shares_kept({}) == {}


def test_ratings_become_thumbs_about_the_raters_own_median(base: Base):
    asked = [interaction(f"i{n}", "g", [candidate(base, "c0", "tea " * (n + 1))]) for n in range(3)]
    rows = [
        row(f"i{n}", Scalar(candidate="c0", value=v), FeedbackKind.RATING, "r", Split.TRAIN)
        for n, v in enumerate((0.9, 0.8, 1.0))
    ]
    units = collect(frozen(asked, rows), Split.TRAIN, base, SETTINGS)
    assert [t.positive for t in units.thumbs[0].thumbs] == [False, True]
    assert units.left_out == {"on_the_raters_median": 1}


def test_a_label_is_a_choice_among_the_options(base: Base):
    options = [candidate(base, f"c{i}", text, option_id=text) for i, text in enumerate(("cup", "tea", "rain"))]
    label = row("i", Label(candidate="c0", value="tea"), FeedbackKind.LABEL, "m", Split.TRAIN)
    (ranking,) = collect(frozen([interaction("i", "g", options)], [label]), Split.TRAIN, base, SETTINGS).rankings
    assert base.decode(ranking.order[0].shown) == "tea"
    assert ranking.observed == 1
    assert len(ranking.order) == 3


def test_shown_tokens_are_the_shortest_prefix_that_shows_the_text(base: Base):
    whole = candidate(base, "c", "tea cup rain", displayed_text="tea cup")
    shown = shown_tokens(base, whole)
    assert shown == whole.tokens[: len(shown)]
    assert "tea cup" in base.decode(shown)
    assert "tea cup" not in base.decode(shown[:-1])
    assert min(base.eos_ids) not in shown_tokens(base, candidate(base, "c", "tea cup rain"))


def test_a_rewritten_or_redacted_text_is_tokenised_anew(base: Base):
    rewritten = candidate(base, "c", "tea cup", displayed_text="kind book")
    redacted = candidate(base, "c", "tea cup", redacted=True)
    assert shown_tokens(base, rewritten) == base.encode_text("kind book")
    assert shown_tokens(base, redacted) == base.encode_text("tea cup")


def test_a_group_without_references_takes_its_own_base_candidates(base: Base):
    mine = [
        candidate(base, "c0", "tea", release_version=0),
        candidate(base, "c1", "cup", release_version=2),
    ]
    data = frozen([interaction("i", "g", mine), interaction("j", "h", mine[1:])], [])
    given = {"k": [((5,), (6, 7, min(base.eos_ids)))]}
    found = complete_references(data, base, given, groups=["g", "h", "k"], most=4)
    assert found["g"] == (Completion((3, 4), base.encode_text("tea")),)
    assert found["h"] == (Completion((3, 4), base.encode_text("cup")),)
    assert found["k"] == (Completion((5,), (6, 7)),)


def test_bootstrap_draws_are_binomial_and_replayable():
    draws = np.array([bootstrap_weight(f"e{n}", head, 0) for n in range(3000) for head in range(2)])
    shares = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(shares, [8 / 27, 12 / 27, 6 / 27, 1 / 27], atol=0.02)
    assert [bootstrap_weight("e", h, 0) for h in range(50)] == [bootstrap_weight("e", h, 0) for h in range(50)]
    assert [bootstrap_weight("e", h, 0) for h in range(50)] != [bootstrap_weight("e", h, 1) for h in range(50)]


# Calibration.


def test_temperature_recovers_the_scale_of_the_scores():
    rng = np.random.default_rng(0)
    true = rng.normal(size=20_000) * 1.5
    preferred = rng.random(len(true)) < 1 / (1 + np.exp(-true))
    lead = np.where(preferred, true, -true) * 3.0
    assert fit_temperature(lead) == pytest.approx(3.0, abs=0.15)


def test_calibration_error_by_pencil():
    # One bin each of two: |1 - .9| and |0 - .6|, half the mass each.
    error = expected_calibration_error(np.array([0.9, 0.6]), np.array([1.0, 0.0]))
    assert error == pytest.approx((0.1 + 0.6) / 2)


def test_equal_scores_are_calibrated(bare: RewardModel, monkeypatch):
    monkeypatch.setattr(bare, "scores", lambda several, cache=None: torch.zeros(len(several), 3))
    found = [Comparison(who, Completion((1,), (2,)), Completion((1,), (3,))) for who in "ab"]
    report = measure(bare, found)
    assert (report.accuracy, report.ece) == (0.5, 0.0)


def test_a_report_without_comparisons_is_null_where_it_knows_nothing(bare: RewardModel):
    report = measure(bare, [])
    assert report.comparisons == 0
    assert json.loads(report.to_json())["accuracy"] is None
    assert np.isnan(RewardReport.from_json(report.to_json()).accuracy)


def test_what_is_no_report_is_refused():
    with pytest.raises(BadArtifact):
        RewardReport.from_json('{"comparisons": 1}')
