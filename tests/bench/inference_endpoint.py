"""What the benchmarks `inference.*` call: a model behind an endpoint of a whole stack.

Authentication, traffic split, request ids, telemetry and health checks are on as they are
for everybody; one replica with one worker answers, with the model and the script of the peers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

import stellwerk
from tests.bench.inference_peers import SCORE, THREADS, Target, score_body, train
from tests.bench.resources import Resources

WORKSPACE = "inference"
METADATA = "stellwerk-endpoint"


@contextmanager
def endpoint(
    resources: Resources,
    name: str,
    kind: str = "logistic",
    *,
    rows: int = 1,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """An endpoint that serves a model, from the moment that it is ready; deleted at the end."""
    status = resources.stack.status()
    key = Path(status["owner_key_file"]).read_text().strip()
    with stellwerk.Client(
        grpc_address=status["grpc_address"], gateway_url=status["gateway_url"], api_key=key
    ) as client:
        if not any(item.name == f"workspaces/{WORKSPACE}" for item in client.workspaces.list()):
            client.workspaces.create(WORKSPACE)
        workspace = client.workspace(WORKSPACE)
        _deploy(workspace, resources.folder(), name, kind, variables or {})
        try:
            yield Target(
                f"{status['gateway_url']}/endpoints/{WORKSPACE}/{name}/score",
                score_body(rows),
                {"authorization": f"Bearer {key}", METADATA: f"{WORKSPACE}/{name}"},
                status["grpc_address"],
            )
        finally:
            workspace.endpoints.delete(name)


def _deploy(
    workspace: stellwerk.Workspace, folder: Path, name: str, kind: str, variables: Mapping[str, str]
) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "score.py").write_text(SCORE)
    train(kind, folder / "model.joblib")
    workspace.environments.create_version("sklearn", packages=["scikit-learn"])
    workspace.models.register(name, path=folder / "model.joblib")
    workspace.endpoints.create(name)
    workspace.deployments.create(
        "blue",
        endpoint=name,
        models=[f"{name}:1"],
        environment="sklearn",
        code=folder / "code",
        script="score.py",
        variables={**THREADS, **variables},
    )
    for change in workspace.deployments.watch(name, "blue"):
        deployment = change
    if not deployment.ready_replica_count:
        raise RuntimeError(f"{deployment.reason.code}: {deployment.reason.message}")


def gateway_bytes(resources: Resources) -> int:
    """The memory of the gateway."""
    pid = int(resources.stack.process("gateway")["pid"])
    return int(psutil.Process(pid).memory_info().rss)
