"""The moderation domains: who may judge, what a request may bring, what a rationale says, what an audit estimates."""

import dataclasses
import math
import random

import pytest
from plaudit.deciding import cost_of, costs_of, decide
from plaudit.errors import EmptyPrompt, InvalidField, OutOfScale
from plaudit.plugins.returned import slices_fault
from plaudit.simulate.population import Shown
from plaudit.testing import examples
from plaudit.testing.conformance import PluginConformance
from plaudit.types import (
    Choice,
    Comment,
    Correction,
    Demo,
    Feedback,
    FeedbackKind,
    Label,
    LabelAct,
    Message,
    Option,
    Outcome,
    Pair,
    PairOutcome,
    Passage,
    Request,
    Thumbs,
)
from plaudit_moderation.audit import Audited, AuditPlan, Why, draw, miss_rate
from plaudit_moderation.plugin import CATEGORIES, Moderation
from plaudit_moderation.population import Moderators
from plaudit_moderation.rationale import ModerationRationale, request_for

VERDICTS, RATIONALES = Moderation(), ModerationRationale()
TEXTS = ("What a lovely day.", "You are all idiots.", "お前はばかだ")


def item(*contents, rules=""):
    roles = ["user" if (len(contents) - place) % 2 else "assistant" for place in range(len(contents))]
    said = tuple(map(Message, roles, contents))
    return Request(messages=(*((Message("system", rules),) if rules else ()), *said))


class TestModeration(PluginConformance):
    def make_plugin(self):
        return Moderation()

    def example_requests(self):
        return [*map(item, TEXTS), item("Hello.", "How can I help?", "By shutting up."), item("Hi.", rules="Be kind.")]

    def example_feedback(self):
        return [LabelAct("c0", "severe"), LabelAct("c4", "severe"), Comment("c0", "I meant it as a joke.")]

    def example_outputs(self):
        return ("allowed", "severe", "maybe", "")


class TestModerationRationale(PluginConformance):
    def make_plugin(self):
        return ModerationRationale()

    def example_requests(self):
        return [request_for(item(text), verdict) for text, verdict in zip(TEXTS, CATEGORIES, strict=False)]

    def example_feedback(self):
        better = "It calls the reader an idiot."
        return [Thumbs("c0", up=True), Choice("c1", "c0"), Correction("c0", better), Comment("c0", "Thanks.")]


def interaction(plugin, request, author="author"):
    prompt = plugin.render(request)
    texts = [option.text for option in prompt.options] or list(examples.OUTPUTS)
    shown = [plugin.parse(prompt, text) for text in texts]
    made = examples.interaction(plugin.declaration, request, prompt, texts, shown)
    return dataclasses.replace(made, messages=request.messages, end_user=author)


def given(plugin, about, act, rater="moderator"):
    return plugin.to_evidence(about, dataclasses.replace(examples.feedback(about, act), rater=rater))


def test_the_caller_sends_the_item_and_the_domain_makes_the_options():
    prompt = VERDICTS.render(item("Hi.", rules="Be kind."))
    assert [option.option_id for option in prompt.options] == list(CATEGORIES)
    assert prompt.messages[0] == Message("system", "Be kind.")
    assert prompt.messages[1].content == "Hi.\n\nallowed, borderline, mild, strong or severe?"
    assert VERDICTS.render(dataclasses.replace(item("Hi.", rules="Be kind."), options=prompt.options)) == prompt
    with pytest.raises(InvalidField, match="options are the domain's"):
        VERDICTS.render(dataclasses.replace(item("Hi."), options=(Option("a", "a"), Option("b", "b"))))
    with pytest.raises(InvalidField, match="no passages"):
        VERDICTS.render(dataclasses.replace(item("Hi."), passages=(Passage("p", "Rules."),)))
    with pytest.raises(EmptyPrompt):
        VERDICTS.render(item(" "))


def test_a_conversation_is_quoted_and_is_an_item_of_its_own():
    prompt = VERDICTS.render(item("Hi.", "Hello.", "Shut up."))
    assert prompt.messages[0].content.startswith("user: Hi.\nassistant: Hello.\nuser: Shut up.\n\n")
    assert prompt.group != VERDICTS.render(item("Shut up.")).group
    # Rules, case and outer marks do not make another item of it.
    assert VERDICTS.render(item("shut up!", rules="Be kind.")).group == VERDICTS.render(item("Shut up.")).group


def test_confirming_and_overriding_are_the_label_that_a_moderator_gave():
    about = interaction(VERDICTS, item("Hi."))
    assert given(VERDICTS, about, LabelAct("c0", "allowed")) == (Label(candidate="c0", value="allowed"),)
    assert given(VERDICTS, about, LabelAct("c0", "strong")) == (Label(candidate="c0", value="strong"),)
    with pytest.raises(OutOfScale):
        given(VERDICTS, about, LabelAct("c0", "awful"))


