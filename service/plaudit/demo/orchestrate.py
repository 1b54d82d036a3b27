"""The demo, stage by stage: serve, ask and rate, learn, swap, rate again, learn again, judge, replay, audit.

Enters: options. Leaves: a Report. Every process is a command of `plaudit` over one data directory, as on a laptop or
in a cluster; this module starts them, waits and reads what they wrote. It trains nothing and judges nothing itself.
A gate that refuses everything is a result; a process that fails is an error with the end of its log.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import plaudit
from plaudit.demo import audit, measure, people, plan, vllm
from plaudit.demo.plan import DemoOptions, People, Scale
from plaudit.demo.processes import Child, DemoFailed, Processes, model_environ
from plaudit.demo.progress import Progress
from plaudit.demo.report import Report
from plaudit.errors import Misconfigured
from plaudit.eventlog import open_log
from plaudit.evidence.store import EvidenceStore, JoinCounts
from plaudit.release.registry import Registry
from plaudit.settings import Settings, load_settings
from plaudit.settings.text import toml
from plaudit.store import kept

LEARNER_FILE = "learner.json"
# From this step of a turn on (5, register) a release goes live within a second or two.
SWAP_STEP = 5
_READY_SECONDS = 300.0
_VLLM_READY_SECONDS = 3600.0  # On a busy machine it compiles and imports for a quarter of an hour.
_SETTLE_SECONDS = 120.0
_PATIENCE_SECONDS = 150.0  # People finish the requests that they have open; a request's deadline is 120 s.
_PACKAGES = ("torch", "transformers", "peft", "grpcio", "sqlalchemy")


def run_demo(options: DemoOptions) -> Report:
    """Run every stage and write the report into `options.out`; raises DemoFailed if a process fails."""
    _clear(options)
    with Progress() as progress, Processes(options.out / "logs", threads=plan.threads()) as processes:
        demo = _Demo(options, choose_people(options, processes, progress), progress, processes)
        try:
            measured = demo.run()
        finally:
            demo.close()
    report = Report({**measured, "seconds": round(progress.seconds, 1), "stage_seconds": progress.stage_seconds})
    report.write(options.out)
    if not options.keep_data:
        shutil.rmtree(options.data_dir, ignore_errors=True)
    return report


def choose_people(options: DemoOptions, processes: Processes, progress: Progress) -> People:
    """Who asks and rates, out of what a process of the simulator says is installed."""
    progress.stage(plan.FIND)
    out = options.out / "populations.json"
    processes.run("populations", ["populations", "--out", str(out)], lambda: None)
    return plan.choose_people(json.loads(out.read_text(encoding="utf-8")), options)


class _Demo:
    def __init__(self, options: DemoOptions, who: People, progress: Progress, processes: Processes) -> None:
        self.options = options
        self.who = who
        self.channel = who.channel
        self.scale: Scale = plan.scale(who)
        self.progress = progress
        self.processes = processes
        self.settings = Settings()
        self.target = ""
        self._store: EvidenceStore | None = None
        self._opened: Registry | None = None
        self._ledgers: list[str] = []
        self._counted = 0.0
        self._due = 0
        self._before = 0
        self._learning: Child | None = None
        self._vllm: list[str] = []

    def run(self) -> dict[str, Any]:
        """Every stage in order; the report's data but for its times."""
        self.progress.plan(plan.stages(self.scale))
        self.progress.stage(plan.PREPARE)
        self._configure()
        self.progress.stage(plan.START)
        serving, joining = self._start()
        for turn in range(1, self.scale.turns + 1):
            self.progress.stage(plan.rating(turn))
            self._rate(turn)
            self._settle(joining)
            self._due = 0
            self.progress.stage(plan.learning(turn))
            self._turn(turn)
        self.progress.stage(plan.JUDGE)
        judged = self._evaluate()
        states = self._judge_states()
        self.processes.end(serving)
        self.progress.stage(plan.PICK)
        self._pick(judged)
        self.progress.stage(plan.REPLAY)
        replay = self._replay()
        self.progress.stage(plan.AUDIT)
        self._settle(joining)
        self.processes.end(joining)
        return {**self._measure(judged, replay), "turns": states}

    # Stages ------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        model = plan.cache_dir() / self.who.model
        self.processes.run("model", ["model", "prepare", self.who.model, "--out", str(model)], self._tick)
        table = plan.settings_table(self.options, self.who, model)
        if self.options.vllm is not None:
            self._vllm = [
                *vllm.command(self.options.vllm, model.absolute(), port := vllm.free_port(), context_length=512)
            ]
            servers = [f"http://127.0.0.1:{port}"]
            table["engine"] = {**table.get("engine", {}), "kind": "vllm", "context_length": 512}
            table["engine"]["vllm"] = {"servers": servers, "dtype": "float32", "silence_seconds": 300.0}
        self.options.config.write_text(toml(table), encoding="utf-8")
        overrides = [*self.options.overrides, f"data_dir={self.options.data_dir.absolute()}"]
        self.settings = load_settings(self.options.config, overrides)
        if self.settings.log.kind == "kafka" and not self.settings.log.kafka.bootstrap:
            raise Misconfigured(
                "--log kafka needs a broker; name it by --set log.kafka.bootstrap=host:port", setting="log.kafka"
            )

    def _start(self) -> tuple[Child, Child]:
        if self._vllm:
            program, *arguments = self._vllm
            environ = vllm.environ(plan.threads())
            self.processes.start("vllm", arguments, environ=environ, program=(program,))
        serving = self.processes.start("serve", ["serve", *plan.common(self.options)], environ=model_environ())
        self.target = self._wait_until_ready()
        joining = self.processes.start("join", ["join", *plan.common(self.options)])
        return serving, joining

    def _rate(self, turn: int) -> None:
        """One round of feedback: on the base before the first turn, then on the live release's own answers."""
        self._due, self._before = self.scale.acts(turn, self.who), self._counts().acknowledged
        if turn == 1:
            self._people("people-1", self._due, self.scale.acts_per_interaction)
        else:
            self._people(
                f"people-{turn}",
                self._due,
                self.scale.own_acts_per_interaction,
                base_share=self.scale.own_base_share,
                round_=turn - 1,
            )

    def _people(
        self, name: str, events: int, acts_per_interaction: float, base_share: float = 0.0, round_: int = 0
    ) -> None:
        """The same people in every round; what they ask and the noise of their answers are drawn anew."""
        arguments = people.simulate_arguments(
            population=self.who.name,
            target=self.target,
            events=events,
            seed=self.options.seed,
            round_=round_,
            concurrency=self.scale.people,
            temperature=self.settings.policy.temperature,
            ledger=self._ledger(name),
            acts_per_interaction=acts_per_interaction,
            base_share=base_share,
        )
        self.processes.run(name, arguments, self._tick)

    def _turn(self, turn: int) -> None:
        """One turn of the learner under light traffic; while its release goes live, under much more."""
        before = self._live()
        bell = self.options.data_dir / f"swap-{turn}"
        light = self._traffic(f"light-{turn}", self.scale.light_people, 0.5, 100 + turn, pause=self.scale.light_pause)
        # These people are ready before the moment, and ask only then: serving has priority over training, and a
        # crowd that stays would starve the learner.
        crowd = self._traffic(f"swap-{turn}", self.scale.swap_people, 0.1, 200 + turn, after=bell)
        learner = self.processes.start(
            f"learn-{turn}", ["learn", "--once", *plan.common(self.options)], ends=True, environ=model_environ()
        )

        def tick() -> None:
            if self._learner().get("step", 0) >= SWAP_STEP:
                bell.touch()
            self._tick()

        self._learning = learner
        self.processes.wait(learner, tick)
        self._learning = None
        if self._live() != before:
            self._wait(self.scale.settle_seconds)
        for child in (crowd, light):
            self.processes.end(child, _PATIENCE_SECONDS)
        self._say_outcome(turn, before)

    def _traffic(
        self,
        name: str,
        concurrency: int,
        acts: float,
        seed: int,
        *,
        pause: float = 0.0,
        after: Path | None = None,
    ) -> Child:
        """People who ask all the time and rate now and then, until they are asked to end."""
        arguments = people.simulate_arguments(
            population=self.who.name,
            target=self.target,
            events=0,
            seed=self.options.seed + seed,
            concurrency=concurrency,
            temperature=self.settings.policy.temperature,
            ledger=self._ledger(name),
            acts_per_interaction=acts,
            pause=pause,
            after=after,
        )
        return self.processes.start(name, arguments)

    def _evaluate(self) -> dict[str, Any]:
        out = self.options.out / "evaluation.json"
        arguments = people.evaluate_arguments(
            population=self.who.name,
            target=self.target,
            versions=self._served_versions(),
            seed=self.options.seed,
            concurrency=self.scale.people,
            temperature=self.settings.policy.temperature,
            prompts=self.scale.judged_prompts,
            samples=self.scale.judged_samples,
            out=out,
            answers=self.options.out / "answers.json",
        )
        self.processes.run("evaluate", arguments, self._tick)
        judged: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return judged

    def _judge_states(self) -> list[dict[str, Any]]:
        """What the hidden preference says of the states that each turn compared; nothing for decisions."""
        left = sorted(kept.folder_of(self.settings.data_dir, self.channel).glob("compared-*.json"))
        if not left:
            return []
        out = self.options.out / "states.json"
        arguments = people.judge_states_arguments(
            population=self.who.name, seed=self.options.seed, states=left, out=out
        )
        self.processes.run("judge-states", arguments, self._tick)
        found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return found

    def _pick(self, judged: dict[str, Any]) -> None:
        """Adds a baseline: what the newest reward model likes best among the base's answers, or the options."""
        versions = self._served_versions()
        if not versions:
            return
        out, answers = self.options.out, self.options.out / "answers.json"
        picks, figures = out / "picks.json", out / "picked.json"
        pick = ["best-of", str(self.channel), str(versions[-1]), "--answers", str(answers), "--out", str(picks)]
        self.processes.run("best-of", [*pick, *plan.common(self.options)], self._tick)
        arguments = people.judge_arguments(
            population=self.who.name, seed=self.options.seed, answers=answers, picks=picks, out=figures
        )
        self.processes.run("judge", arguments, self._tick)
        judged["baselines"][judged["picked_as"]] = json.loads(figures.read_text(encoding="utf-8"))

    def _replay(self) -> dict[str, Any]:
        out = self.options.out / "replay.json"
        arguments = ["replay", str(self.channel), "--count", str(self.scale.replayed), "--out", str(out)]
        self.processes.run("replay", [*arguments, *plan.common(self.options)], self._tick)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found

    def _measure(self, judged: dict[str, Any], replay: dict[str, Any]) -> dict[str, Any]:
        ledger = sum((people.read_ledger(self.options.out / name) for name in self._ledgers), people.Ledger())
        log = open_log(self.settings)
        try:
            contents = audit.read_log(log, self.channel)
        finally:
            log.close()
        assert self._store is not None, "the stages before have counted in it"
        registry = self._registry()
        frozen = self._store.freeze(self.channel, registry.salt(self.channel))
        figures = {int(version): values for version, values in judged["releases"].items()}
        replies = contents.replies
        return {
            "requests": {
                "sent": ledger.sent + sum(reply.evaluation for reply in replies),
                "failed": ledger.failed,
                "altered": replay["altered"],
            },
            "feedback": audit.feedback_counts(ledger.acknowledged, contents, self._store.counts(self.channel), frozen),
            "releases": measure.releases(registry, self.channel, figures, replies),
            "domain": self.channel.domain,
            "population": self.who.name,
            "headline": judged["headline"],
            "baselines": {name: row[judged["headline"]] for name, row in judged["baselines"].items()},
            "freshness_seconds": measure.freshness(registry, self.channel, frozen, replies),
            "seed": self.options.seed,
            "versions": versions(),
            "quick": self.options.quick,
            "baseline_figures": judged["baselines"],
            **judged["notes"],
            "advantages": self.settings.policy.advantage,
            "examples": measure.pick_examples(judged["examples"]),
            "replay": replay,
            "swaps": measure.swaps(registry.history(self.channel), replies),
            "commands": self.processes.commands,
        }

    def close(self) -> None:
        """Close what the stages opened."""
        if self._store is not None:
            self._store.close()
        if self._opened is not None:
            self._opened.close()

    # Waiting and looking -----------------------------------------------------------------------------

    def _wait_until_ready(self) -> str:
        """The address of the service once its health says SERVING."""
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        from plaudit.addresses import no_proxy
        from plaudit.serving.server import read_address

        patience = _VLLM_READY_SECONDS if self._vllm else _READY_SECONDS
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            self._wait(0.3)
            target = read_address(self.settings.data_dir)
            if target is None:
                continue
            with grpc.insecure_channel(target, no_proxy(target)) as channel:
                try:
                    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
                except grpc.RpcError:
                    continue
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return target
        raise DemoFailed(f"serving was not ready after {patience:.0f} s; see {self.options.out / 'logs/serve.log'}")

    def _settle(self, joining: Child) -> None:
        """Wait until the join has read every act that was acknowledged and no act waits for its interaction."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        told = sum(len(people.read_ledger(self.options.out / name).acknowledged) for name in self._ledgers)
        counts = self._counts()
        while time.monotonic() < deadline:
            counts = self._counts()
            if counts.acknowledged >= told and not counts.waiting:
                return
            self._wait(0.3)
        behind = f"after {_SETTLE_SECONDS:.0f} s the join has read {counts.acknowledged} of {told} acts"
        raise DemoFailed(f"{behind}, and {counts.waiting} wait; the end of {joining.log}:\n{joining.tail()}")

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._tick()
            self.processes.check()
            time.sleep(0.2)

    def _tick(self) -> None:
        """Show where things stand, at most once per second: the counts are SQL."""
        if time.monotonic() - self._counted < 1.0:
            return
        self._counted = time.monotonic()
        counts, live = self._counts(), self._live()
        self.progress.facts(
            replies=f"{counts.interactions:,}" if counts.interactions else "",
            feedback=f"{counts.acknowledged:,}" if counts.acknowledged else "",
            answering=(f"release {live}" if live else "the base model") if self.target else "",
        )
        learner = self._learner()
        if self._due:
            self.progress.at((counts.acknowledged - self._before) / self._due)
        elif self._learning and learner.get("pid") == self._learning.process.pid:
            # What an earlier learner wrote is about an earlier turn.
            self.progress.at(*plan.turn_part(learner))

    def _counts(self) -> JoinCounts:
        if not self.target:
            return JoinCounts()
        self._store = self._store or EvidenceStore(self.settings.store_url)
        return self._store.counts(self.channel)

    def _learner(self) -> dict[str, Any]:
        return _json_or_nothing(self.settings.data_dir / LEARNER_FILE)

    def _registry(self) -> Registry:
        self._opened = self._opened or Registry(self.settings.store_url, self.settings.registry_root)
        return self._opened

    def _live(self) -> int:
        state = self._registry().state(self.channel) if self.target else None
        return state.live if state else 0

    def _served_versions(self) -> list[int]:
        return sorted({change.live for change in self._registry().history(self.channel)} - {0})

    def _say_outcome(self, turn: int, before: int) -> None:
        live = self._live()
        if live != before:
            self.progress.say(f"turn {turn}: release {live} is live")
            return
        newest = self._registry().releases(self.channel)[-1]
        decision = json.loads(newest.decision_json) if newest.decision_json else {}
        failed = ", ".join(check["name"] for check in decision.get("checks", []) if not check["passed"])
        why = f"failed checks: {failed}" if failed else str(self._learner().get("detail", ""))
        self.progress.say(f"turn {turn}: nothing was promoted; {why}")

    def _ledger(self, name: str) -> Path:
        self._ledgers.append(f"ledger-{name}.json")
        return self.options.out / self._ledgers[-1]


def versions() -> dict[str, str]:
    """Versions that decide the figures."""
    found = {"plaudit": plaudit.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _clear(options: DemoOptions) -> None:
    """Remove what an earlier demo left in `out`, and nothing else."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("data", "logs"):
        shutil.rmtree(options.out / name, ignore_errors=True)
    for pattern in (
        *("ledger-*.json", "populations.json", "evaluation.json", "answers.json"),
        *("pick*.json", "states.json", "replay.json", "report.*"),
    ):
        for path in options.out.glob(pattern):
            path.unlink()


def _json_or_nothing(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
