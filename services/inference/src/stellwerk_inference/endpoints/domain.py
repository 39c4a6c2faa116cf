"""The life of an endpoint, and the rules of its traffic split.

Each rule changes the endpoint and returns the fact to record, or None when there is
nothing to do.
"""

import re
from collections.abc import Mapping, Sequence

from stellwerk_inference.states import DELETED, DELETING, LEAVING, READY_CODE, SUCCEEDED, State
from stellwerk_platform import names
from stellwerk_platform.errors import FailedPrecondition, InvalidArgument, NotFound
from stellwerk_platform.journal import Fact
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

PATTERN = "workspaces/*/endpoints/*"
_WHOLE = 100
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


def new(request: pb.CreateEndpointRequest, creator: str) -> pb.Endpoint:
    """The endpoint of a request; it exists at once, and answers 503 until something is ready."""
    workspace = names.workspace_of(request.parent)
    return pb.Endpoint(
        name=f"{request.parent}/endpoints/{request.endpoint_id}",
        creator=creator,
        description=request.description,
        tags=request.tags,
        state=SUCCEEDED,
        reason=Reason(code=READY_CODE, message="Takes deployments."),
        path=f"/endpoints/{workspace}/{request.endpoint_id}",
        auth_mode=request.auth_mode or pb.AUTH_MODE_KEY_AND_TOKEN,
        kind=request.kind or pb.ENDPOINT_KIND_ONLINE,
    )


def check_kind(kind: pb.EndpointKind.ValueType) -> None:
    """Raises `InvalidArgument` for one that there is not."""
    if kind not in pb.EndpointKind.values():
        raise InvalidArgument(
            "INVALID_KIND", f"There is no kind {kind} of endpoints.", "Use ONLINE or BATCH."
        )


def is_batch(endpoint: pb.Endpoint) -> bool:
    """Whether it scores datasets, and answers no requests."""
    return endpoint.kind == pb.ENDPOINT_KIND_BATCH


def check_open(endpoint: pb.Endpoint) -> None:
    """Raises `FailedPrecondition` for an endpoint that is deleted or being deleted."""
    if endpoint.state in LEAVING:
        raise FailedPrecondition(
            "ENDPOINT_DELETED", f"{endpoint.name} is deleted.", "Create it again once it is gone."
        )


def set_traffic(
    endpoint: pb.Endpoint, request: pb.SetTrafficRequest, deployments: Sequence[pb.Deployment]
) -> Fact | None:
    """Replaces the split, and copies and sticky header where the request has them.

    Raises `InvalidArgument`, `NotFound` or `FailedPrecondition`.
    """
    check_open(endpoint)
    shares = _percents(request.traffic)
    if sum(shares.values()) not in (0, _WHOLE):
        raise InvalidArgument(
            "INVALID_TRAFFIC",
            f"The shares add up to {sum(shares.values())} %.",
            "Use shares of 0 to 100 that add up to 100, or none at all.",
        )
    _check_ready(endpoint, request.traffic, deployments)
    mirrors = dict(endpoint.mirror_traffic)
    if request.HasField("mirror_traffic"):
        mirrors = _percents(request.mirror_traffic.percents)
        _check_ready(endpoint, mirrors, deployments)
    sticky = request.sticky_header.lower() if request.HasField("sticky_header") else endpoint.sticky_header
    if sticky and not _HEADER.fullmatch(sticky):
        raise InvalidArgument(
            "INVALID_HEADER",
            f"{sticky[:80]!r} cannot be the name of a header.",
            "Use letters, digits and '-', up to 100 of them.",
        )
    if is_batch(endpoint) and (mirrors or sticky or len(shares) > 1):
        raise InvalidArgument(
            "ENDPOINT_IS_BATCH",
            f"All jobs of {names.id_of(endpoint.name)} go to one deployment, and none are copied.",
            "Give 100 % to one deployment, without copies and sticky header.",
        )
    return _split(endpoint, shares, "REQUESTED", mirrors, sticky)


