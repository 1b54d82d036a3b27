"""A backend developer's walk, with a clock: from a clone to a release that thumbs by the openai package made.

    python -m pytest -q -s tests/walks/backend_developer.py

Commands, settings and programs are those of docs/thumbs.md, read from the page. `make setup` is what `make walks` did
before; the ports are free ones.
"""

import re

import pytest

CHANNEL = "instruction/default"
# More thumbs than a first turn takes, and then some more, as the page says, if the gate refused.
VISITS = 3


def share_of_ups(said):
    return int(re.search(r"(\d+)% of them up", said)[1])


@pytest.mark.timeout(7200)
def test_a_backend_developer_goes_from_a_clone_to_a_release_that_thumbs_made(walker, page):
    thumbs = page("thumbs.md")
    setup, activate, prepare, up, status, listed, promote, users, _, once_more, plan = thumbs.commands()
    assert (setup, activate) == ("make setup", "source .venv/bin/activate")
    assert promote.startswith("plaudit release promote")  # for those who decide by hand
    assert re.fullmatch(r"python examples/openai_users.py \S+ \d+", users)
    asks, rates, compares = thumbs.blocks("python")

    walker.run(prepare)
    (walker.folder / "plaudit.toml").write_text(thumbs.blocks("toml")[0])
    walker.start(up)
    walker.until("the log says that the service listens", lambda: "listens" in walker.terminal())
    walker.python(asks, rates, compares)
    walker.clock("an answer by the openai package, a thumb, a choice between two")
    walker.until("plaudit status: the feedback is there", lambda: (walker.status(CHANNEL) or {}).get("feedback"))
    walker.clock(walker.run(plan, quiet=True).split("\n\n")[0].replace("\n", " "))

    before = None
    for _ in range(VISITS):
        said = walker.run(users)
        walker.clock(said.strip())
        before = before or share_of_ups(said)
        channel = walker.until("plaudit status: a turn ended", lambda: ended(walker))
        if channel["live"]:
            break
        print(walker.run(status))
    assert channel["live"] > 0, walker.run(status)
    walker.clock(f"version {channel['live']} is live by {channel['live_by']}: {channel['gain']}")
    walker.until(
        "the openai package gets answers of the release",
        lambda: (
            f"release {channel['live']}"
            in walker.python(asks, 'print("release", reply.plaudit["release_versions"][0])')
        ),
    )
    said = walker.run(once_more)
    walker.clock(said.strip())
    assert share_of_ups(said) >= before + 15
    assert CHANNEL.split("/")[0] in walker.run(listed) or "promoted" in walker.run(listed)
    print(walker.run(status))


def ended(walker):
    """The channel, once a release is live, or the learner waits for more after a refusal."""
    channel = walker.status(CHANNEL)
    short = any(need["have"] < need["want"] for need in channel["needs"])
    return channel if channel["live"] or (channel["turns"] and short) else None
