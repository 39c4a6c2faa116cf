"""The table of routes: for each endpoint, the deployments that are ready or get a share of the traffic."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from stellwerk_inference.replicas.domain import deployment_of
from stellwerk_inference.states import SUCCEEDED
from stellwerk_platform import names
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb


def table(
    endpoints: Iterable[pb.Endpoint],
    deployments: Iterable[pb.Deployment],
    replicas: Iterable[pb.Replica],
    key_digests: Mapping[str, Sequence[bytes]] = MappingProxyType({}),
) -> pb.WatchRoutesResponse:
    """All routes, in the order of names; an endpoint that nobody serves has one without targets.

    `replicas` are those that live, ready or not; `key_digests` are by endpoint.
    """
    of_endpoint: dict[str, list[pb.Deployment]] = defaultdict(list)
    for deployment in sorted(deployments, key=lambda deployment: deployment.name):
        of_endpoint[names.parent_of(deployment.name)].append(deployment)
    of_deployment: dict[str, list[pb.Replica]] = defaultdict(list)
    for replica in sorted(replicas, key=lambda replica: replica.name):
        of_deployment[deployment_of(replica.name)].append(replica)
    routes = pb.WatchRoutesResponse()
    for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.name):
        route = routes.routes.add(
            endpoint=endpoint.name,
            sticky_header=endpoint.sticky_header,
            auth_mode=endpoint.auth_mode,
            key_digests=key_digests.get(endpoint.name, ()),
        )
        for deployment in of_endpoint[endpoint.name]:
            percent = endpoint.traffic.get(names.id_of(deployment.name), 0)
            if percent or deployment.state == SUCCEEDED:
                route.targets.append(_target(endpoint, deployment, percent, of_deployment[deployment.name]))
    return routes


def _target(
    endpoint: pb.Endpoint, deployment: pb.Deployment, percent: int, replicas: Sequence[pb.Replica]
) -> pb.Target:
    ready = [
        pb.Replica(
            name=replica.name,
            http_address=replica.http_address,
            grpc_address=replica.grpc_address,
            certificate=replica.certificate,
        )
        for replica in replicas
        if replica.state == SUCCEEDED and replica.rollout == deployment.rollout
    ]
    return pb.Target(
        deployment=deployment.name,
        percent=percent,
        replicas=ready,
        mirror_percent=endpoint.mirror_traffic.get(names.id_of(deployment.name), 0),
        settings=deployment.request_settings,
        # One that is missing is on its way, or will be: dead replicas are replaced.
        starting=deployment.state == SUCCEEDED and len(ready) < deployment.replica_count,
        asleep=deployment.state == SUCCEEDED and not deployment.replica_count,
    )
