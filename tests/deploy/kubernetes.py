"""The manifests of `deploy/kubernetes`, as kustomize puts them together."""

from collections.abc import Iterator
from typing import Any

import yaml

from . import stack

FOLDER = stack.ROOT / "deploy/kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def environment_file(text: str) -> dict[str, str]:
    """Lines `NAME=value`, as kustomize and systemd read them."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


(_GENERATED,) = KUSTOMIZATION["configMapGenerator"]
SETTINGS = {
    name: value for file in _GENERATED["envs"] for name, value in environment_file((FOLDER / file).read_text()).items()
}
SECRETS: dict[str, str] = read("secrets.example.yaml")[0]["stringData"]
RESOURCES = [resource for file in KUSTOMIZATION["resources"] for resource in read(file)]
EXAMPLES = [*read("ingress.example.yaml"), *read("secrets.example.yaml")]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {resource["metadata"]["name"]: resource for resource in RESOURCES if resource["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """The template of each Deployment and Job."""
    return {name: one["spec"]["template"] for kind in ("Deployment", "Job") for name, one in of_kind(kind).items()}


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods().items():
        for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]:
            yield name, container


def variables_of(name: str) -> dict[str, str]:
    """What the container of a Deployment or Job finds in its environment."""
    (container,) = pods()[name]["spec"]["containers"]
    sources = {"configMapRef": {_GENERATED["name"]: SETTINGS}, "secretRef": {"analytics-secrets": SECRETS}}
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        ((kind, reference),) = source.items()
        found |= sources[kind][reference["name"]]
    return found | {variable["name"]: variable["value"] for variable in container.get("env", ())}
