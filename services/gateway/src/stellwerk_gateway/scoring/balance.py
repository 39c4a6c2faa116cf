"""Which replica answers next: traffic by percent, replicas in turn. Pure rules."""

from collections.abc import Sequence

from stellwerk_protos.inference.v1 import endpoints_pb2 as pb


class Balancer:
    """The turn of one endpoint.

    Shares follow smooth weighted round-robin (as nginx does it): over any 100 requests each
    deployment gets exactly its percent, spread evenly. Shares of deployments that have no
    ready replica go to the others in proportion.
    """

    def __init__(self) -> None:
        self._targets: Sequence[pb.Target] = ()
        self._credit: dict[str, int] = {}
        self._turn: dict[str, int] = {}

    def update(self, targets: Sequence[pb.Target]) -> None:
        """Replaces the targets; those that stay keep their turn."""
        self._targets = [target for target in targets if target.replicas and target.percent > 0]
        names = {target.deployment for target in self._targets}
        if names != self._credit.keys():
            self._credit = dict.fromkeys(names, 0)
        self._turn = {name: self._turn.get(name, 0) for name in names}

    def next(self) -> Sequence[pb.Replica]:
        """The replica to ask, then others of its deployment to ask in its place; empty if none is ready."""
        if not self._targets:
            return ()
        target = self._next_target()
        turn = self._turn[target.deployment] % len(target.replicas)
        self._turn[target.deployment] = turn + 1
        return [*target.replicas[turn:], *target.replicas[:turn]]

    def _next_target(self) -> pb.Target:
        for target in self._targets:
            self._credit[target.deployment] += target.percent
        chosen = max(self._targets, key=lambda target: self._credit[target.deployment])
        self._credit[chosen.deployment] -= sum(target.percent for target in self._targets)
        return chosen
