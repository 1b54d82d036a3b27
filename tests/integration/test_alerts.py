"""The chart's alerts, by Prometheus' own tool: each fires on what it is for, and on nothing that is well.

Needs promtool (Debian's package prometheus has it) and helm.
"""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from plaudit.metrics import Metrics
from prometheus_client import CollectorRegistry

from .test_helm import only, program, render

CASES = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())
METRICS = Metrics(CollectorRegistry())
# What every process gives from its start: metrics without labels.
AT_START = [sample.name for metric in METRICS.registry.collect() for sample in metric.samples if not sample.labels]
LABELS = {each.name: set(each.labels) for each in METRICS.descriptions}


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """The file of the rules as the chart makes it for a release `plaudit`, and its alerts by name."""
    program("promtool"), program("helm")
    made = render("--namespace", "here", "--set", "prometheusRule.enabled=true")
    groups = {"groups": only(made, "PrometheusRule")["spec"]["groups"]}
    file = tmp_path_factory.mktemp("rules") / "alerts.json"
    file.write_text(json.dumps(groups))
    return file, {rule["alert"]: rule for group in groups["groups"] for rule in group["rules"]}


def promtool(*words):
    done = subprocess.run([program("promtool"), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def series(pod, metric, labels, values):
    """As promtool takes it; a pod is one of the namespace `here` if it names no other."""
    namespace, _, pod = f"here/{pod}".rpartition("/")
    whole = {"namespace": namespace.removeprefix("here/"), "pod": pod} | labels
    assert metric in AT_START or LABELS[metric] == set(labels), f"no process has {metric} with {sorted(labels)}"
    return {"series": f"{metric}{{{', '.join(f'{name}={json.dumps(value)}' for name, value in whole.items())}}}"} | {
        "values": values
    }


def given(case):
    """All that is measured: what a case says counts more than what a process gives from its start."""
    own = [series(pod, metric, labels, values) for metric, pod, labels, values in case.get("series", ())]
    named = {each["series"] for each in own}
    every = [series(pod, metric, {}, values) for pod, values in case["pods"].items() for metric in AT_START]
    return [*own, *(each for each in every if each["series"] not in named)]


def expected(rule, labels):
    return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": rule["annotations"]}


def test_prometheus_takes_the_rules(rules):
    promtool("check", "rules", rules[0])


def test_every_alert_fires_in_some_case(rules):
    fired = {alert for case in CASES for alerts in case["at"].values() for alert in alerts}
    assert fired == set(rules[1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_what_fires(rules, case, tmp_path):
    file, alerts = rules
    tests = [
        {"eval_time": time, "alertname": name, "exp_alerts": [expected(rule, each) for each in fires.get(name, ())]}
        for time, fires in case["at"].items()
        for name, rule in alerts.items()
    ]
    whole = {
        "rule_files": [str(file)],
        "evaluation_interval": "30s",
        "tests": [{"interval": "30s", "input_series": given(case), "alert_rule_test": tests}],
    }
    (tmp_path / "test.json").write_text(json.dumps(whole))
    promtool("test", "rules", tmp_path / "test.json")
