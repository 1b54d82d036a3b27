"""A running deployment is backed up and restored elsewhere: the same release answers, and old handles still count."""

from plaudit.backup import backup, restore
from plaudit.client import Plaudit
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.release.registry import Registry
from plaudit.types import Channel

CHANNEL = Channel("instruction", "default")


def test_a_deployment_goes_on_elsewhere_from_its_backup(settings_of, learner_of, served, ask_more, tmp_path):
    settings = settings_of()
    assert look(learner_of(settings), CHANNEL, Watch()).outcome is TurnOutcome.PROMOTED
    with served(settings) as server, Plaudit(server.target) as client:
        asked = {"seed": 3, "max_tokens": 8, "temperature": 1.0}
        reply = client.generate(CHANNEL.domain, "list 7 kinds of tea", n=2, **asked)
        assert {each.release_version for each in reply.completions} == {1}
        backup(settings, tmp_path / "kept")
        reply.thumbs_up(0, rater="too late for the backup")

    folder = tmp_path / "elsewhere"
    there = settings.model_copy(update={"data_dir": folder})
    restore(there, tmp_path / "kept")
    with Registry(there.store_url, there.registry_root) as registry:
        assert registry.state(CHANNEL).live == 1
    before = counted(there)
    with served(there) as server, Plaudit(server.target) as client:
        again = client.generate(CHANNEL.domain, "list 7 kinds of tea", n=2, **asked)
        assert [each.text for each in again.completions] == [each.text for each in reply.completions]
        assert {each.release_version for each in again.completions} == {1}
        client.feedback_from_handle(reply.handle).choose("#0", "#1", rater="somebody")
    ask_more(there, [])  # joins
    after = counted(there)
    assert (after.joined, after.waiting) == (before.joined + 1, 0)


def counted(settings):
    store = EvidenceStore(settings.store_url)
    found = store.counts(CHANNEL)
    store.close()
    return found
