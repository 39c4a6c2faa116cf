# Generated from ../_async/deployments.py by scripts/generate_sync.py; do not edit.
"""Deployments: models with a scoring script or without one, behind an endpoint."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stellwerk import names, paths
from stellwerk._sync.core import Core
from stellwerk._sync.model_environment import environment_of_model
from stellwerk._sync.reading import ReplicaLogs
from stellwerk._sync.runs import create_snapshot
from stellwerk.batch_options import BatchOptions, batch_settings
from stellwerk.errors import invalid
from stellwerk_protos.compute.v1 import workloads_pb2
from stellwerk_protos.inference.v1 import endpoints_pb2, endpoints_pb2_grpc

DEFAULT_SCRIPT = "score.py"


class Deployments:
    """The deployments of the endpoints of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = endpoints_pb2_grpc.EndpointServiceStub(core.channel)

    def create(
        self,
        name: str,
        *,
        endpoint: str,
        models: Sequence[str],
        environment: str = "",
        code: str | Path | None = None,
        script: str = "",
        compute: str = "local",
        replicas: int = 1,
        variables: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        request_timeout: float = 0,
        max_concurrent: int = 0,
        max_queue: int = 0,
        retry_lost: bool = False,
        sample: str = "",
        keep: int = 0,
        scale: endpoints_pb2.ScaleSettings | None = None,
        collect: Sequence[str] = (),
        collect_percent: float = 100,
        collect_headers: Sequence[str] = (),
        collect_max_bytes: int = 0,
        batch: BatchOptions | None = None,
    ) -> endpoints_pb2.Deployment:
        """Uploads the folder `code` and starts `replicas` of its scoring script. Does not wait.

        Of `code` and `script` one may be left out (the current folder, "score.py"). Without both the one
        model, of MLflow or scikit-learn, is served as it is; a model of MLflow needs no `environment` then:
        the one that it describes itself is registered.
        `request_timeout`: seconds for one request. `max_concurrent`: requests that a replica has at a
        time; `max_queue`: how many may wait beyond that, more are refused with 429. 0 means the default.
        `retry_lost`: a request whose replica was lost goes to another one, so that the script may run
        twice for it. `sample`: a file of `code` with a request that each replica must answer before it
        takes traffic; without it the sample of the script's `@input_schema`, else `sample-request.json`
        beside the script; without a script, a file of the model, by default MLflow's input example.
        `keep`: how many rollouts are kept for rolling back. `scale` lets the load decide on the replicas.
        `collect`: what is kept as data, "request", "response", or names of the script's Collectors;
        `collect_percent` of the requests, with these headers, and of a body so many bytes (0: 262,144).
        `batch`: how a deployment of a batch endpoint scores.
        """
        no_script = code is None and not script
        folder = paths.given("." if code is None else code)
        request = endpoints_pb2.CreateDeploymentRequest(
            parent=names.resource(self._parent, "endpoints", endpoint),
            deployment_id=name,
            models=[names.version(self._parent, "models", model) for model in models],
            environment=self._environment(environment, models, code, script),
            snapshot="" if no_script else create_snapshot(self._core, self._parent, folder),
            scoring_script="" if no_script else script or DEFAULT_SCRIPT,
            compute=names.resource(self._parent, "computes", compute.removeprefix("azureml:")),
            replica_count=replicas,
            variables=variables,
            tags=tags,
            request_settings=_request_settings(request_timeout, max_concurrent, max_queue, retry_lost),
            sample=sample,
            rollout_limit=keep,
            scale_settings=scale,
            batch_settings=batch_settings(batch) if batch else None,
        )
        if collect:
            request.data_collection.CopyFrom(
                _collection(collect, collect_percent, collect_headers, collect_max_bytes)
            )
        return self._core.call(self._stub.CreateDeployment, request)

    def _environment(self, named: str, models: Sequence[str], code: str | Path | None, script: str) -> str:
        """The full name of the one that is named, else of the one that the one model describes."""
        if named:
            return names.version(self._parent, "environments", named)
        if code is not None or script or len(models) != 1:
            raise invalid(
                "ENVIRONMENT_MISSING",
                "No environment is named.",
                "Name one with --environment; only one model of MLflow, without a script, needs none.",
            )
        return environment_of_model(self._core, self._parent, models[0])

    def update(
        self,
        name: str,
        *,
        endpoint: str,
        models: Sequence[str] | None = None,
        environment: str | None = None,
        code: str | Path | None = None,
        script: str | None = None,
        compute: str | None = None,
        replicas: int | None = None,
        variables: Mapping[str, str] | None = None,
        request_timeout: float | None = None,
        max_concurrent: int | None = None,
        max_queue: int | None = None,
        retry_lost: bool | None = None,
        sample: str | None = None,
        keep: int | None = None,
        collect: Sequence[str] | None = None,
        collect_percent: float = 100,
        collect_headers: Sequence[str] = (),
        collect_max_bytes: int = 0,
        batch: BatchOptions | None = None,
    ) -> endpoints_pb2.Deployment:
        """Changes what is given; parameters as for `create`; `script=""` takes it away. Does not wait.

        Another model, code, environment, compute, time-out, variables or `collect` (which replaces all that
        was said of it; empty collects nothing any more) make a rollout: its replicas start beside those that
        serve and take their place once all have answered the sample. Of `batch` what is left out stays.
        """
        request = endpoints_pb2.UpdateDeploymentRequest(
            name=self._name(endpoint, name),
            models=[names.version(self._parent, "models", model) for model in models or ()],
            variables=variables,
        )
        plain: dict[str, Any] = {
            "scoring_script": script,
            "replica_count": replicas,
            "sample": sample,
            "rollout_limit": keep,
            **self._named(environment, code, script, compute),
        }
        changed = {field: value for field, value in plain.items() if value is not None}
        for field, value in changed.items():
            setattr(request, field, value)
        self._merge_settings(
            request,
            {
                "timeout_ms": None if request_timeout is None else round(request_timeout * 1000),
                "max_concurrent_requests": max_concurrent,
                "max_queued_requests": max_queue,
                "retry_lost_requests": retry_lost,
            },
            batch,
        )
        if collect:
            request.data_collection.CopyFrom(
                _collection(collect, collect_percent, collect_headers, collect_max_bytes)
            )
        request.update_mask.paths.extend(changed)
        given = {
            "models": models is not None,
            "variables": variables is not None,
            "data_collection": collect is not None,
            "request_settings": request.HasField("request_settings"),
            "batch_settings": request.HasField("batch_settings"),
        }
        request.update_mask.paths.extend(field for field, is_given in given.items() if is_given)
        return self._core.call(self._stub.UpdateDeployment, request)

    def _named(
        self, environment: str | None, code: str | Path | None, script: str | None, compute: str | None
    ) -> dict[str, str]:
        """The fields of an update that hold names, of what is given; `code` is uploaded."""
        fields = {}
        if environment is not None:
            fields["environment"] = names.version(self._parent, "environments", environment)
        if code is not None:
            fields["snapshot"] = create_snapshot(self._core, self._parent, paths.given(code))
        elif script == "":
            fields["snapshot"] = ""
        if compute is not None:
            fields["compute"] = names.resource(self._parent, "computes", compute.removeprefix("azureml:"))
        return fields

    def _merge_settings(
        self,
        request: endpoints_pb2.UpdateDeploymentRequest,
        settings: Mapping[str, Any],
        batch: BatchOptions | None,
    ) -> None:
        """Sets what is given over what the deployment has, as these travel whole."""
        given = {field: value for field, value in settings.items() if value is not None}
        if not given and not batch:
            return
        now = self._core.call(self._stub.GetDeployment, endpoints_pb2.GetDeploymentRequest(name=request.name))
        if given:
            request.request_settings.CopyFrom(now.request_settings)
        for field, value in given.items():
            setattr(request.request_settings, field, value)
        if batch:
            request.batch_settings.CopyFrom(now.workload.batch_settings)
            request.batch_settings.MergeFrom(batch_settings(batch))

    def roll_back(self, endpoint: str, name: str, *, to: int = 0) -> endpoints_pb2.Deployment:
        """Goes back to rollout `to`, or to the one that served before this one. Does not wait.

        While a rollout goes on, that one is ended and what serves stays.
        """
        request = endpoints_pb2.RollBackDeploymentRequest(name=self._name(endpoint, name), rollout=to)
        return self._core.call(self._stub.RollBackDeployment, request)

    def replicas(
        self, endpoint: str, name: str, *, limit: int | None = None
    ) -> Sequence[endpoints_pb2.Replica]:
        """The replicas of a deployment, those that have ended too, newest first."""
        request = endpoints_pb2.ListReplicasRequest(parent=self._name(endpoint, name))
        pages = self._core.pages(self._stub.ListReplicas, request, limit)
        return [replica for page in pages for replica in page.replicas]

    def logs(self, endpoint: str, name: str, *, replica: str = "") -> ReplicaLogs:
        """The logs of a replica, also after it has ended: of the newest unless one is named.

        Raises `StellwerkError` (`REPLICA_NOT_FOUND`) where there was none.
        """
        if not replica:
            newest = self.replicas(endpoint, name, limit=1)
            if not newest:
                raise invalid("REPLICA_NOT_FOUND", f"{name} has no replica.", "See why: `stellwerk why`.")
            replica = names.last(newest[0].name)
        return ReplicaLogs(self._core, names.resource(self._name(endpoint, name), "replicas", replica))

    def get(self, endpoint: str, name: str) -> endpoints_pb2.Deployment:
        """Returns one deployment."""
        request = endpoints_pb2.GetDeploymentRequest(name=self._name(endpoint, name))
        return self._core.call(self._stub.GetDeployment, request)

    def list(self, endpoint: str, *, limit: int | None = None) -> Sequence[endpoints_pb2.Deployment]:
        """The deployments of an endpoint, by name."""
        parent = names.resource(self._parent, "endpoints", endpoint)
        request = endpoints_pb2.ListDeploymentsRequest(parent=parent)
        pages = self._core.pages(self._stub.ListDeployments, request, limit)
        return [deployment for page in pages for deployment in page.deployments]

    def watch(self, endpoint: str, name: str) -> Iterator[endpoints_pb2.Deployment]:
        """The deployment now and after each change; ends after Succeeded, Failed or Deleted."""
        request = endpoints_pb2.WatchDeploymentRequest(name=self._name(endpoint, name))
        revision = 0
        for deployment in self._core.stream(self._stub.WatchDeployment, request):
            if deployment.revision > revision:
                revision = deployment.revision
                yield deployment

    def delete(self, endpoint: str, name: str) -> endpoints_pb2.Deployment:
        """Deletes a deployment that takes no traffic."""
        request = endpoints_pb2.DeleteDeploymentRequest(name=self._name(endpoint, name))
        return self._core.call(self._stub.DeleteDeployment, request)

    def _name(self, endpoint: str, name: str) -> str:
        return names.resource(names.resource(self._parent, "endpoints", endpoint), "deployments", name)


def _request_settings(
    timeout_seconds: float, max_concurrent: int, max_queue: int, retry_lost: bool
) -> endpoints_pb2.RequestSettings | None:
    """None where nothing was said: a batch endpoint takes none."""
    settings = endpoints_pb2.RequestSettings(
        timeout_ms=round(timeout_seconds * 1000),
        max_concurrent_requests=max_concurrent,
        max_queued_requests=max_queue,
        retry_lost_requests=retry_lost,
    )
    return settings if settings != endpoints_pb2.RequestSettings() else None


def _collection(
    collections: Sequence[str], percent: float, headers: Sequence[str], max_bytes: int
) -> workloads_pb2.DataCollection:
    return workloads_pb2.DataCollection(
        collections=collections,
        sampling_percent=percent,
        captured_headers=[header.lower() for header in headers],
        max_payload_bytes=max_bytes,
    )
