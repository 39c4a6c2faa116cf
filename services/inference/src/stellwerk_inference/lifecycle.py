"""What moves together: a replica's step changes its deployment, and that may change the endpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from stellwerk_inference.deployments import domain as deployments
from stellwerk_inference.deployments import rollouts
from stellwerk_inference.endpoints import domain as endpoints
from stellwerk_inference.replicas import domain as replicas
from stellwerk_inference.states import DELETING, FAILED, LEAVING, SUCCEEDED
from stellwerk_inference.store import Store, endpoint_of
from stellwerk_platform.journal import Fact
from stellwerk_platform.mongo import Transaction
from stellwerk_protos.common.v1.common_pb2 import Reason
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb


class Jobs(Protocol):
    """The batch jobs of deployments and endpoints, which keep to the rollout that they began with."""

    async def check_none(self, tx: Transaction, deployment: str) -> None:
        """Raises `FailedPrecondition` while a job of the deployment is not over."""

    async def cancel_all(self, tx: Transaction, endpoint: str) -> None:
        """Asks all jobs of the endpoint to stop."""


class Lifecycle:
    """Every change of more than one resource."""

    def __init__(self, store: Store, jobs: Jobs) -> None:
        self._store = store
        self._jobs = jobs

    async def create_deployment(self, deployment: pb.Deployment, request_id: str) -> pb.Deployment:
        """Stores a deployment and its replicas; lets `DuplicateKeyError` through for a taken name."""

        async def work(tx: Transaction) -> pb.Deployment:
            endpoint = await self._store.endpoints.get(endpoint_of(deployment.name), tx.session)
            endpoints.check_open(endpoint)
            created = await self._store.create_in(
                tx, self._store.deployments, deployment, Fact("created", "REQUESTED"), request_id
            )
            fact = Fact("created", "REQUESTED", cause=tx.last_event())
            await self._add_replicas(tx, created, created.rollouts[-1], created.replica_count, fact)
            return created

        return await self._store.change(endpoint_of(deployment.name), work)

    async def move_replica(
        self, name: str, change: Callable[[pb.Replica], Fact | None], cause: str = ""
    ) -> None:
        """Applies a rule to a replica, and what follows from it to deployment and endpoint."""

        async def work(tx: Transaction) -> None:
            moved = False

            def noted(replica: pb.Replica) -> Fact | None:
                nonlocal moved
                fact = change(replica)
                moved = fact is not None
                return None if fact is None else replace(fact, cause=cause)

            await self._store.replicas.update_in(tx, name, noted)
            if moved:
                await self._settle(tx, replicas.deployment_of(name), tx.last_event())

        await self._store.change(endpoint_of(name), work)

    async def replace_replicas(self, deployment_name: str) -> datetime | None:
        """Starts the replicas that a deployment lacks, or ends it when they keep failing.

        Returns the time to come back when it is too early.
        """

        async def work(tx: Transaction) -> datetime | None:
            now = datetime.now(UTC)
            deployment = await self._store.deployments.get(deployment_name, tx.session)
            found = await self._store.replicas_of(deployment, tx.session)
            existing = deployments.of_rollout(found, deployment.rollout)
            count = deployments.missing_replicas(deployment, existing)
            if not count:
                return None
            ended = await self._store.deployments.update_in(
                tx, deployment_name, lambda d: deployments.exhaust(d, existing, now)
            )
            if ended.state == FAILED:
                return None
            due = deployments.next_replacement(existing, now)
            if due > now:
                return due
            fact = _added(existing, deployment)
            rollout = rollouts.find(deployment, deployment.rollout)
            if rollout is not None:
                await self._add_replicas(tx, deployment, rollout, count, fact)
            return None

        return await self._store.change(endpoint_of(deployment_name), work)

    async def scale(self, name: str, change: Callable[[pb.Deployment], Fact | None]) -> pb.Deployment:
        """Applies a rule that changes how many replicas are wanted, then starts or stops as many."""

        async def work(tx: Transaction) -> pb.Deployment:
            before = await self._store.deployments.get(name, tx.session)
            after = await self._store.deployments.update_in(tx, name, change)
            if after.revision == before.revision:
                return after
            cause = tx.last_event()
            existing = await self._store.replicas_of(after, tx.session)
            rollout = rollouts.find(after, after.rollout)
            count = deployments.missing_replicas(after, existing)
            if rollout is not None and count:
                fact = Fact("created", "SCALED_UP", cause=cause)
                await self._add_replicas(tx, after, rollout, count, fact)
            # A rollout that goes on has to bring as many.
            await self._start_target(tx, after, cause)
            await self._settle(tx, name, cause)
            return await self._store.deployments.get(name, tx.session)

        return await self._store.change(endpoint_of(name), work)

    async def set_traffic(self, request: pb.SetTrafficRequest) -> pb.Endpoint:
        """Replaces the split."""

        async def work(tx: Transaction) -> pb.Endpoint:
            existing = await self._store.deployments_of(request.name, tx.session)
            return await self._store.endpoints.update_in(
                tx,
                request.name,
                lambda endpoint: endpoints.set_traffic(endpoint, request, existing),
                request.etag,
            )

        return await self._store.change(request.name, work)

    async def change_deployment(
        self, name: str, change: Callable[[pb.Deployment], Fact | None], etag: str = ""
    ) -> pb.Deployment:
        """Applies a rule to a deployment, and starts and stops the replicas that follow from it."""

        async def work(tx: Transaction) -> pb.Deployment:
            before = await self._store.deployments.get(name, tx.session)
            after = await self._store.deployments.update_in(tx, name, change, etag)
            if after.revision == before.revision:
                return after
            if after.target_rollout != before.target_rollout:
                await self._jobs.check_none(tx, name)
            cause = tx.last_event()
            await self._start_target(tx, after, cause)
            await self._settle(tx, name, cause)
            return await self._store.deployments.get(name, tx.session)

        return await self._store.change(endpoint_of(name), work)

    async def _start_target(self, tx: Transaction, deployment: pb.Deployment, cause: str) -> None:
        """The replicas that the rollout which goes on lacks."""
        rollout = rollouts.target(deployment)
        if rollout is None:
            return
        existing = await self._store.replicas_of(deployment, tx.session)
        live = [r for r in deployments.of_rollout(existing, rollout.number) if r.state in replicas.LIVE]
        fact = Fact("created", "ROLLOUT", f"Is of rollout {rollout.number}.", cause=cause)
        count = deployments.target_replicas(deployment) - len(live)
        await self._add_replicas(tx, deployment, rollout, count, fact)

    async def delete_deployment(self, name: str) -> pb.Deployment:
        """Stops the replicas; the deployment is gone when they are."""

        async def work(tx: Transaction) -> pb.Deployment:
            await self._jobs.check_none(tx, name)
            endpoint = await self._store.endpoints.get(endpoint_of(name), tx.session)
            deployment_id = name.rsplit("/", 1)[1]
            await self._delete_deployment_in(tx, name, endpoint.traffic.get(deployment_id, 0))
            await self._store.endpoints.update_in(
                tx, endpoint.name, lambda e: endpoints.forget(e, deployment_id)
            )
            return await self._store.deployments.get(name, tx.session)

        return await self._store.change(endpoint_of(name), work)

    async def delete_endpoint(self, name: str) -> pb.Endpoint:
        """Deletes the endpoint with all its deployments."""

        async def work(tx: Transaction) -> pb.Endpoint:
            await self._store.endpoints.update_in(tx, name, endpoints.delete)
            await self._jobs.cancel_all(tx, name)
            for deployment in await self._store.deployments_of(name, tx.session):
                await self._delete_deployment_in(tx, deployment.name, 0)
            await self._observe_endpoint(tx, name, tx.last_event())
            return await self._store.endpoints.get(name, tx.session)

        return await self._store.change(name, work)

    async def _delete_deployment_in(self, tx: Transaction, name: str, percent: int) -> None:
        deployment = await self._store.deployments.update_in(
            tx, name, lambda d: _caused(deployments.delete(d, percent), tx.last_event())
        )
        if deployment.state == DELETING:
            cause = tx.last_event()
            existing = await self._store.replicas_of(deployment, tx.session)
            reason = Reason(code="DELETE_REQUESTED", message="The deployment is being deleted.")
            await self._stop(tx, existing, reason, cause)
            await self._settle(tx, name, cause)

    async def _settle(self, tx: Transaction, deployment_name: str, cause: str) -> None:
        """Makes deployment and endpoint follow the replicas, because of the event `cause`."""
        before = await self._store.deployments.get(deployment_name, tx.session)
        existing = await self._store.replicas_of(before, tx.session)
        after = await self._store.deployments.update_in(
            tx, deployment_name, lambda d: _caused(deployments.observe(d, existing), cause)
        )
        if after.revision != before.revision:
            cause = tx.last_event()
        if after.state not in LEAVING:
            await self._stop_surplus(tx, after, existing, cause)
        if before.state != SUCCEEDED and after.state == SUCCEEDED:
            endpoint = endpoint_of(deployment_name)
            siblings = await self._store.deployments_of(endpoint, tx.session)
            await self._store.endpoints.update_in(
                tx, endpoint, lambda e: _caused(endpoints.take_first(e, deployment_name, siblings), cause)
            )
        await self._observe_endpoint(tx, endpoint_of(deployment_name), cause)

    async def _stop_surplus(
        self, tx: Transaction, deployment: pb.Deployment, existing: Sequence[pb.Replica], cause: str
    ) -> None:
        """What is not wanted any more ends, after it has finished what it was asked."""
        for replica in deployments.surplus_replicas(deployment, existing):
            reason = Reason(code="ROLLOUT_ENDED", message=f"Rollout {replica.rollout} has ended.")
            if replica.rollout in (deployment.rollout, deployment.target_rollout):
                reason = Reason(code="REPLICA_SURPLUS", message="Fewer replicas are wanted.")
            await self._stop(tx, [replica], reason, cause)

    async def _observe_endpoint(self, tx: Transaction, name: str, cause: str) -> None:
        existing = await self._store.deployments_of(name, tx.session)
        await self._store.endpoints.update_in(
            tx, name, lambda e: _caused(endpoints.observe(e, existing), cause)
        )

    async def _stop(
        self, tx: Transaction, existing: Sequence[pb.Replica], reason: Reason, cause: str
    ) -> None:
        for replica in existing:
            await self._store.replicas.update_in(
                tx, replica.name, lambda r: _caused(replicas.stop(r, reason.code, reason.message), cause)
            )

    async def _add_replicas(
        self, tx: Transaction, deployment: pb.Deployment, rollout: pb.Rollout, count: int, fact: Fact
    ) -> None:
        for _ in range(count):
            await self._store.replicas.create_in(tx, replicas.new(deployment, rollout), fact)


def _added(existing: Sequence[pb.Replica], deployment: pb.Deployment) -> Fact:
    """Why a replica of the rollout that serves is created."""
    if any(replicas.has_failed(replica) for replica in existing):
        return Fact("created", "REPLICA_REPLACED", "Takes the place of one that ended.")
    return Fact("created", "REPLICA_ADDED", f"{deployment.replica_count} replicas are wanted.")


def _caused(fact: Fact | None, cause: str) -> Fact | None:
    return fact and replace(fact, cause=cause)
