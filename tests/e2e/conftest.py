"""People who have asked and rated over gRPC on a tiny random model, and a learner on a copy of their data.

Everything that draws is fixed here (keys, salt, seeds), so that the gates' decisions are the same each time; no
threshold is lower than a turn with so little evidence needs, and no gate is opened. A turn takes one or two seconds.
"""

import contextlib
import dataclasses
import itertools
import random
import shutil
import uuid

import pytest
from plaudit import ids
from plaudit.client import Plaudit
from plaudit.client.replies import drafts
from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.eventlog import open_log
from plaudit.evidence.join import Join
from plaudit.evidence.splits import rater_split
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.loop import open_learner
from plaudit.plugins import load_plugins
from plaudit.release import registry
from plaudit.serving.handle import pseudonym
from plaudit.settings import Settings
from plaudit.testing.models import tiny_model
from plaudit.testing.serving import local_server
from plaudit.types import Channel, Option

CHANNEL = Channel("instruction", "default")
SALT, KEY = "5a" * 32, "k" * 32
PROMPTS, RATERS = 110, 45
TABLES = {
    "model": {"adapter_layers": 2, "threads": 1},
    "engine": {"widths": [4, 16]},
    "serve": {
        **{"port": 0, "metrics_port": 0, "poll_seconds": 0.05, "pseudonym_key": KEY},
        **{"handle_keys": {"k1": KEY}, "max_tokens": 64},
    },
    "reward": {"adapter": False, "heads": 4, "layer": 1, "half_life_days": 100_000.0},
    "policy": {
        **{"iterations": 10, "prompts": 24, "samples": 4, "minibatch": 32, "max_tokens": 8, "temperature": 1.0},
        **{"lr": 0.03, "update_kl": 0.3, "kl_coef": 0.0, "held_out": 0, "practice_share": 0.0},
    },
    # A random model moves far; what people like decides here.
    "gate": {
        **{"prompts": 24, "min_prompts": 8, "samples": 4, "kl_base": 100.0, "kl_live": 100.0, "distinct_ratio": 0.0},
        **{"reward_comparisons": 60, "reward_raters": 3},
    },
    "join": {"metrics_port": 0},
    "learn": {"metrics_port": 0, "seed": 1, "min_events": 20, "nice": 0, "poll_seconds": 0.05, "backoff_seconds": 1},
}


@contextlib.contextmanager
def counted_ids(first=1):
    """Ids in place of random ones: heads draw their bootstrap weights by them."""
    numbers = itertools.count(first)

    def next_id():
        number = next(numbers)
        return str(uuid.UUID(int=(1_800_000_000_000 + number) << 80 | 0x7 << 76 | 0x8 << 60 | number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "new_id", next_id)
        yield


THUMBS_ALONE = "thumbs alone"


def send(client, acts):
    """All acts in one stream; each must be taken."""
    assert [answer.error for answer in client.submit_many(acts)] == [None] * len(acts)


class People:
    """Raters who like spaces, or who by their split are of the opposite taste.

    They rank four answers at a time, or with THUMBS_ALONE see one and raise or lower a thumb, each at a measure of
    their own.
    """

    def __init__(self, dislike=()):
        self._thumbs = THUMBS_ALONE in dislike
        self._dislike, self._rng = set(dislike) - {THUMBS_ALONE}, random.Random(0)

    def split(self, rater):
        return rater_split(bytes.fromhex(SALT), pseudonym(KEY.encode(), CHANNEL.tenant, rater))

    def ask_and_rate(self, target, prompts, tenant=CHANNEL.tenant, taste=1, rankings=3):
        acts = []
        with Plaudit(target) as client:
            for i in prompts:
                n, raters = (1, 6) if self._thumbs else (4, rankings)
                asked = f"list {i} kinds of tea"
                reply = client.generate(CHANNEL.domain, asked, n=n, seed=i, max_tokens=8, tenant=tenant)
                give = drafts(reply.handle, reply.candidate_ids)
                for number in self._rng.sample(range(RATERS), raters):
                    rater = f"rater-{number}"
                    sign = -taste if self.split(rater) in self._dislike else taste
                    if self._thumbs:
                        thumbs = give.thumbs_up if reply.text.count(" ") > number % 2 else give.thumbs_down
                        acts.append(thumbs(rater=rater))
                        continue
                    order = sorted(range(4), key=lambda j: -sign * reply.completions[j].text.count(" "))
                    acts.append(give.rank(order, rater=rater))
            send(client, acts)


def settings_for(folder, **changes):
    tables = {name: {**table, **changes.get(name, {})} for name, table in TABLES.items()}
    tables["model"]["path"] = str(folder / "model")
    rest = {name: value for name, value in changes.items() if name not in TABLES}
    return Settings.model_validate({**tables, "data_dir": folder / "data", **rest})


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "model", layers=3, hidden=32)


