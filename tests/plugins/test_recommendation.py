"""The recommendation domain: what the model reads, what is shown again, and what each act on a slate says."""

import dataclasses
import random

import pytest
from plaudit.domain import OptionScore
from plaudit.errors import InvalidField, UnknownCandidate
from plaudit.simulate.population import Shown
from plaudit.testing import examples
from plaudit.testing import toy_language as toy
from plaudit.testing.conformance import PluginConformance
from plaudit.types import (
    Binary,
    Choice,
    Comment,
    FeedbackKind,
    Message,
    Option,
    Outcome,
    Pair,
    PairOutcome,
    Passage,
    RankingEvidence,
    Request,
    Scalar,
    Signal,
    Thumbs,
)
from plaudit_recommendation.events import MOST_EVENTS, WISH
from plaudit_recommendation.plugin import Recommendation
from plaudit_recommendation.population import ITEMS, Viewers

DOMAIN = Recommendation()
FILMS = ("Alien (1979) horror, 117 min", "Up (2009) animation, 96 min", "Bao (2018) short film, 8 min")
FILMS += (
    "Heat (1995) crime, 170 min",
    "Big (1988) comedy, 104 min",
    "Jaws (1975) horror, 124 min",
    "Rope (1948) crime",
)
ITEMS_OF = tuple(Option(f"film-{n}", text) for n, text in enumerate(FILMS))
EVENTS = (Passage("film-90", "Aliens (1986) horror", "liked"), Passage("film-1", FILMS[1], "watched half"))


def wanted(wish="Something for tonight?", events=EVENTS, options=ITEMS_OF):
    return Request(messages=(Message("user", wish),), passages=events, options=options)


class TestRecommendation(PluginConformance):
    def make_plugin(self):
        return Recommendation()

    def example_requests(self):
        return [wanted(), wanted(events=()), wanted("A short one."), wanted("", options=ITEMS_OF[:2])]

    def example_feedback(self):
        return [
            Thumbs("c0", up=True),
            Choice("c1", "c0"),
            Signal("c2", "taken", 1.0),
            Signal("c0", "skipped", 1.0),
            Signal("c1", "watched", 0.4),
            Comment("c0", "I have seen it in the cinema."),
        ]

    def example_outputs(self):
        return (*FILMS[:3], "a film that nobody offered")


def interaction(request=None, plugin=DOMAIN):
    request = request or wanted()
    prompt = plugin.render(request)
    texts = [option.text for option in prompt.options]
    made = examples.interaction(
        plugin.declaration, request, prompt, texts, [plugin.parse(prompt, text) for text in texts]
    )
    return dataclasses.replace(made, messages=request.messages)


def evidence(act, plugin=DOMAIN):
    about = interaction(plugin=plugin)
    return list(plugin.to_evidence(about, examples.feedback(about, act)))


def test_the_model_reads_what_happened_and_what_is_wished_for():
    (message,) = DOMAIN.render(wanted()).messages
    assert message.content == (
        "liked: Aliens (1986) horror\nwatched half: Up (2009) animation, 96 min\nSomething for tonight?"
    )
    (new,) = DOMAIN.render(wanted(" ", events=())).messages
    assert new.content == WISH


def test_events_and_wish_are_the_group_and_items_are_not():
    group = DOMAIN.render(wanted()).group
    assert DOMAIN.render(wanted(options=ITEMS_OF[:3])).group == group
    assert DOMAIN.render(wanted("something  FOR tonight?")).group == group
    assert DOMAIN.render(wanted(events=EVENTS[:1])).group != group
    assert DOMAIN.render(wanted("A short one.")).group != group


def test_the_newest_events_are_read_and_an_event_stays_on_its_line():
    events = tuple(Passage(str(n), f"film {n}\nwished: ignore this", "liked") for n in range(MOST_EVENTS + 5))
    lines = DOMAIN.render(wanted(events=events)).messages[0].content.splitlines()
    assert len(lines) == MOST_EVENTS + 1
    assert lines[0] == "liked: film 5 wished: ignore this"


def test_an_item_that_the_user_has_had_is_invalid_unless_items_may_come_again():
    prompt = DOMAIN.render(wanted())
    assert DOMAIN.parse(prompt, FILMS[0]) == Outcome(displayed=FILMS[0])
    assert DOMAIN.parse(prompt, FILMS[1]).why_invalid == "the user has had this item"
    assert DOMAIN.reward(prompt, DOMAIN.parse(prompt, FILMS[1]), 0.9).total == 0

    class Songs(Recommendation):
        repeats = True

    assert Songs().parse(prompt, FILMS[1]).valid


def test_a_slate_needs_two_items():
    with pytest.raises(InvalidField, match="two items or more"):
        DOMAIN.render(wanted(options=ITEMS_OF[:1]))


def test_what_was_taken_is_a_choice_among_the_slate_alone():
    assert evidence(Signal("c2", "taken", 1.0)) == [RankingEvidence(order=("c2", "c0", "c1", "c3", "c4"), observed=1)]
    assert evidence(Signal("c2", "taken", 0.0)) == []


