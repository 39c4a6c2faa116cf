"""Quotas in MongoDB: one document a workspace that has limits."""

from pymongo.errors import DuplicateKeyError

from stellwerk_platform.mongo import Collection, Database
from stellwerk_platform.quotas import quota_name
from stellwerk_protos.registry.v1.quotas_pb2 import Limits, Quota
from stellwerk_registry.quotas import domain


class QuotaStore(Collection[Quota]):
    """The limits; what is used is counted elsewhere."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "quotas", Quota)

    async def of(self, workspace: str) -> Quota:
        """The quota of `workspaces/demo`; without limits when none were set."""
        name = quota_name(workspace)
        return await self.find(name) or Quota(name=name)

    async def set(self, workspace: str, limits: Limits, cpu_seconds_before: int | None) -> Quota:
        """Sets all limits; with `cpu_seconds_before` the budget begins anew."""
        name = quota_name(workspace)
        while True:
            if await self.find(name) is not None:
                return await self.update(name, lambda q: domain.set_limits(q, limits, cpu_seconds_before))
            quota = Quota(name=name)
            fact = domain.set_limits(quota, limits, cpu_seconds_before or 0)
            assert fact is not None, "a new quota always changes"
            try:
                return await self.database.commit(lambda tx, q=quota, f=fact: self.create_in(tx, q, f))  # type: ignore[misc]
            except DuplicateKeyError:
                continue  # somebody else set the first limits in the same moment
