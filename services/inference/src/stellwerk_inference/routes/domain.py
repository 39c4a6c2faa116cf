"""The table of routes: for each endpoint, the deployments that take traffic and have a ready replica."""

from collections import defaultdict
from collections.abc import Iterable

from stellwerk_inference.replicas.domain import deployment_of
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb


def table(endpoints: Iterable[pb.Endpoint], ready: Iterable[pb.Replica]) -> pb.WatchRoutesResponse:
    """All routes, in the order of names; an endpoint that nobody serves has one without targets."""
    by_deployment: dict[str, list[pb.Replica]] = defaultdict(list)
    for replica in sorted(ready, key=lambda replica: replica.name):
        by_deployment[deployment_of(replica.name)].append(
            pb.Replica(
                name=replica.name, http_address=replica.http_address, grpc_address=replica.grpc_address
            )
        )
    routes = pb.WatchRoutesResponse()
    for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.name):
        route = routes.routes.add(endpoint=endpoint.name)
        for deployment_id, percent in sorted(endpoint.traffic.items()):
            name = f"{endpoint.name}/deployments/{deployment_id}"
            if percent and name in by_deployment:
                route.targets.add(deployment=name, percent=percent, replicas=by_deployment[name])
    return routes
