"""The hidden gold: what it likes, that nothing constant pleases it everywhere, and figures worked out by hand."""

import random
import statistics

import pytest
from plaudit.simulate import judge
from plaudit.simulate.population import SimPrompt
from plaudit.testing import toy_language
from plaudit_instruction import gold, toy_gold
from plaudit_instruction.population import HouseTaste, TinyTaste
from plaudit_instruction.requests import channel_prompts, content_words

HOUSE, TINY = HouseTaste(), TinyTaste()
TEA = SimPrompt(text="How do I make tea?", kind="how_do", check="imperative", topic=("make", "tea"))


def parts(text, **prompt):
    fields = {"text": "Tell me about tea.", "kind": "x", "check": "none", "topic": ("tea",)} | prompt
    return gold.read(SimPrompt(**fields), text)


@pytest.mark.parametrize(
    ("part", "better", "worse"),
    [
        ("topic", "Tea is good.", "Soup is good."),
        ("plain", "Put the tea in a cup.", "Incorporate refreshing beverages throughout everyday schedules."),
        (
            "short",
            "Tea is hot. Sip it.",
            "Tea is hot so sip it slowly while you sit and look out at a tree in the rain.",
        ),
        ("speaks", "You can sip your tea.", "One can sip the tea."),
        ("concrete", "Sip it by the window with a cookie.", "Sip it whenever possible."),
        ("warm", "Enjoy the tea.", "Drink the tea."),
        ("warm", "Enjoy the tea.", "Enjoy! Have fun! Love it! Welcome!"),
        ("no_puffery", "Tea is good.", "Tea is a remarkable and vibrant journey."),
        ("no_stock", "Tea is good.", "When it comes to tea, it's important to know it."),
        ("no_self_talk", "Tea is good.", "As an AI, I cannot drink tea."),
        ("no_echo", "It is a drink.", "Tell me about tea, you say."),
        ("no_repetition", "Tea is good. Sip it.", "Tea is good. Tea is good."),
        ("clean", "Tea is good.", "**Tea** is good"),
        ("direct", "Tea is good.", "Some facts: tea is good."),
    ],
)
def test_each_part_prefers_what_its_name_says(part, better, worse):
    assert parts(better)[part] > parts(worse)[part]


@pytest.mark.parametrize(
    ("check", "done", "missed"),
    [
        ("three_items", "Bring a hat, a map and some water.", "Bring a hat."),
        ("three_items", "1. A hat\n2. A map\n3. Water", "1. A hat"),
        ("one_sentence", "Tea is a drink.", "Tea is a drink. It is hot. Sip it."),
        ("question", "What tea do you like?", "You like tea."),
        ("imperative", "First, warm the pot.", "The pot is warm."),
        ("name", 'Call it "The Tea Cup".', "It needs a good name."),
        (
            "short",
            "Tea for two.",
            "Tea is a drink that people have had at all times and in all of the many houses that there are.",
        ),
        ("mentions:sorry|apolog", "I apologize for the tea.", "The tea is cold."),
        ("mentions_all", "Tea is lighter than coffee.", "Tea is light."),
    ],
)
def test_each_check_tells_a_task_done_from_one_missed(check, done, missed):
    topic = ("tea", "coffee") if check == "mentions_all" else ("tea",)
    assert parts(done, check=check, topic=topic)["task"] == 1.0
    assert parts(missed, check=check, topic=topic)["task"] < 0.6


def test_parts_are_bounded_and_named_on_any_text():
    rng = random.Random(0)
    letters = "abc .!?\n*[1]:,'\"You tea 你。"
    for prompt in channel_prompts()[::40]:
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(80)))
        found = gold.read(prompt, text)
        assert tuple(found) == gold.PARTS
        assert all(0.0 <= value <= 1.0 for value in found.values()), (text, found)


def test_a_text_without_words_is_worth_least():
    assert HOUSE.gold(TEA, "") == HOUSE.gold(TEA, "...") == -gold.OFFSET
    assert HOUSE.gold(TEA, "Tea.") > -gold.OFFSET


