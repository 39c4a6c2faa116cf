"""The checks of `make check` find what they are for; that they pass is what `make check` shows."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import check_breaking, check_docs, generate, validate_compose, validate_kubernetes


def complaints_of(service: dict[str, Any], **compose: Any) -> list[str]:
    healthy = {"healthcheck": {}} | service
    return list(validate_compose.complaints_of_service("registry", healthy, compose))


@pytest.mark.parametrize(
    ("service", "complaint"),
    [
        ({"ports": ["127.0.0.1:7400:7400"]}, "only the gateway may"),
        ({"environment": {"STELLWERK_MONGODB_URI": "mongodb://u:p@mongo"}}, "belongs in a secret file"),
        ({"environment": {"STELLWERK_S3_ACCESS_KEY": "k"}}, "belongs in a secret file"),
        ({"volumes": ["data:/data"]}, "data is not declared under volumes"),
        ({"secrets": [{"source": "runs", "target": "x"}]}, "runs is not declared under secrets"),
    ],
)
def test_compose_rules_find(service: dict[str, Any], complaint: str) -> None:
    (found,) = complaints_of(service)
    assert complaint in found


def test_compose_rules_let_through() -> None:
    service = {
        "environment": {"STELLWERK_SECRETS_ADDRESS": "secrets:7400", "MONGO_PASSWORD_FILE": "/run/secrets/p"},
        "volumes": ["data:/data", "./there:/there"],
        "networks": ["platform"],
    }
    assert complaints_of(service, volumes={"data": {}}, networks={"platform": {}}) == []


def test_the_gateway_is_published_on_loopback_only() -> None:
    service = {"ports": ["8080:8080"], "healthcheck": {}}
    (found,) = validate_compose.complaints_of_service("gateway", service, {})
    assert "only on 127.0.0.1" in found


def test_a_missing_service_is_found() -> None:
    assert "nats is missing" in list(validate_compose.complaints({"services": {}}))


def test_kubernetes_refuses_unknown_fields_and_workloads_without_probes(tmp_path: Path) -> None:
    service_account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "nmae": "x"}
    manifest = tmp_path / "a.yaml"
    manifest.write_text(yaml.safe_dump(service_account))
    assert "nmae" in "".join(validate_kubernetes.schema_complaints(manifest))
    pod = {"spec": {"containers": [{"name": "c", "resources": {}}]}}
    workload = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": pod}}
    assert len(list(validate_kubernetes.workload_complaints(workload))) == 3


def test_a_kustomization_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").touch()
    kustomization = tmp_path / "kustomization.yaml"
    kustomization.write_text("resources: [gone.yaml, ../base]")
    assert list(validate_kubernetes.kustomization_complaints(kustomization)) == [
        "gone.yaml is named but not there",
        "there.yaml is there but not named",
        "../base has no kustomization",
    ]


def test_dead_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `good` heading, here")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[ok](other.md) [ok](#top) [ok](https://example.org/x) [ok](other.md#a-good-heading-here)\n"
        "[gone](gone.md) ![gone](picture.png) [gone](other.md#bad) [outside](../x.md)\n`[code](nothing.md)`\n"
    )
    assert list(check_docs.dead(page)) == [
        "page.md: gone.md is not there",
        "page.md: picture.png is not there",
        "page.md: other.md#bad has no such heading",
        "page.md: ../x.md is outside the repository",
    ]


def test_generated_code_that_is_stale_or_left_over_is_found_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "TARGET", tmp_path)
    wanted = {
        Path("runs/v1/a_pb2.py"): "new",
        Path("runs/v1/b_pb2.py"): "same",
        Path("runs/v1/__init__.py"): "",
    }
    monkeypatch.setattr(generate, "render", lambda: wanted)
    generate.write({**wanted, Path("runs/v1/a_pb2.py"): "old", Path("gone/v1/c_pb2.py"): ""})
    assert generate.stale() == [Path("gone/v1/c_pb2.py"), Path("runs/v1/a_pb2.py")]
    generate.write(wanted)
    assert generate.stale() == []
    assert not (tmp_path / "gone").exists()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one proto, in a path with a space."""
    root = tmp_path / "a checkout"
    proto = root / "protos" / "shop" / "v1" / "shop.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text('syntax = "proto3";\npackage shop.v1;\nmessage Cart {\n  string name = 1;\n}\n')
    (root / "protos" / "buf.yaml").write_text("version: v2\n")
    monkeypatch.setattr(check_breaking, "ROOT", root)
    return root


def commit(repository: Path) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    for arguments in (("init", "--quiet", "-b", "main"), ("add", "."), ("commit", "--quiet", "-m", "first")):
        hooks = ("-c", "core.hooksPath=/dev/null")
        subprocess.run(["git", *identity, *hooks, *arguments], cwd=repository, check=True)


def test_without_history_there_is_nothing_to_break(repository: Path) -> None:
    assert check_breaking.main() == 0


def test_a_field_may_come_but_not_go(repository: Path) -> None:
    commit(repository)
    proto = repository / "protos" / "shop" / "v1" / "shop.proto"
    text = proto.read_text()
    proto.write_text(text.replace("}", "  string note = 2;\n}"))
    assert check_breaking.main() == 0
    proto.write_text(text.replace("  string name = 1;\n", ""))
    assert check_breaking.main() == 1