@pytest.mark.parametrize("rater", ["author", ""])
@pytest.mark.parametrize(
    ("plugin", "request_", "act"),
    [
        (VERDICTS, item("Hi."), LabelAct("c0", "allowed")),
        (RATIONALES, request_for(item("Hi."), "mild"), Thumbs("c0", up=False)),
        (RATIONALES, request_for(item("Hi."), "mild"), Choice("c0", "c1")),
        (RATIONALES, request_for(item("Hi."), "mild"), Correction("c0", "It is fine.")),
    ],
)
def test_authors_and_whoever_names_nobody_weigh_nothing(plugin, request_, act, rater):
    about = interaction(plugin, request_)
    assert given(plugin, about, act)
    assert not given(plugin, about, act, rater=rater)


def test_an_author_nobody_knows_does_not_silence_a_moderator():
    about = interaction(VERDICTS, item("Hi."), author="")
    assert given(VERDICTS, about, LabelAct("c0", "mild"))


def test_a_rationale_is_asked_in_the_conversation_that_gave_the_verdict():
    asked = item("Shut up.", rules="Be kind.")
    prompt = RATIONALES.render(request_for(asked, "strong"))
    assert prompt.messages[:2] == VERDICTS.render(asked).messages
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.group == VERDICTS.render(asked).group
    for bad in (asked, request_for(asked, "awful"), Request(messages=(Message("assistant", "mild"),))):
        with pytest.raises((InvalidField, EmptyPrompt)):
            RATIONALES.render(bad)


def test_a_rationale_that_argues_for_another_verdict_loses_reward():
    prompt = RATIONALES.render(request_for(item("Shut up."), "strong"))

    def reward(text):
        return RATIONALES.reward(prompt, Outcome(displayed=text), 0.5).total

    assert reward("It is rude.") == reward("Strong, and not mild.") == 0.5
    assert reward("This is mild.") == 0.0


def test_a_rewrite_is_a_demo_and_choices_keep_the_order_that_was_shown():
    about = interaction(RATIONALES, request_for(item("Hi."), "mild"))
    assert given(RATIONALES, about, Choice("c1", "c0")) == (
        Pair(first="c0", second="c1", outcome=PairOutcome.SECOND, tie_offered=False),
    )
    (demo,) = given(RATIONALES, about, Correction("c0", "It greets. "))
    assert demo == Demo(candidate="c0", text="It greets.", margin=0.5)
    assert not given(RATIONALES, about, Correction("c0", examples.OUTPUTS[0]))


def test_slices_name_conversations_long_items_and_verdicts():
    assert VERDICTS.slices(interaction(VERDICTS, item("Hi.", "Hello.", "x" * 300))) == ("conversation", "long")
    about = interaction(RATIONALES, request_for(item("Hi."), "mild"))
    assert RATIONALES.slices(about) == ("verdict_mild",)


def test_a_team_brings_its_own_categories():
    class Shop(Moderation):
        name = "shop-reviews"
        categories = ("fine", "spam")
        severe = frozenset()

    assert Shop().render(item("Buy!")).messages[0].content.endswith("fine or spam?")
    assert Shop().declaration.labels == {"fine", "spam"}


def test_rationales_of_any_words_have_slices_that_reports_can_carry():
    class Shop(ModerationRationale):
        name = "shop-rationale"
        categories = ("In Ordnung", "Spam!", "\u0431\u0430\u043d")

    for verdict, slices in zip(Shop.categories, (("verdict_in-ordnung",), ("verdict_spam",), ()), strict=True):
        request = Request(messages=(Message("user", "Buy!"), Message("assistant", verdict)))
        shown = [Outcome(displayed="no")]
        asked = examples.interaction(Shop().declaration, request, Shop().render(request), ["no"], shown)
        assert Shop().slices(asked) == slices
        assert slices_fault(slices) == ""


def test_costs_rise_with_the_distance_and_a_missed_severe_item_is_dearest():
    declared = VERDICTS.declaration
    assert (declared.severe, declared.policy_version, declared.few_raters) == ({"severe"}, "1", True)
    costs = costs_of(declared)
    assert cost_of(costs, "allowed", "mild") == 0.5
    assert cost_of(costs, "mild", "allowed") == 1.0
    assert cost_of(costs, "severe", "allowed") == max(costs.values()) == 4.0
    # Sure of it, the most probable verdict is decided; unsure between two ends, a strict one.
    assert CATEGORIES[decide([0.97, 0.01, 0.01, 0.01, 0.0], labels=CATEGORIES, costs=costs)] == "allowed"
    assert CATEGORIES[decide([0.6, 0.0, 0.0, 0.0, 0.4], labels=CATEGORIES, costs=costs)] == "severe"


# Audits. ---------------------------------------------------------------------------------------

PLAN = AuditPlan(key=b"a secret of the service", share=0.1, sure=0.8)


def test_what_is_flagged_or_unsure_is_always_shown():
    flagged = draw(PLAN, "1", "strong", {"allowed": 0.3, "strong": 0.7})
    unsure = draw(PLAN, "1", "allowed", {"allowed": 0.6, "strong": 0.4})
    assert (flagged.shown, flagged.why, flagged.propensity) == (True, Why.FLAGGED, 1.0)
    assert (unsure.shown, unsure.why, unsure.propensity) == (True, Why.UNSURE, 1.0)


