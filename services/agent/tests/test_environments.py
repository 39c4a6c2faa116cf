"""Environments built by the real uv from the real package index, with a package of one file."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from stellwerk_agent.environments import Environments, clean_environment, digest_of
from stellwerk_agent.failure import StepFailed
from stellwerk_protos.registry.v1.environments_pb2 import (
    EnvironmentVersion,
    GetEnvironmentVersionRequest,
    LockEnvironmentVersionRequest,
)

NAME = "workspaces/demo/environments/e/versions/1"


class Registry:
    """Stands for the registry, so that a test decides who locked first."""

    def __init__(self, *packages: str) -> None:
        self.version = EnvironmentVersion(name=NAME, packages=packages, variables={"A": "1"})
        self.locks = 0

    async def GetEnvironmentVersion(
        self, request: GetEnvironmentVersionRequest, timeout: float
    ) -> EnvironmentVersion:
        copy = EnvironmentVersion()
        copy.CopyFrom(self.version)
        return copy

    async def LockEnvironmentVersion(
        self, request: LockEnvironmentVersionRequest, timeout: float
    ) -> EnvironmentVersion:
        self.locks += 1
        if not self.version.digest:
            self.version.lock, self.version.digest = request.lock, request.digest
        return self.version


def environments(cache: Path, registry: Registry) -> Environments:
    return Environments(cache, registry)  # type: ignore[arg-type]  # the two methods that are called


async def test_an_environment_is_locked_and_built_once(tmp_path: Path) -> None:
    cache, log = tmp_path / "a cache", tmp_path / "environment.log"
    registry = Registry("six==1.16.0")
    one, other = environments(cache, registry), environments(cache, registry)
    built = await asyncio.gather(one.provide(NAME, log), other.provide(NAME, log))
    assert sorted(e.note for e in built) == ["environment built", "environment served from the cache"]
    assert built[0].python == built[1].python
    assert built[0].variables == {"A": "1"}
    command = [str(built[0].python), "-c", "import six; print(six.__version__)"]
    said = await asyncio.to_thread(subprocess.check_output, command, env=clean_environment())
    assert said == b"1.16.0\n"
    assert list((built[0].folder / "lib").glob("python*/site-packages/__pycache__/six.*.pyc"))
    assert "--hash=sha256:" in registry.version.lock
    assert "uv pip compile" in log.read_text()
    again = await environments(cache, registry).provide(NAME, log)
    assert (again.note, registry.locks) == ("environment served from the cache", 2)


async def test_a_build_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    registry = Registry()
    lock = ""
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = tmp_path / "envs" / digest_of(lock, python_version).partition(":")[2]
    folder.mkdir(parents=True)
    (folder / "rest").write_text("of a build that died")
    built = await environments(tmp_path, registry).provide(NAME, tmp_path / "log")
    assert built.folder == folder
    assert built.python.exists()
    assert not (folder / "rest").exists()


@pytest.mark.parametrize("package", ["six==99.0", "stellwerk-no-such-package-at-all"])
async def test_a_package_that_cannot_be_had_is_named(tmp_path: Path, package: str) -> None:
    with pytest.raises(StepFailed) as caught:
        await environments(tmp_path, Registry(package)).provide(NAME, tmp_path / "log")
    reason = caught.value.reason
    assert reason.code == "ENVIRONMENT_UNRESOLVABLE"
    assert package.partition("==")[0] in reason.message
    assert reason.cure


async def test_a_python_that_nobody_has_is_named_and_not_the_packages(tmp_path: Path) -> None:
    registry = Registry("six==1.16.0")
    registry.version.python_version = "3.99"
    with pytest.raises(StepFailed) as caught:
        await environments(tmp_path, registry).provide(NAME, tmp_path / "log")
    reason = caught.value.reason
    assert (reason.code, "3.99" in reason.message, "six" in reason.message) == (
        "PYTHON_NOT_FOUND",
        True,
        False,
    )


async def test_a_lock_that_does_not_fit_its_hashes_is_refused(tmp_path: Path) -> None:
    registry = Registry("six==1.16.0")
    registry.version.lock = f"six==1.16.0 --hash=sha256:{'0' * 64}\n"
    registry.version.digest = "sha256:x"
    with pytest.raises(StepFailed) as caught:
        await environments(tmp_path, registry).provide(NAME, tmp_path / "log")
    assert caught.value.reason.code == "ENVIRONMENT_BUILD_FAILED"
    assert "six" in caught.value.reason.message


def test_secrets_of_the_agent_do_not_reach_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STELLWERK_VAULT_SECRET_ID", "secret")
    monkeypatch.setenv("SSL_CERT_FILE", "/certificates.pem")
    found = clean_environment()
    assert "secret" not in found.values()
    assert found["SSL_CERT_FILE"] == "/certificates.pem"