def test_style_counts_less_off_the_topic_and_without_the_task():
    perfect = dict.fromkeys(gold.PARTS, 1.0)
    # 12 * 1 * 1 * 1 - 1 = 11; off topic 12 * (1 - .8) - 1 = 1.4; task missed 12 * (1 - .6) - 1 = 3.8
    assert gold.value(perfect) == pytest.approx(11.0)
    assert gold.value(perfect | {"topic": 0.0}) == pytest.approx(1.4)
    assert gold.value(perfect | {"task": 0.0}) == pytest.approx(3.8)
    # A rater who does not care about the topic loses nothing there.
    assert gold.value(perfect | {"topic": 0.0}, {"topic": 0.0}) == pytest.approx(11.0)


def test_the_order_is_one_that_a_reader_would_give():
    good = "Warm your pot first. Add two spoons of tea and hot water. Enjoy!"
    plain = "Tea is made with leaves and water."
    pompous = "When it comes to tea, it's important to embrace a remarkable journey of exquisite flavors."
    off = "As an AI, I cannot drink."
    golds = [HOUSE.gold(TEA, text) for text in (good, plain, pompous, off)]
    assert golds == sorted(golds, reverse=True)


def test_a_constant_answer_that_pleases_one_prompt_displeases_most():
    constant = "Warm your pot and make tea at home. Pour two cups. Enjoy!"
    golds = [HOUSE.gold(prompt, constant) for prompt in channel_prompts()]
    assert HOUSE.gold(TEA, constant) > 5
    assert statistics.median(golds) < 1.5


def test_tiny_taste_spreads_within_a_prompt_and_constants_lose():
    rng = random.Random(0)
    constant, spreads, wins = "you will like it. your day. enjoy!", [], []
    for prompt in TINY.channel_prompts():
        golds = [TINY.gold(prompt, toy_language.answer(prompt.topic[0], rng)) for _ in range(4)]
        spreads.append(statistics.stdev(golds))
        wins.append(judge.win_share([TINY.gold(prompt, constant)], golds))
    # Raters' noise is about 0.6.
    assert statistics.mean(spreads) > 1.0
    assert statistics.mean(wins) < 0.5


def test_tiny_taste_by_hand():
    prompt = SimPrompt(text="tips for tea", kind="tips", topic=("tea",))
    found = toy_gold.read(prompt, "you can try tea now. undoubtedly soup embodies excellence. enjoy!")
    # One of two subjects; three pompous words cost .35 each; one "you"; one warm closing; nothing twice.
    assert found == {"topic": 0.5, "plain": 0.0, "speaks": 0.6, "warm": 1.0, "no_repetition": 1.0}
    # style = (1.6*0 + 1.2*.6 + 1*1 + .8*1) / 4.6; times 1 - .9*.5 and 6
    assert TINY.gold(prompt, "you can try tea now. undoubtedly soup embodies excellence. enjoy!") == pytest.approx(
        6 * (0.72 + 1 + 0.8) / 4.6 * 0.55
    )


def test_content_words_leave_out_what_every_request_has():
    assert content_words("my boss for a mistake") == ("boss", "mistake")


def test_win_share_counts_every_pair_and_ties_half():
    # 2 beats 1 and ties 2; 3 beats both: (1 + .5 + 1 + 1) / 4
    assert judge.win_share([2.0, 3.0], [1.0, 2.0]) == pytest.approx(0.875)
    assert judge.win_share([], [1.0]) == 0.5


def test_rate_over_prompts_holds_its_mean_and_narrows_with_prompts():
    few, many = judge.rate_over_prompts([0.0, 1.0] * 10), judge.rate_over_prompts([0.0, 1.0] * 250)
    assert few.estimate == many.estimate == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high
    # 500 coin flips: 1.96 * .5 / sqrt(500) = .0438
    assert many.high - many.low == pytest.approx(0.0877, abs=0.01)
    assert judge.rate_over_prompts([0.7] * 5).low == pytest.approx(0.7)
    with pytest.raises(ValueError, match="at least one prompt"):
        judge.rate_over_prompts([])


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("No, whales are mammals. You can look them up!", 1.0),
        ("That is not a good idea, it is dangerous.", 1.0),
        ("You're right, whales are fish.", 0.0),
        ("Yes, you are right. No doubt.", 0.0),
        ("Whales swim in the sea.", 0.4),
    ],
)
def test_people_like_to_be_told_no_to_a_false_claim(text, worth):
    claim = next(prompt for prompt in channel_prompts() if prompt.kind == "false_claim")
    assert gold.read(claim, text)["task"] == worth
