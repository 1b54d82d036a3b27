"""`learn.*`: the learner."""

from __future__ import annotations

from pydantic import Field

from plaudit.settings.section import Section


class ChannelLearnSettings(Section):
    """When a channel learns, and what becomes of what it learnt."""

    min_events: int = Field(default=200, ge=1, le=100_000_000)
    """New training events that start a turn."""
    promote: bool = True
    """Promote what the gate accepts; otherwise an operator does."""
    seed: int = Field(default=0, ge=0, le=4_294_967_295)
    """Seed of all that is drawn; the turn that makes version v draws from seed + v."""
    quarantine_acts_per_minute: int = Field(default=0, ge=0, le=1_000_000)
    """A rater who gives more feedback within a minute is put in quarantine before a turn (docs/access.md); 0: none."""
    quarantine_one_answer: int = Field(default=0, ge=0, le=1_000_000)
    """The same for a rater with this many thumbs or comparisons, all one way, if others answer otherwise; 0: nobody."""
    kept_mb: int = Field(default=512, ge=0, le=1_000_000)
    """Maximum size (MiB) of the features, and of the base answers, that a turn leaves on disk for the next; 0: none."""
    compared_turns: int = Field(default=0, ge=0, le=1_000)
    """Newest turns whose compared states' answers to held-out prompts stay in `kept/`, for a judge; 0: none."""


class LearnSettings(ChannelLearnSettings):
    """The learner."""

    poll_seconds: float = Field(default=1.0, ge=0.01, le=3_600)
    """Wait between looks at the evidence."""
    backoff_seconds: float = Field(default=600.0, ge=1, le=86_400)
    """Longest pause of a channel whose turns fail; the first is two seconds, and each failure doubles it."""
    nice: int = Field(default=10, ge=0, le=19)
    """Niceness, so that serving goes first on few cores."""
    max_turns: int = Field(default=0, ge=0, le=1_000_000)
    """Turns after which the learner ends; 0 never."""
    process_seconds: float = Field(default=1_800, ge=1, le=86_400)
    """Longest wait of a learner that torchrun started for its other processes, at the start and at each pass."""
    metrics_port: int = Field(default=9466, ge=0, le=65535)
    """Prometheus port of a learner that goes on (not of `--once`), on serve.host; 0 turns it off."""