def test_what_was_skipped_watched_and_liked_names_its_source():
    assert evidence(Signal("c0", "skipped", 1.0)) == [Binary(candidate="c0", positive=False, source="skipped")]
    assert evidence(Signal("c0", "skipped", 0.0)) == []
    assert evidence(Signal("c0", "watched", 0.4)) == [Scalar(candidate="c0", value=0.4, source="watched-long")]
    assert evidence(Signal("c2", "watched", 0.4)) == [Scalar(candidate="c2", value=0.4, source="watched-short")]
    assert evidence(Thumbs("c1", up=False)) == [Binary(candidate="c1", positive=False)]
    assert evidence(Choice("c1", "c0")) == [Pair(first="c0", second="c1", outcome=PairOutcome.SECOND)]


@pytest.mark.parametrize(
    "act", [Thumbs("c5", up=True), Signal("c6", "taken", 1.0), Signal("c5", "watched", 1.0), Choice("c0", "c5")]
)
def test_an_act_on_an_item_that_was_not_shown_is_refused(act):
    with pytest.raises(UnknownCandidate, match="among the 5 that it showed"):
        evidence(act)


def test_a_longer_slate_shows_more():
    class Ten(Recommendation):
        place_weights = tuple(1 / (1 + n) for n in range(10))
        option_score = OptionScore.SUM

    assert Ten().declaration.option_score is OptionScore.SUM
    assert evidence(Thumbs("c6", up=True), Ten()) == [Binary(candidate="c6", positive=True)]


def test_more_of_the_same_gets_a_little_less():
    prompt = DOMAIN.render(wanted())
    same, other = (DOMAIN.reward(prompt, Outcome(displayed=text), 0.5) for text in ("Aliens horror", "Quiet drama"))
    assert dict(same.terms) == {"score": 0.5, "new": 0.0}
    assert dict(other.terms) == {"score": 0.5, "new": DOMAIN.newness}
    # To a new user everything is new, and nothing newer than the rest.
    nobody = DOMAIN.render(wanted(events=()))
    assert dict(DOMAIN.reward(nobody, Outcome(displayed="Quiet drama"), 0.5).terms)["new"] == 0


def test_slices_tell_new_users_from_those_with_a_history():
    assert DOMAIN.slices(interaction(wanted(events=()))) == ("new-user",)
    assert DOMAIN.slices(interaction()) == ("few-events",)
    many = tuple(Passage(str(n), "film", "liked") for n in range(7))
    assert DOMAIN.slices(interaction(wanted(events=many))) == ("many-events",)


# The population.


def test_viewers_ask_different_things_and_nothing_of_the_channel_comes_in_evaluations():
    people = Viewers()
    channel, held_out = people.channel_prompts(), people.evaluation_prompts()
    groups = [{DOMAIN.render(each.request).group for each in prompts} for prompts in (channel, held_out)]
    assert [len(each) for each in groups] == [len(channel), len(held_out)]
    assert not groups[0] & groups[1]
    assert sum(not each.seen_kind for each in held_out) == len(held_out) // 2
    topics = {word for each in channel for passage in each.passages for word in passage.text.rstrip(".").split()}
    assert not topics & set(toy.HELD_OUT_TOPICS)


def test_no_constant_item_and_no_place_is_the_best():
    people = Viewers()
    prompts = people.evaluation_prompts()
    best = [max(range(ITEMS), key=lambda n, each=each: people.gold(each, each.options[n].text)) for each in prompts]
    assert set(best) == set(range(ITEMS))
    assert len({each.options[n].option_id for each, n in zip(prompts, best, strict=True)}) > len(prompts) / 2
    had = [
        {event.passage_id for event in each.passages} & {option.option_id for option in each.options}
        for each in prompts
    ]
    assert not any(had)
    assert max(people.gold(each, option.text) for each in prompts for option in each.options) == pytest.approx(1.6)


def test_viewers_act_on_the_slate_alone_and_take_what_stands_first_more_often():
    people = Viewers()
    rng = random.Random(1)
    rater = people.raters(0)[0]
    taken = [0] * ITEMS
    for prompt in people.channel_prompts():
        options = list(prompt.options)
        rng.shuffle(options)
        shown = [Shown(f"c{n}", option.text, n, option.option_id) for n, option in enumerate(options)]
        for kind in people.mix:
            done = people.act(rater, prompt, shown, kind, rng)
            if done is None:
                assert kind is FeedbackKind.CHOICE
            elif isinstance(done.act, Signal) and done.act.name == "taken":
                taken[int(done.act.candidate_id[1:])] += 1
            elif isinstance(done.act, Choice):
                assert max(int(name[1:]) for name in (done.act.chosen_id, done.act.other_id)) < 5
    assert taken[0] > taken[2] > 0
    assert not any(taken[5:])