def _percents(given: Mapping[str, int]) -> dict[str, int]:
    if any(not 0 <= percent <= _WHOLE for percent in given.values()):
        raise InvalidArgument("INVALID_TRAFFIC", "A share is not between 0 and 100 %.", "Use 0 to 100.")
    return {deployment: percent for deployment, percent in given.items() if percent}


def _check_ready(
    endpoint: pb.Endpoint, percents: Mapping[str, int], deployments: Sequence[pb.Deployment]
) -> None:
    by_id = {names.id_of(deployment.name): deployment for deployment in deployments}
    for deployment_id, percent in percents.items():
        deployment = by_id.get(deployment_id)
        if deployment is None or deployment.state in LEAVING:
            raise NotFound(
                "DEPLOYMENT_NOT_FOUND",
                f"There is no deployment {deployment_id[:80]!r} at {endpoint.name}.",
                "List the deployments of the endpoint.",
            )
        if percent and deployment.state != SUCCEEDED:
            raise FailedPrecondition(
                "DEPLOYMENT_NOT_READY",
                f"{deployment_id} is not ready: {deployment.reason.message or deployment.reason.code}",
                "Wait until its state is Succeeded.",
            )


def forget(endpoint: pb.Endpoint, deployment_id: str) -> Fact | None:
    """A deployment that is being deleted gets no copies any more."""
    mirrors = {name: percent for name, percent in endpoint.mirror_traffic.items() if name != deployment_id}
    return _split(endpoint, dict(endpoint.traffic), "DEPLOYMENT_DELETED", mirrors, endpoint.sticky_header)


def take_first(endpoint: pb.Endpoint, deployment: str, deployments: Sequence[pb.Deployment]) -> Fact | None:
    """Gives all traffic to a deployment that has become ready, if it is the first."""
    others = any(d.state == SUCCEEDED and d.name != deployment for d in deployments)
    if endpoint.state != SUCCEEDED or endpoint.traffic or others:
        return None
    shares = {names.id_of(deployment): _WHOLE}
    return _split(endpoint, shares, "FIRST_DEPLOYMENT", dict(endpoint.mirror_traffic), endpoint.sticky_header)


def delete(endpoint: pb.Endpoint) -> Fact | None:
    """Asks for the end of the endpoint and of all its deployments."""
    if endpoint.state in LEAVING:
        return None
    endpoint.traffic.clear()
    endpoint.mirror_traffic.clear()
    return _move(endpoint, DELETING, "deleting", Reason(code="DELETE_REQUESTED", message="Is being deleted."))


def observe(endpoint: pb.Endpoint, deployments: Sequence[pb.Deployment]) -> Fact | None:
    """An endpoint that is being deleted is gone with its last deployment."""
    if endpoint.state != DELETING or any(d.state != DELETED for d in deployments):
        return None
    return _move(endpoint, DELETED, "deleted", Reason(code="DELETED", message="Nothing of it is left."))


def _split(
    endpoint: pb.Endpoint, shares: Mapping[str, int], code: str, mirrors: Mapping[str, int], sticky: str
) -> Fact | None:
    before = (dict(endpoint.traffic), dict(endpoint.mirror_traffic), endpoint.sticky_header)
    if before == (dict(shares), dict(mirrors), sticky):
        return None
    for field, percents in ((endpoint.traffic, shares), (endpoint.mirror_traffic, mirrors)):
        field.clear()
        field.update(percents)
    endpoint.sticky_header = sticky
    text = _text(shares) or "No deployment takes traffic"
    if mirrors:
        text += f"; copies to {_text(mirrors)}"
    if sticky:
        text += f"; sticky by {sticky}"
    return Fact("traffic_changed", code, f"{text}.")


def _text(percents: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {percent} %" for name, percent in sorted(percents.items()))


def _move(endpoint: pb.Endpoint, state: State.ValueType, verb: str, reason: Reason) -> Fact:
    endpoint.state = state
    endpoint.reason.CopyFrom(reason)
    return Fact(verb, reason.code, reason.message)