def test_a_share_of_what_passes_is_drawn_by_a_key_and_the_same_each_time():
    drawn = [draw(PLAN, str(number), "allowed", {"allowed": 0.95}) for number in range(5000)]
    assert drawn == [draw(PLAN, str(number), "allowed", {"allowed": 0.95}) for number in range(5000)]
    assert {one.propensity for one in drawn} == {0.1}
    assert 400 < sum(one.shown for one in drawn) < 600  # 500, standard deviation 21
    other = dataclasses.replace(PLAN, key=b"another secret")
    assert [one.shown for one in drawn] != [
        draw(other, str(number), "allowed", {"allowed": 0.95}).shown for number in range(5000)
    ]


def test_an_audit_needs_a_share_and_a_key():
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"key": b""}):
        with pytest.raises(ValueError, match=r"share|key"):
            AuditPlan(**{"key": b"secret", **wrong})


def test_the_miss_rate_by_pencil():
    # Two sure items of weight 1 (one missed), one audited item of weight 10 (not missed): 1 of 12.
    found = miss_rate([Audited(1.0, True), Audited(1.0, False), Audited(0.1, False)])
    assert found.rate == pytest.approx(1 / 12)
    assert found.effective == pytest.approx(144 / 102)
    assert 0.0 <= found.low < found.rate < found.high <= 1.0
    nothing = miss_rate([])
    assert math.isnan(nothing.rate)
    assert (nothing.low, nothing.high) == (0.0, 1.0)
    assert miss_rate([Audited(0.5, False)] * 50).high > 0.05, "no miss among 50 is no proof that there is none"
    with pytest.raises(ValueError, match="propensity"):
        miss_rate([Audited(0.0, True)])
    # The README's example.
    told = miss_rate([Audited(1.0, n < 8) for n in range(60)] + [Audited(0.02, n < 3) for n in range(150)])
    assert (told.rate, told.low, told.high) == pytest.approx((0.0209, 0.0073, 0.0580), abs=5e-5)
    assert (told.audited, told.effective) == (210, pytest.approx(152.4, abs=0.05))


def test_the_interval_covers_the_true_miss_rate_of_unevenly_audited_items():
    # 3,000 items pass: 300 unsure ones (all shown, 20% missed) and 2,700 sure ones (a tenth is drawn, 2% missed).
    rng = random.Random(5)
    covered, estimates = 0, []
    for _ in range(300):
        items = [(1.0, rng.random() < 0.2) for _ in range(300)] + [(0.1, rng.random() < 0.02) for _ in range(2700)]
        true = sum(missed for _, missed in items) / len(items)
        found = miss_rate([Audited(p, missed) for p, missed in items if rng.random() < p])
        covered += found.low <= true <= found.high
        estimates.append(found.rate - true)
    assert abs(sum(estimates) / len(estimates)) < 0.003
    assert covered >= 0.92 * 300


# Simulated moderators. ------------------------------------------------------------------------


def test_items_of_evaluations_share_no_group_with_the_channels():
    people = Moderators()
    groups = [
        {VERDICTS.render(item(prompt.text)).group for prompt in prompts}
        for prompts in (people.channel_prompts(), people.evaluation_prompts())
    ]
    assert not groups[0] & groups[1]
    for prompts in (people.channel_prompts(), people.evaluation_prompts()):
        shares = [sum(people.truth(prompt) == category for prompt in prompts) / len(prompts) for category in CATEGORIES]
        assert min(shares) > 0.05
        assert max(shares) < 0.5


def test_moderators_label_by_their_rule_with_few_mistakes():
    people = Moderators()
    raters = people.raters(3)
    assert [rater.name for rater in raters] == [rater.name for rater in people.raters(3)]
    rng, right = random.Random(0), []
    for prompt in people.channel_prompts():
        acted = people.act(rng.choice(raters), prompt, [Shown("c0", "allowed", 0, "allowed")], FeedbackKind.LABEL, rng)
        right.append(acted.act.value == people.truth(prompt))
    assert 0.85 < sum(right) / len(right) < 1.0
    prompt = people.channel_prompts()[0]
    assert people.gold(prompt, people.truth(prompt)) == 1.0
    assert people.gold(prompt, "no category") == -3.0
    severe = next(one for one in people.channel_prompts() if people.truth(one) == "severe")
    assert [people.gold(severe, verdict) for verdict in CATEGORIES] == [-3.0, -2.0, -1.0, 0.0, 1.0]
    assert people.act(raters[0], prompt, [Shown("c0", "allowed", 0, "allowed")], FeedbackKind.THUMBS, rng) is None


def test_the_act_of_a_simulated_moderator_teaches():
    people, rng = Moderators(), random.Random(1)
    prompt = people.channel_prompts()[0]
    about = interaction(VERDICTS, item(prompt.text), author="")
    act = people.act(people.raters(1)[0], prompt, [Shown("c0", "allowed", 0, "allowed")], FeedbackKind.LABEL, rng).act
    feedback = examples.feedback(about, act)
    assert isinstance(feedback, Feedback)
    assert isinstance(VERDICTS.to_evidence(about, feedback)[0], Label)
