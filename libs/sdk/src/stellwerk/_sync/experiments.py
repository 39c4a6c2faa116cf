# Generated from ../_async/experiments.py by scripts/generate_sync.py; do not edit.
"""Experiments: what groups runs, and how long they are kept."""

from collections.abc import Sequence

from stellwerk import names
from stellwerk._sync.core import Core
from stellwerk_protos.runs.v1 import retention_pb2, retention_pb2_grpc, runs_pb2, runs_pb2_grpc


class Experiments:
    """The experiments of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = retention_pb2_grpc.RetentionServiceStub(core.channel)

    def list(self, *, limit: int | None = None) -> Sequence[runs_pb2.Experiment]:
        """The experiments, by name."""
        stub = runs_pb2_grpc.RunServiceStub(self._core.channel)
        request = runs_pb2.ListExperimentsRequest(parent=self._parent)
        pages = self._core.pages(stub.ListExperiments, request, limit)
        return [experiment for page in pages for experiment in page.experiments]

    def retention(self, experiment: str) -> retention_pb2.RetentionRule:
        """The rule that says which runs may go."""
        name = f"{names.resource(self._parent, 'experiments', experiment)}/retentionRule"
        return self._core.call(self._stub.GetRetentionRule, retention_pb2.GetRetentionRuleRequest(name=name))

    def set_retention(
        self, experiment: str, *, keep_days: int = 0, keep_last: int = 0, archived_only: bool = False
    ) -> retention_pb2.RetentionRule:
        """Sets the rule: a run that has ended may go when it is older than `keep_days`, not among the
        newest `keep_last`, and with `archived_only` archived. Without any condition everything is kept.
        """
        rule = retention_pb2.RetentionRule(
            keep_days=keep_days, keep_last=keep_last, archived_only=archived_only
        )
        request = retention_pb2.SetRetentionRuleRequest(
            parent=names.resource(self._parent, "experiments", experiment), rule=rule
        )
        return self._core.call(self._stub.SetRetentionRule, request)
