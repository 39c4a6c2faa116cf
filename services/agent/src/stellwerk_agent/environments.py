"""Environments on the node: resolved once for all by uv, built once a node, found again by digest."""

import asyncio
import fcntl
import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uv

from stellwerk_agent.calls import call
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.files import remove, tail, write_atomic
from stellwerk_protos.registry.v1 import environments_pb2, environments_pb2_grpc

_COMPLETE = ".complete"
_DROPPED_PREFIXES = ("STELLWERK_", "PYTHON", "VIRTUAL_ENV", "AWS_", "VAULT_", "BAO_", "OTEL_")
_NETWORK = ("Failed to fetch", "error sending request", "dns error", "Connection refused", "timed out")
_NETWORK_TRIES = 5
_NETWORK_DELAY_SECONDS = 2.0
_NO_INTERPRETER = re.compile(r"No interpreter found for Python ([\w.]+)")
_PACKAGE = (
    re.compile(r"Because ([\w.-]+) was not found"),
    re.compile(r"there (?:is|are) no versions? of ([\w.-]+)"),
    re.compile(r"Failed to (?:build|download|fetch|read|prepare) (?:distributions?: )?`([\w.-]+)"),
    re.compile(r"Because (?:only )?([\w.-]+?)(?:[<>=!~ ].*)? (?:is available|depends|requires|has no)"),
)


@dataclass(frozen=True)
class Environment:
    """A built environment."""

    folder: Path
    variables: Mapping[str, str]
    note: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def clean_environment() -> dict[str, str]:
    """The agent's variables without its secrets and without what steers another Python."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_DROPPED_PREFIXES)}


def digest_of(lock: str, python_version: str) -> str:
    """What makes two environments the same: lock, Python version and platform."""
    text = "\0".join((lock, python_version, sysconfig.get_platform()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class EnvironmentBuilder:
    """Builds environments below `cache/envs`, and keeps them."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "envs"
        self._folder.mkdir(parents=True, exist_ok=True)

    async def build(self, version: environments_pb2.EnvironmentVersion, log: Path) -> Environment:
        """The environment of a version, without a registry: a lock that is made here holds only here."""
        python_version = version.python_version or _own_version()
        lock = version.lock
        if not lock and version.packages:
            lock = await self._resolve(version, python_version, log)
        return await self._built(version, digest_of(lock, python_version), lock, python_version, log)

    async def _built(
        self,
        version: environments_pb2.EnvironmentVersion,
        digest: str,
        lock: str,
        python_version: str,
        log: Path,
    ) -> Environment:
        folder, was_there = await self._materialise(digest.partition(":")[2], lock, python_version, log)
        note = "environment served from the cache" if was_there else "environment built"
        with open(log, "a") as said:
            said.write(f"{note}: {digest}, Python {python_version}\n")
        return Environment(folder, dict(version.variables), note)

    async def _resolve(
        self, version: environments_pb2.EnvironmentVersion, python_version: str, log: Path
    ) -> str:
        await self._check_python(python_version, log)
        compile_ = ["pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate"]
        return await _uv(
            [*compile_, "--python", _interpreter(python_version)],
            log,
            stdin="\n".join(version.packages) + "\n",
            failed="ENVIRONMENT_UNRESOLVABLE",
            packages=list(version.packages),
        )

    async def _check_python(self, python_version: str, log: Path) -> None:
        """Raises for a version that nobody has: uv resolves for it and blames the packages."""
        if _interpreter(python_version) != python_version:
            return
        _, output, _ = await _run_uv(["python", "list", python_version], log, "")
        if not output.strip():
            raise _no_python(python_version)

    async def _materialise(self, digest: str, lock: str, python_version: str, log: Path) -> tuple[Path, bool]:
        # Built where it stays: scripts hold absolute paths. The marker says that it is whole.
        folder = self._folder / digest
        if (folder / _COMPLETE).exists():
            return folder, True
        async with _locked(self._folder / f"{digest}.lock"):
            if (folder / _COMPLETE).exists():
                return folder, True
            await asyncio.to_thread(remove, folder)
            await self._build(folder, lock, python_version, log)
            write_atomic(folder / _COMPLETE, b"")
        return folder, False

    async def _build(self, folder: Path, lock: str, python_version: str, log: Path) -> None:
        packages = re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
        failed = "ENVIRONMENT_BUILD_FAILED"
        venv = ["venv", "--no-project", "--python", _interpreter(python_version), str(folder)]
        await _uv(venv, log, failed=failed, packages=packages)
        if not packages:
            return
        requirements = folder / "lock.txt"
        requirements.write_text(lock)
        sync = ["pip", "sync", "--require-hashes", "--compile-bytecode"]
        sync += ["--python", str(folder / "bin" / "python"), str(requirements)]
        await _uv(sync, log, failed=failed, packages=packages)