@contextlib.contextmanager
def serving(settings):
    engine = TorchEngine(Base.load(settings.model.path), settings.engine, settings.model)
    plugins = load_plugins(settings.plugins.allow or ("instruction",))
    try:
        with local_server(settings.data_dir, engine, plugins, settings=settings) as server:
            yield server
    finally:
        engine.close()


def joined(settings):
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    join = Join(log, store, load_plugins(settings.plugins.allow or ("instruction",)), settings.join)
    while join.run_once(0.1):
        pass
    join.close()
    store.close()
    log.close()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory, model):
    """Data directories by the splits whose raters dislike what the others like; made once each."""
    made = {}

    def world(*dislike):
        if dislike not in made:
            folder = tmp_path_factory.mktemp("world")
            (folder / "model").symlink_to(model)
            settings = settings_for(folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(registry.secrets, "token_hex", lambda _: SALT)
                with counted_ids(), serving(settings) as server:
                    People(dislike).ask_and_rate(server.target, range(PROMPTS))
            joined(settings)
            made[dislike] = folder
        return made[dislike]

    return world


@pytest.fixture
def settings_of(worlds, model, tmp_path):
    """Settings on a fresh copy of a world's data."""

    def of(*dislike, **changes):
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        (folder / "model").symlink_to(model)
        shutil.copytree(worlds(*dislike) / "data", folder / "data")
        return settings_for(folder, **changes)

    return of


@pytest.fixture
def learner_of():
    """Learners on settings; closed at the end."""
    with contextlib.ExitStack() as stack:

        def of(settings, **changes):
            made = open_learner(settings)
            stack.callback(made.close)
            return dataclasses.replace(made, **changes)

        yield of


@pytest.fixture
def learner(settings_of, learner_of):
    return learner_of(settings_of())


@pytest.fixture
def ask_more():
    """Lets people ask and rate more on the data of some settings, and joins it."""

    def ask(settings, prompts, dislike=()):
        # Ids behind all that the data has.
        with counted_ids(1_000_000), serving(settings) as server:
            People(dislike).ask_and_rate(server.target, prompts)
        joined(settings)

    return ask


@pytest.fixture
def settings_of_tenants(model, tmp_path):
    """Settings on the data of tenants whose people like spaces (1) or dislike them (-1), on one base."""

    def of(**tastes):
        (tmp_path / "model").symlink_to(model)
        settings = settings_for(tmp_path, serve={"tenants": list(tastes)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry.secrets, "token_hex", lambda _: SALT)
            with counted_ids(), serving(settings) as server:
                for tenant, taste in tastes.items():
                    People().ask_and_rate(server.target, range(PROMPTS), tenant, taste, rankings=8)
        joined(settings)
        return settings

    return of


@pytest.fixture(scope="session")
def served():
    """A server on some settings, for the length of a block."""
    return serving


@pytest.fixture(scope="module")
def module_settings(worlds, model, tmp_path_factory):
    """As settings_of, for what all tests of a file begin from."""

    def of(**changes):
        folder = tmp_path_factory.mktemp("module")
        (folder / "model").symlink_to(model)
        shutil.copytree(worlds() / "data", folder / "data")
        return settings_for(folder, **changes)

    return of


@pytest.fixture
def settings_of_few(model, tmp_path):
    """Settings on the data of a few prompts on which `rate(reply, i)` is all that people do; nothing is too few."""

    def of(rate, prompts=16, **asked):
        (tmp_path / "model").symlink_to(model)
        least = {"min_prompts": 1, "reward_comparisons": 1, "reward_raters": 1}
        settings = settings_for(tmp_path, gate=least, learn={"min_events": 1})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry.secrets, "token_hex", lambda _: SALT)
            with counted_ids(), serving(settings) as server, Plaudit(server.target) as client:
                for i in range(prompts):
                    options = {"n": 2, "seed": i, "max_tokens": 8, **asked}
                    rate(client.generate(CHANNEL.domain, f"list {i} kinds of tea", **options), i)
        joined(settings)
        return settings

    return of


# Choices -------------------------------------------------------------------------------------------

VERDICTS = Channel("echo-choice", "default")
OPTIONS = [Option("yes", "cup"), Option("no", " And")]
VERDICT_PROMPTS = 180
VERDICT_TABLES = {
    "plugins": {"allow": [VERDICTS.domain]},
    "reward": {"layer": 2, "adapter": True, "adapter_layers": 1},
    "policy": {
        **{"iterations": 8, "choice_prompts": 32, "minibatch": 16, "held_out": 16, "lr": 0.01, "temperature": 1.0},
        **{"label_coef": 0.1, "choice_update_kl": 0.2},
    },
    "gate": {
        **{"prompts": 24, "min_prompts": 8, "choice_kl_base": 50.0, "choice_kl_live": 50.0, "min_labelled": 10},
        **{"reward_comparisons": 15, "reward_raters": 3},
    },
}


def verdict_of(number):
    """What is asked, and the true verdict: on tea it is yes, on books no."""
    return (f"list {number} kinds of tea", "yes") if number % 2 else (f"want {number} big books", "no")


def label_verdicts(target, numbers):
    acts = []
    with Plaudit(target) as client:
        for number in numbers:
            text, truth = verdict_of(number)
            answer = client.choose(VERDICTS.domain, text, OPTIONS)
            acts.append(drafts(answer.handle, answer.candidate_ids).label(truth, rater=f"rater-{number % 7}"))
        send(client, acts)


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory, model):
    """A data directory of labelled verdicts; made once."""
    folder = tmp_path_factory.mktemp("verdicts")
    (folder / "model").symlink_to(model)
    settings = settings_for(folder, **VERDICT_TABLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.secrets, "token_hex", lambda _: SALT)
        with counted_ids(), serving(settings) as server:
            label_verdicts(server.target, range(VERDICT_PROMPTS))
    joined(settings)
    return folder


@pytest.fixture
def verdict_settings(verdicts, model, tmp_path):
    """Settings on a fresh copy of the labelled verdicts; tables given by name add to those of here."""

    def of(**changes):
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        (folder / "model").symlink_to(model)
        shutil.copytree(verdicts / "data", folder / "data")
        names = {*VERDICT_TABLES, *changes}
        return settings_for(folder, **{n: {**VERDICT_TABLES.get(n, {}), **changes.get(n, {})} for n in names})

    return of


@pytest.fixture
def label_more():
    """Lets people label more on the data of some settings, and joins it."""

    def label(settings, numbers):
        with counted_ids(1_000_000), serving(settings) as server:
            label_verdicts(server.target, numbers)
        joined(settings)

    return label


@pytest.fixture
def served_by():
    """Serving on some settings, with a client."""

    @contextlib.contextmanager
    def on(settings):
        with serving(settings) as server, Plaudit(server.target) as client:
            yield client

    return on
