"""The manifests, as far as they can be tried without a cluster."""

import json
import runpy
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from analytics_site.rig import free_port

from ..processes import wait_for_web, web_process
from . import kubernetes, stack

NAMES = {"web", "worker", "exporter", "beat", "ingestion"}
POD = "10.2.0.7:8084"  # an address of one


def seconds(service: str) -> int:
    return int(stack.OURS[service]["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize(
    "resource",
    [*kubernetes.RESOURCES, *kubernetes.EXAMPLES],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}",
)
def test_every_manifest_fits_its_schema(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_every_file_is_part_of_the_base_or_an_example() -> None:
    files = {file.name for file in kubernetes.FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {*kubernetes.KUSTOMIZATION["resources"], "ingress.example.yaml", "secrets.example.yaml"}


def test_kustomize_puts_together_what_these_tests_read() -> None:
    """Where there is a kubectl; elsewhere the files themselves are what is looked at."""
    if not shutil.which("kubectl"):
        return
    done = subprocess.run(["kubectl", "kustomize", kubernetes.FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    (settings,) = [one for one in rendered if one["kind"] == "ConfigMap"]
    assert settings["data"] == kubernetes.SETTINGS
    found = {(one["kind"], one["metadata"]["name"]) for one in rendered if one is not settings}
    assert found == {(one["kind"], one["metadata"]["name"]) for one in kubernetes.RESOURCES}
    for one in rendered:
        kubernetes_validate.validate(one, "1.37", strict=True)
        for container in one.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            assert container["envFrom"][0]["configMapRef"]["name"] == settings["metadata"]["name"]


# ── What runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_processes_images_and_commands_are_those_of_compose() -> None:
    assert kubernetes.of_kind("Deployment").keys() == NAMES
    assert kubernetes.pods().keys() == stack.OURS.keys()
    for name, container in kubernetes.containers():
        assert container["image"] == stack.OURS[name]["image"]
        if container["name"] == name:
            assert container.get("command") == stack.OURS[name].get("command"), name


def test_exactly_one_beat_runs() -> None:
    spec = kubernetes.of_kind("Deployment")["beat"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("name", sorted(NAMES))
def test_pods_wait_for_the_migrations_of_their_image(name: str) -> None:
    (wait,) = kubernetes.pods()[name]["spec"]["initContainers"]
    assert "until python manage.py migrate --check" in wait["command"][-1]


@pytest.mark.parametrize(
    ("name", "container"), list(kubernetes.containers()), ids=lambda one: one if isinstance(one, str) else one["name"]
)
def test_every_container_is_confined(name: str, container: dict[str, Any]) -> None:
    """Pod Security Standards, restricted; beyond that a root file system that can't be written to."""
    pod = kubernetes.pods()[name]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert f"--uid {pod['securityContext']['runAsUser']} " in " ".join(stack.instructions("RUN"))
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} == container["resources"]["requests"].keys()
    assert {"memory"} == container["resources"]["limits"].keys()
    volumes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.items() <= {"tmp": "/tmp", "exports": kubernetes.SETTINGS["EXPORT_FOLDER"]}.items()
    assert mounted.keys() <= volumes.keys()


def test_memory_limits_are_those_of_compose() -> None:
    for name in NAMES:
        (container,) = kubernetes.pods()[name]["spec"]["containers"]
        assert container["resources"]["limits"]["memory"] == stack.OURS[name]["mem_limit"].upper() + "i"


def test_pods_have_the_time_that_their_processes_take_to_end() -> None:
    for name, pod in kubernetes.pods().items():
        if name in NAMES:
            assert pod["spec"]["terminationGracePeriodSeconds"] >= seconds(name), name
    web = kubernetes.pods()["web"]["spec"]
    (container,) = web["containers"]
    program, before = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    graceful = runpy.run_path(str(stack.ROOT / "deploy/gunicorn.conf.py"))["graceful_timeout"]
    assert web["terminationGracePeriodSeconds"] >= int(before) + graceful + 5


# ── Probes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_probes_that_run_something_are_those_of_compose() -> None:
    """tests/deploy/test_stack.py tries these on processes."""
    for name, kind in (("worker", "readinessProbe"), ("exporter", "readinessProbe"), ("beat", "livenessProbe")):
        (container,) = kubernetes.pods()[name]["spec"]["containers"]
        probe = container[kind]
        assert probe["exec"]["command"] == stack.OURS[name]["healthcheck"]["test"][1:]
        assert f"{probe['timeoutSeconds']}s" == stack.OURS[name]["healthcheck"]["timeout"]


@pytest.mark.django_db
def test_web_answers_its_probes(tmp_path: Path) -> None:
    """As they ask: of their own host or, without one, of the address of a pod."""
    (container,) = kubernetes.pods()["web"]["spec"]["containers"]
    (port,) = container["ports"]
    probes = [container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["port"] for probe in probes} == {port["name"]}
    settings = kubernetes.variables_of("web")
    assert str(port["containerPort"]) == settings["HTTP_PORT"]
    own = {name: settings[name] for name in ("PUBLIC_URL", "TRUSTED_PROXIES", "WEB_CONCURRENCY")}
    mine = free_port()
    with web_process(tmp_path / "log", HTTP_PORT=str(mine), **own) as process:
        wait_for_web(f"http://127.0.0.1:{mine}", process, tmp_path / "log")
        for probe in probes:
            headers = {"Host": POD} | {header["name"]: header["value"] for header in probe.get("httpHeaders", ())}
            request = urllib.request.Request(f"http://127.0.0.1:{mine}{probe['path']}", headers=headers)
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200


def test_workers_tell_their_metrics_at_the_port_that_is_named() -> None:
    for name in ("worker", "exporter", "ingestion"):
        assert ports(name) == {"metrics": int(kubernetes.SETTINGS["METRICS_PORT"])}


def test_ingestion_is_asked_where_it_tells_its_metrics() -> None:
    """That it listens there while it reads and while it waits, tests/ingestion/stream/test_workers.py shows."""
    (container,) = kubernetes.pods()["ingestion"]["spec"]["containers"]
    for kind in ("startupProbe", "livenessProbe"):
        assert container[kind]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert "readinessProbe" not in container


# ── What goes together ───────────────────────────────────────────────────────────────────────────────────────────


def selected(labels: dict[str, str]) -> set[str]:
    return {name for name, pod in kubernetes.pods().items() if labels.items() <= pod["metadata"]["labels"].items()}


def ports(name: str) -> dict[str, int]:
    (container,) = kubernetes.pods()[name]["spec"]["containers"]
    return {port["name"]: port["containerPort"] for port in container.get("ports", ())}


def test_selectors_find_the_pods_that_they_are_named_for() -> None:
    for name, deployment in kubernetes.of_kind("Deployment").items():
        assert selected(deployment["spec"]["selector"]["matchLabels"]) == {name}
    for name, service in kubernetes.of_kind("Service").items():
        assert selected(service["spec"]["selector"]) == {name}
        (port,) = service["spec"]["ports"]
        assert ports(name)[port["targetPort"]] == port["port"]
    for name, budget in kubernetes.of_kind("PodDisruptionBudget").items():
        assert selected(budget["spec"]["selector"]["matchLabels"]) == {name}
        assert kubernetes.of_kind("Deployment")[name]["spec"]["replicas"] > budget["spec"]["maxUnavailable"]


def test_every_pod_is_closed_but_for_what_is_named() -> None:
    policies = kubernetes.of_kind("NetworkPolicy")
    everything = policies.pop("analytics")["spec"]
    assert selected(everything["podSelector"]["matchLabels"]) == kubernetes.pods().keys()
    assert set(everything["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in everything
    for name, policy in policies.items():
        assert selected(policy["spec"]["podSelector"]["matchLabels"]) == {name}
        (rule,) = policy["spec"]["ingress"]
        assert {port["port"] for port in rule["ports"]} == ports(name).keys()
    assert policies.keys() == {name for name in NAMES if ports(name)}


def test_the_ingress_leads_to_web_and_keeps_metrics_inside() -> None:
    ingress, nowhere = kubernetes.read("ingress.example.yaml")
    (rule,) = ingress["spec"]["rules"]
    paths = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert paths == {"/metrics": nowhere["metadata"]["name"], "/": "web"}
    assert "selector" not in nowhere["spec"]
    assert kubernetes.SETTINGS["PUBLIC_URL"] == f"https://{rule['host']}"


def test_no_secret_is_written_down() -> None:
    assert "secrets.example.yaml" not in kubernetes.KUSTOMIZATION["resources"]
    secret = {name: value for name, value in kubernetes.SECRETS.items() if value}
    assert all("change-me" in value for value in secret.values())
    assert not kubernetes.SECRETS.keys() & kubernetes.SETTINGS.keys()
    assert "change-me" not in json.dumps(kubernetes.SETTINGS)