class Environments(EnvironmentBuilder):
    """The environments of this node."""

    def __init__(self, cache: Path, registry: "environments_pb2_grpc.EnvironmentServiceAsyncStub") -> None:
        super().__init__(cache)
        self._registry = registry

    async def provide(self, name: str, log: Path) -> Environment:
        """The environment, resolved and built where that was not done before. `log` gets what uv says."""
        version = await self._version(name)
        python_version = version.python_version or _own_version()
        lock = version.lock
        if not version.digest and version.packages:
            lock = await self._resolve(version, python_version, log)
        digest = digest_of(lock, python_version)
        if name and not version.digest:
            request = environments_pb2.LockEnvironmentVersionRequest(
                name=version.name, lock=lock, digest=digest
            )
            # Another node may have been faster; the first lock holds for all.
            lock = (await call(self._registry.LockEnvironmentVersion, request)).lock
            digest = digest_of(lock, python_version)
        return await self._built(version, digest, lock, python_version, log)

    async def _version(self, name: str) -> environments_pb2.EnvironmentVersion:
        """The version, with its lock if it has one; without a name one without packages."""
        if not name:
            return environments_pb2.EnvironmentVersion()
        # Asked each time: in a workspace that was deleted and made again the name means another one.
        request = environments_pb2.GetEnvironmentVersionRequest(name=name)
        return await call(self._registry.GetEnvironmentVersion, request)


def _own_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _interpreter(python_version: str) -> str:
    full = f"{_own_version()}.{sys.version_info.micro}"
    # The one below this process' own environment, so that the new one does not depend on ours.
    return os.path.realpath(sys.executable) if python_version in (_own_version(), full) else python_version


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Holds a lock that also keeps out other processes, and is free once its holder is dead."""
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.05)
        yield


async def _uv(arguments: list[str], log: Path, *, failed: str, packages: list[str], stdin: str = "") -> str:
    """Runs uv and returns its output; tries again when the network failed."""
    tries = 0
    while True:
        tries += 1
        code, output, said = await _run_uv(arguments, log, stdin)
        if code == 0:
            return output
        if tries == _NETWORK_TRIES or not any(sign in said for sign in _NETWORK):
            raise _explain(failed, said, packages)
        await asyncio.sleep(_NETWORK_DELAY_SECONDS * tries)


async def _run_uv(arguments: list[str], log: Path, stdin: str) -> tuple[int, str, str]:
    environment = {**clean_environment(), "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "UV_NO_CONFIG": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as said, tempfile.TemporaryFile() as given:
        given.write(stdin.encode())
        given.seek(0)
        said.write(f"$ uv {' '.join(arguments)}\n".encode())
        said.flush()
        process = await asyncio.create_subprocess_exec(
            uv.find_uv_bin(),
            *arguments,
            cwd="/",
            env=environment,
            stdin=given,
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
        )
        try:
            output, _ = await process.communicate()
        except BaseException:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
    return process.returncode or 0, output.decode(), tail(log, 8192).rpartition("\n$ uv ")[2]


def _explain(failed: str, said: str, packages: list[str]) -> StepFailed:
    flat = " ".join(word for line in said.splitlines() if not line.startswith("$ ") for word in line.split())
    package = next((m.group(1) for pattern in _PACKAGE if (m := pattern.search(flat))), "")
    package = package or next((name for name in packages if _bare(name) in flat), "")
    detail = flat[flat.find("Because") :] if "Because" in flat else flat[-600:]
    if any(sign in said for sign in _NETWORK):
        return StepFailed(
            "PACKAGE_INDEX_UNAVAILABLE",
            f"The package index does not answer: {detail[:600]}",
            "Check the node's network, its proxy and UV_INDEX_URL, then submit again.",
        )
    if found := _NO_INTERPRETER.search(flat):
        return _no_python(found.group(1))
    verb = "resolved" if failed == "ENVIRONMENT_UNRESOLVABLE" else "built"
    named = f"package {package!r}" if package else "its packages"
    return StepFailed(
        failed,
        f"The environment cannot be {verb} because of {named}: {detail[:600]}",
        "Correct the package's name or version in the environment.",
    )


def _no_python(version: str) -> StepFailed:
    return StepFailed(
        "PYTHON_NOT_FOUND",
        f"There is no Python {version}: neither on the node nor to download.",
        "Name another version of Python for the environment.",
    )


def _bare(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
