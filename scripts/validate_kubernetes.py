"""Validates k8s/ without a network or a cluster.

Every manifest is checked against the schemas of the Kubernetes API that
`kubernetes-validate` ships, unknown fields refused. Besides: each kustomization names
exactly the manifests beside it, and every service of the repository is in the base with
probes and resources.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "k8s"
# The oldest release that the manifests promise to work with.
VERSION = "1.35"
WORKLOADS = {"Deployment", "StatefulSet"}


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of one file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def schema_complaints(path: Path) -> Iterator[str]:
    """Where a manifest is not what the Kubernetes API takes."""
    for document in documents(path):
        name = f"{document['kind']}/{document['metadata']['name']}"
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{name}: Kubernetes {VERSION} has no such kind in {document['apiVersion']}"


def kustomization_complaints(path: Path) -> Iterator[str]:
    """Manifests that a kustomization names and has not, or has and does not name."""
    named = {entry for entry in documents(path)[0].get("resources", []) if entry.endswith(".yaml")}
    there = {manifest.name for manifest in path.parent.glob("*.yaml")} - {path.name}
    yield from (f"{name} is named but not there" for name in sorted(named - there))
    yield from (f"{name} is there but not named" for name in sorted(there - named))
    folders = (entry for entry in documents(path)[0].get("resources", []) if not entry.endswith(".yaml"))
    yield from (
        f"{entry} has no kustomization"
        for entry in folders
        if not (path.parent / entry / path.name).is_file()
    )


def workload_complaints(workload: dict[str, Any]) -> Iterator[str]:
    """What every container of ours must have."""
    for container in workload["spec"]["template"]["spec"]["containers"]:
        for field in ("livenessProbe", "readinessProbe", "resources", "securityContext"):
            if field not in container:
                yield f"{workload['kind']}/{workload['metadata']['name']}: {container['name']} has no {field}"


def base_complaints() -> Iterator[str]:
    """Services that the base does not run, and workloads that lack what all must have."""
    found = [document for path in sorted(FOLDER.rglob("*.yaml")) for document in documents(path)]
    kinds = {*WORKLOADS, "PodTemplate"}
    placed = {document["metadata"]["name"] for document in found if document.get("kind") in kinds}
    services = {path.parent.name for path in (ROOT / "services").glob("*/pyproject.toml")}
    yield from (f"service {name} is missing" for name in sorted(services - placed))
    for document in found:
        if document.get("kind") in WORKLOADS:
            yield from workload_complaints(document)


def main() -> int:
    found = list(base_complaints())
    for path in sorted(FOLDER.rglob("*.yaml")):
        check = kustomization_complaints if path.name == "kustomization.yaml" else schema_complaints
        found += [f"{path.relative_to(FOLDER)}: {complaint}" for complaint in check(path)]
    for complaint in found:
        print(f"k8s: {complaint}")
    print(f"k8s: {'broken' if found else 'ok'}, Kubernetes {VERSION}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
