"""What a turn leaves for the next: taken over to the bit, bounded, forgotten at once, and passed over if damaged."""

from collections import Counter

import pytest
import structlog
import torch
from plaudit.engine.base import Base
from plaudit.engine.frozen import quicken
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.learner.kept import ANSWERS, FEATURES, Kept
from plaudit.policy.rollout import TrainPrompt
from plaudit.reward import flat
from plaudit.reward.completion import Completion
from plaudit.reward.trunk import TrunkCache
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.store.kept import Files, folder_of, forget, forget_if_erased
from plaudit.testing.models import tiny_model
from plaudit.types import Channel, Message, Prompt, Sampling

CHANNEL = Channel("echo", "default")
LAYERS = (1, 2)
HOW = Sampling(temperature=0.7, max_tokens=5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    base = Base.load(tiny_model(tmp_path_factory.mktemp("tiny")), device="cpu", dtype="float32")
    quicken(base)
    if not flat.stands_alone(base):
        pytest.skip("NOTHING IS KEPT HERE: a text's bits depend on its neighbours on this machine")
    yield base
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(base):
    engine = TorchEngine(base, EngineSettings(widths=(4, 16)), ModelSettings(adapter_layers=1))
    yield engine
    engine.close()


@pytest.fixture
def turn(base, engine, tmp_path):
    """Begins a turn: its Kept, and what it counted."""

    def begin(most_bytes=1 << 24, seed=0, base=base, erasures=0):
        counted = Counter()
        release = ReleaseKey(str(CHANNEL), 0, "d")
        engine.stage(release, None)
        files = Files(
            tmp_path,
            CHANNEL,
            erasures=erasures,
            most_bytes=most_bytes,
            count=lambda kind, found, number: counted.update({(kind, found): number}),
        )
        kept = Kept(files, base=base, engine=engine, release=release, seed=seed)
        return kept, counted

    return begin


def texts(base, *words):
    prompts = [base.encode([Message("user", word)]).tokens for word in ("cup", "tea for you", "cup")]
    return [Completion(prompt, base.encode_text(word)) for prompt in prompts for word in words]


def computed(base, completions, features=None):
    cache = TrunkCache(base, *LAYERS, features)
    plain = torch.cat(cache.plain(completions))
    held = sorted(cache.held(), key=lambda each: each[0])
    return cache, [plain, *(hidden for _, prompt, states, _ in held for hidden in (prompt, states))]


def kept_by_a_turn(turn, base, completions, **more):
    kept, counted = turn(**more)
    features = kept.features(LAYERS)
    cache, found = computed(base, completions, features)
    features.keep(cache)
    return found, counted


def test_a_turn_that_takes_features_over_has_the_bits_of_one_that_computes_them(turn, base):
    first = texts(base, "tea", "a cup of tea")
    kept_by_a_turn(turn, base, first)
    both = texts(base, "tea", "milk and no sugar at all", "a cup of tea", "")
    found, counted = kept_by_a_turn(turn, base, both)
    _, wanted = computed(base, both)
    assert all(map(torch.equal, found, wanted))
    assert counted == {(FEATURES, "kept"): 4, (FEATURES, "computed"): 4}


def test_a_file_has_what_its_turn_used_and_no_more(turn, base):
    kept_by_a_turn(turn, base, texts(base, "tea", "milk"))
    kept_by_a_turn(turn, base, texts(base, "milk"))
    _, counted = kept_by_a_turn(turn, base, texts(base, "tea", "milk"))
    assert counted == {(FEATURES, "kept"): 2, (FEATURES, "computed"): 2}


def test_no_more_is_kept_than_is_allowed(turn, base, tmp_path):
    kept_by_a_turn(turn, base, texts(base, *("tea " * n for n in range(1, 40))), most_bytes=100_000)
    size = (folder_of(tmp_path, CHANNEL) / FEATURES).stat().st_size
    assert 50_000 < size < 110_000
    forget(tmp_path, CHANNEL)
    kept_by_a_turn(turn, base, texts(base, "tea"), most_bytes=0)
    assert not folder_of(tmp_path, CHANNEL).exists()


def test_a_learner_on_a_machine_that_cannot_keep_features_says_so(turn, base, tmp_path, monkeypatch):
    # As on a machine whose sums depend on how many texts are computed together: by less than anybody sees in an answer.
    run = flat.Layout.run
    monkeypatch.setattr(flat.Layout, "run", lambda self, *rest: run(self, *rest) * (1 + 1e-6 * len(self.prompts)))
    with structlog.testing.capture_logs() as said:
        _, counted = kept_by_a_turn(turn, base, texts(base, "tea"))
    assert [(each["event"], each["log_level"]) for each in said] == [("no features are kept", "warning")]
    assert "depend on the texts beside it" in said[0]["why"]
    assert not counted
    assert not (folder_of(tmp_path, CHANNEL) / FEATURES).exists()
    with structlog.testing.capture_logs() as said:
        kept_by_a_turn(turn, base, texts(base, "tea"), most_bytes=0)
    assert not said, "who keeps nothing misses nothing"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "half written"])
