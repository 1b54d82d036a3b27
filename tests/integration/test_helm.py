"""The Helm chart: renders, refuses what contradicts itself, and installs on a real API server.

Needs helm: the one on PATH, or the folder bin/ of PLAUDIT_TEST_TOOLS. The last test needs an API server too
(PLAUDIT_TEST_KUBECONFIG).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

import pytest
import yaml
from plaudit.access.admission import check_exposure
from plaudit.settings import Settings, load_settings
from plaudit.testing.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "plaudit"
TOOLS = ROOT / os.environ.get("PLAUDIT_TEST_TOOLS", "../shared/tools")
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
PROCESSES = {"serving": "serve", "join": "join", "learner": "learn"}


def program(name):
    found = shutil.which(name) or shutil.which(name, path=TOOLS / "bin")
    if not found:
        pytest.skip(f"needs {name} on PATH")
    return found


def helm(*args, **options):
    return subprocess.run([program("helm"), *map(str, args)], capture_output=True, text=True, check=False, **options)


def render(*args):
    done = helm("template", "plaudit", CHART, *args)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(documents, kind, suffix=""):
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].endswith(suffix)]
    return found


def workload(documents, process):
    """A process's Deployment, or StatefulSet if its pods have volumes of their own."""
    named = [d for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    (found,) = [d for d in named if d["metadata"]["name"].endswith(f"-{process}")]
    return found


def pod(documents, process):
    return workload(documents, process)["spec"]["template"]["spec"]


def settings_of(documents, tmp_path):
    """Settings that a process reads from the rendered file, by the program's own loader."""
    path = tmp_path / "plaudit.toml"
    path.write_text(only(documents, "ConfigMap")["data"]["plaudit.toml"])
    return load_settings(path, environ={})


def refusal(*args):
    done = helm("template", "plaudit", CHART, *args)
    assert done.returncode != 0, "rendered what must be refused"
    return done.stderr


@pytest.mark.parametrize("values", [None, *EXAMPLES], ids=lambda path: path.stem if path else "defaults")
def test_chart_lints_and_renders_settings_that_the_program_takes(values, tmp_path):
    args = ("-f", values) if values else ()
    done = helm("lint", "--strict", CHART, *args)
    assert done.returncode == 0, done.stdout
    documents = render(*args)
    settings = settings_of(documents, tmp_path)
    assert settings.serve.host == "0.0.0.0"
    assert Settings(**tomllib.loads((tmp_path / "plaudit.toml").read_text())) == settings


def test_given_settings_reach_the_file(tmp_path):
    documents = render("-f", CHART / "ci" / "production-values.yaml", "--set", "settings.serve.port=6000")
    settings = settings_of(documents, tmp_path)
    assert (settings.serve.port, settings.engine.widths) == (6000, (4, 16, 64))
    assert (settings.log.kind, settings.log.kafka.replication, settings.learn.promote) == ("kafka", 3, False)
    assert settings.plugins.allow == ("instruction",)
    container = pod(documents, "serving")["containers"][0]
    assert container["ports"][0] == {"name": "grpc", "containerPort": 6000}
    assert all(
        container[probe]["grpc"]["port"] == 50052 for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )


def test_with_kafka_each_replica_keeps_its_outbox_on_a_volume_that_survives_the_pod():
    serving = workload(render("-f", CHART / "ci" / "production-values.yaml"), "serving")
    assert serving["kind"] == "StatefulSet"
    (claim,) = serving["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert set(serving["spec"]["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    template = serving["spec"]["template"]["spec"]
    assert "data" not in {volume["name"] for volume in template["volumes"]}, "no emptyDir hides the claim"
    assert {"name": "data", "mountPath": "/var/lib/plaudit"} in template["containers"][0]["volumeMounts"]
    assert workload(render(), "serving")["kind"] == "Deployment"


@pytest.mark.parametrize(
    "path",
    [
        "settings.serve.prot=1",
        "settings.serve.handle_keys.a=x",
        "settings.store.url=x",
        "serving.replica=2",
        "images.tag=1",
    ],
)
def test_schema_refuses_unknown_keys_and_secrets(path):
    assert "not allowed" in refusal("--set", path)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["image.tag=latest"], "image/tag"),
        (["data.shared=false"], "sqlite needs data.shared"),
        (["join.replicas=2"], "one partition"),
        (["settings.log.kind=kafka", "data.shared=false"], "secrets.keys.storeUrl"),
        (["settings.serve.drain_seconds=40"], "at least 48"),
        (["settings.serve.port=70000"], "65,535"),
        (["service.type=LoadBalancer"], "beyond the cluster"),
        (["settings.serve.insecure=false"], "tls.existingSecret"),
        (["tls.existingSecret=x"], "settings.access.required=true"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_contradicting_values_are_refused_with_the_remedy(args, says):
    assert says in refusal(*[word for item in args for word in ("--set", item)])


@pytest.mark.parametrize("process", PROCESSES)
def test_pods_meet_the_restricted_profile(process):
    spec = pod(render(), process)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["args"] == [PROCESSES[process]]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp", "/var/lib/plaudit"}


def test_the_chart_as_it_comes_starts_and_a_closed_one_has_its_certificate_where_the_settings_say(tmp_path):
    check_exposure(settings_of(render(), tmp_path))
    documents = render("-f", CHART / "ci" / "production-values.yaml", "--set", "tls.clientCaKey=ca.crt")
    settings = settings_of(documents, tmp_path)
    assert settings.access.required
    assert not settings.serve.insecure
    check_exposure(settings)
    files = {settings.access.tls.certificate, settings.access.tls.key, settings.access.tls.client_ca}
    assert files == {f"/etc/plaudit-tls/{name}" for name in ("tls.crt", "tls.key", "ca.crt")}
    mounts = {p: {m["name"] for m in pod(documents, p)["containers"][0]["volumeMounts"]} for p in PROCESSES}
    assert {process for process, names in mounts.items() if "tls" in names} == {"serving"}
    (volume,) = [each for each in pod(documents, "serving")["volumes"] if each["name"] == "tls"]
    assert volume["secret"]["secretName"] == "plaudit-tls"


def test_secrets_come_by_reference_and_only_where_they_are_used():
    documents = render("-f", CHART / "ci" / "production-values.yaml")
    assert not [d for d in documents if d["kind"] == "Secret"]
    names = {p: {e["name"] for e in pod(documents, p)["containers"][0]["env"] if "valueFrom" in e} for p in PROCESSES}
    keys = {"PLAUDIT_SERVE__HANDLE_KEYS", "PLAUDIT_SERVE__PSEUDONYM_KEY"}
    common = {"PLAUDIT_STORE__URL", "PLAUDIT_LOG__KAFKA__BOOTSTRAP", "PLAUDIT_LOG__KAFKA__TOPIC_PREFIX"}
    assert names == {"serving": common | keys, "join": common, "learner": common}


def test_every_variable_of_the_chart_is_a_setting_of_the_program():
    documents = render("-f", CHART / "ci" / "production-values.yaml")
    for process in PROCESSES:
        variables = {
            e["name"]: "{}" if e["name"].endswith("KEYS") else "x"
            for e in pod(documents, process)["containers"][0]["env"]
        }
        del variables["PLAUDIT_CONFIG"]
        load_settings(environ=variables)


def test_each_process_has_an_account_of_its_own():
    accounts = {process: pod(render(), process)["serviceAccountName"] for process in PROCESSES}
    assert len(set(accounts.values())) == 3
    made = {d["metadata"]["name"] for d in render() if d["kind"] == "ServiceAccount"}
    assert made == set(accounts.values())


def test_what_needs_cluster_features_is_off_until_its_flag_is_set():
    optional = {"ServiceMonitor", "PrometheusRule", "PodDisruptionBudget"}
    assert not optional & {d["kind"] for d in render()}
    assert optional <= {d["kind"] for d in render("-f", CHART / "ci" / "production-values.yaml")}
    assert not [d for d in render("--set", "learner.enabled=false") if d["metadata"]["name"].endswith("-learner")]


def test_alerts_are_about_metrics_that_there_are():
    (group,) = only(render("--set", "prometheusRule.enabled=true"), "PrometheusRule")["spec"]["groups"]
    page = (CHART.parents[1] / "docs" / "metrics.md").read_text()
    # A histogram's count is a series of its own.
    named = [re.findall(r"plaudit_\w+?(?=_count\b|\b)", rule["expr"]) for rule in group["rules"]]
    assert [name for names in named for name in names if f"| `{name}` |" not in page] == []
    assert all(len(names) == 1 for names in named)


def test_service_monitor_finds_the_metrics_port_of_every_process():
    documents = render("--set", "serviceMonitor.enabled=true")
    service = only(documents, "Service", "-metrics")
    monitor = only(documents, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert monitor["endpoints"][0]["honorLabels"], "docs/metrics.md names a label `service`, as Prometheus' target does"
    for process in PROCESSES:
        template = workload(documents, process)["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        assert "metrics" in {port["name"] for port in template["spec"]["containers"][0]["ports"]}


def test_selectors_do_not_carry_versions():
    for document in render("-f", CHART / "ci" / "production-values.yaml"):
        if document["kind"] in ("Deployment", "StatefulSet"):
            labels = document["spec"]["selector"]["matchLabels"]
            assert set(labels) == {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component")}


def test_image_is_the_chart_version_or_the_digest():
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert pod(render(), "join")["containers"][0]["image"] == f"plaudit:{version}"
    digest = "sha256:" + "ab" * 32
    given = render("--set", f"image.digest={digest}", "--set", "image.tag=v9")
    assert pod(given, "join")["containers"][0]["image"] == f"plaudit@{digest}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == version


def test_schema_and_table_of_values_are_generated():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "chart.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_value_has_its_sentence():
    table = (CHART / "README.md").read_text()
    documented = re.findall(r"^\| `([\w.]+)` \|", table, flags=re.MULTILINE)
    free = {"podSecurityContext", "containerSecurityContext"}

    def leaves(values, above=()):
        for key, value in values.items():
            path = ".".join([*above, key])
            if isinstance(value, dict) and value and path not in free and path not in documented:
                yield from leaves(value, [*above, key])
            else:
                yield path

    missing = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()))) - set(documented)
    assert not missing, f'give each a "# --" sentence in values.yaml: {sorted(missing)}'


@pytest.fixture(scope="module")
def api_server(tmp_path_factory):
    """The file by which kubectl reaches a real API server: PLAUDIT_TEST_KUBECONFIG, else that of one started here."""
    config = os.environ.get("PLAUDIT_TEST_KUBECONFIG")
    if config:
        yield config
        return
    starter = TOOLS / "kubernetes" / "kubernetes"
    if not starter.exists():
        pytest.skip("needs an API server: set PLAUDIT_TEST_KUBECONFIG")
    started = tmp_path_factory.mktemp("cluster")
    try:
        printed = subprocess.run([starter, "start", started], capture_output=True, text=True, check=True).stdout
        yield re.search(r"PLAUDIT_TEST_KUBECONFIG=(\S+)", printed)[1].strip("'\"")
    finally:
        subprocess.run([starter, "stop", started], check=False, capture_output=True)


@pytest.fixture
def cluster(api_server):
    """Environment for helm and kubectl, and a namespace of this test on a real API server."""
    environment = {**os.environ, "KUBECONFIG": api_server}
    namespace = f"plaudit-{uuid.uuid4().hex[:12]}"

    def kubectl(*words, check=True):
        subprocess.run([program("kubectl"), *words], env=environment, check=check, capture_output=True)

    kubectl("create", "namespace", namespace)
    try:
        yield environment, namespace
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false", check=False)


@pytest.mark.needs_kubernetes
def test_installs_upgrades_and_rolls_back_under_the_restricted_profile(cluster):
    environment, namespace = cluster

    def kubectl(*args, text=None):
        command = [program("kubectl"), "--namespace", namespace, *args]
        done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    def release(*args):
        done = helm(*args, "--namespace", namespace, "--wait", "--timeout", "240s", env=environment)
        if done.returncode:
            # What helm says names the workloads alone; why they wait stands here.
            seen = [kubectl("get", "nodes,pods,persistentvolumeclaims", "-o", "wide"), kubectl("get", "events")]
            pytest.fail("\n".join([done.stdout, done.stderr, *seen]))

    def serving(kind="deployment"):
        return json.loads(kubectl("get", kind, "plaudit-serving", "-o", "json"))

    for claim in ("plaudit-model", "models", "plaudit-registry"):
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        kubectl(
            "apply",
            "-f",
            "-",
            text=json.dumps(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec}
            ),
        )
    secret = ["handle-keys={}", "pseudonym-key=p", "store-url=u", "kafka-bootstrap=k", "topic-prefix=t"]
    kubectl("create", "secret", "generic", "plaudit", *[f"--from-literal={pair}" for pair in secret])

    release("install", "plaudit", CHART)
    first = serving()
    assert first["status"]["readyReplicas"] == 1
    nodes = set(kubectl("get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}").split())
    assert len(nodes) == 1, "pods that share one volume must share a node"

    release("upgrade", "plaudit", CHART, "-f", CHART / "ci" / "production-values.yaml")
    second = serving("statefulset")
    assert second["status"]["readyReplicas"] == 3
    claims = kubectl("get", "persistentvolumeclaims", "-o", "name")
    assert all(f"data-plaudit-serving-{replica}" in claims for replica in range(3))
    assert kubectl("get", "servicemonitor,prometheusrule,poddisruptionbudget", "-o", "name").count("plaudit") == 3

    release("rollback", "plaudit", "1")
    third = serving()
    assert third["status"]["readyReplicas"] == 1
    assert third["spec"]["template"]["spec"] == first["spec"]["template"]["spec"]
    kubectl("get", "persistentvolumeclaim", "plaudit-data")


# No container runs here: what needs one is asked whether the thing that it names is there.
AS_TYPED = """
set -euo pipefail
kubectl() {
  case "$1" in
    exec | port-forward) command kubectl get "$2" ;;
    cp) command kubectl get pod "${3%%:*}" ;;
    *) command kubectl "$@" ;;
  esac
}
"""


@pytest.mark.needs_kubernetes
@pytest.mark.parametrize("page", ["docs/kubernetes.md", "helm/plaudit/README.md"])
def test_the_pages_commands_run_on_a_cluster(page, cluster, tmp_path):
    environment, namespace = cluster
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    Authority(tmp_path).issue("server")  # server.pem and server.key
    config = shutil.copy(environment["KUBECONFIG"], tmp_path / "config")
    folders = {str(Path(program(name)).parent) for name in ("helm", "kubectl")}
    mine = {**environment, "KUBECONFIG": str(config), "PATH": os.pathsep.join([*folders, environment["PATH"]])}
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
    typed = "".join(block for block in blocks if not block.startswith("docker")).replace("<your registry>", "r.example")
    assert typed.count("kubectl") > 2
    here = f"kubectl config set-context --current --namespace {namespace}\n"
    done = subprocess.run(
        ["bash", "-c", AS_TYPED + here + typed], cwd=tmp_path, env=mine, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