def test_a_damaged_file_is_passed_over_and_counted(turn, base, tmp_path, damage):
    wanted, _ = kept_by_a_turn(turn, base, texts(base, "tea"))
    path = folder_of(tmp_path, CHANNEL) / FEATURES
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut": whole[:-40], "empty": b"", "half written": whole}[damage])
    if damage == "half written":  # a writer that died leaves a file under another name
        path.with_name(f"{FEATURES}.new").write_bytes(whole[:middle])
    found, counted = kept_by_a_turn(turn, base, texts(base, "tea"))
    assert all(map(torch.equal, found, wanted))
    assert counted[FEATURES, "damaged"] == (damage != "half written")
    assert counted[FEATURES, "kept"] == (2 if damage == "half written" else 0)


def test_features_of_another_base_or_of_other_layers_are_not_taken(turn, base):
    kept_by_a_turn(turn, base, texts(base, "tea"))
    kept, _ = turn()
    assert kept.features((0, 2)).completion(texts(base, "tea")[0]) is None
    other = Base(base.model, base.tokenizer, "another digest")
    assert turn(base=other)[0].features(LAYERS).completion(texts(base, "tea")[0]) is None
    assert kept.features(LAYERS).completion(texts(base, "tea")[0]) is not None


def test_features_that_were_computed_in_another_number_format_are_not_taken(turn, base, monkeypatch):
    kept_by_a_turn(turn, base, texts(base, "tea"))
    monkeypatch.setattr(base, "format", torch.bfloat16)
    _, counted = kept_by_a_turn(turn, base, texts(base, "tea"))
    assert counted == {(FEATURES, "computed"): 2}


@pytest.mark.parametrize("of", ["plaudit", "transformers"])
def test_features_that_another_version_computed_are_not_taken(turn, base, monkeypatch, of):
    kept_by_a_turn(turn, base, texts(base, "tea"))
    monkeypatch.setattr(f"plaudit.learner.kept.{of}.__version__", "0")
    _, counted = kept_by_a_turn(turn, base, texts(base, "tea"))
    assert counted == {(FEATURES, "computed"): 2}


def test_a_turn_under_way_writes_nothing_after_its_channel_was_forgotten(turn, base, tmp_path):
    kept_by_a_turn(turn, base, texts(base, "tea"))
    kept, _ = turn()
    features = kept.features(LAYERS)
    cache, _ = computed(base, texts(base, "tea"), features)
    kept.answers.of([asked(base, "tea")], 1, HOW)
    forget(tmp_path, CHANNEL)
    features.keep(cache)
    kept.answers.keep()
    assert not folder_of(tmp_path, CHANNEL).exists()
    # Not if another turn has begun since, either.
    turn()
    features.keep(cache)
    kept.answers.keep()
    assert [each.name for each in folder_of(tmp_path, CHANNEL).iterdir()] == ["stamp"]


def test_an_erasure_takes_away_what_was_kept_before_it(turn, base, tmp_path):
    kept_by_a_turn(turn, base, texts(base, "tea"), erasures=1)
    forget_if_erased(tmp_path, CHANNEL, 1)
    assert (folder_of(tmp_path, CHANNEL) / FEATURES).exists()
    _, counted = kept_by_a_turn(turn, base, texts(base, "tea"), erasures=2)
    assert counted == {(FEATURES, "computed"): 2}
    forget_if_erased(tmp_path, CHANNEL, 3)
    assert not folder_of(tmp_path, CHANNEL).exists()


def asked(base, text):
    messages = (Message("user", text),)
    return TrainPrompt(rendered=Prompt(messages=messages, group=text), encoded=base.encode(messages))


def test_a_prompts_answers_are_the_same_whoever_is_asked_beside_it_and_are_drawn_once(turn, base):
    tea, milk, cup = (asked(base, text) for text in ("tea", "milk", "cup"))
    kept, counted = turn()
    (two,) = kept.answers.of([tea], 2, HOW)
    kept.answers.keep()
    assert counted == {(ANSWERS, "computed"): 2}
    kept, counted = turn()
    four, other, _ = kept.answers.of([tea, milk, cup], 4, HOW)
    assert counted == {(ANSWERS, "computed"): 10, (ANSWERS, "kept"): 2}
    assert four[:2] == two
    assert len(set(four)) > 1
    without, _ = turn(most_bytes=0)
    assert without.answers.of([cup, milk, tea], 4, HOW)[1:] == [other, four]
    # Another seed, another sampling: other draws.
    assert turn(seed=1)[0].answers.of([tea], 4, HOW) != [four]
    kept.answers.keep()
    kept, counted = turn()
    kept.answers.of([tea], 4, Sampling(temperature=0.7, max_tokens=4))
    assert counted == {(ANSWERS, "computed"): 4}
