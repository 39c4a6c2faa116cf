"""What may be collected, and where files of it may lie."""

import pytest

from stellwerk_inference.collected import domain
from stellwerk_inference.deployments import requests
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.common.v1.common_pb2 import File
from stellwerk_protos.compute.v1.workloads_pb2 import DataCollection, Workload
from stellwerk_protos.inference.v1 import collections_pb2 as pb
from stellwerk_protos.inference.v1 import endpoints_pb2

REPLICA = "workspaces/demo/endpoints/digits/deployments/blue/replicas/r1"


@pytest.mark.parametrize(
    "settings",
    [
        DataCollection(),
        DataCollection(collections=["a"] * 11),
        DataCollection(collections=["../x"]),
        DataCollection(collections=["request"], sampling_percent=101),
        DataCollection(collections=["request"], sampling_percent=float("nan")),
        DataCollection(collections=["request"], max_payload_bytes=2_000_000),
        DataCollection(collections=["request"], captured_headers=["Upper"]),
        DataCollection(collections=["request"], captured_headers=["cookie"]),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: DataCollection) -> None:
    with pytest.raises(InvalidArgument) as refused:
        domain.check_settings(settings)
    assert refused.value.cure


def test_a_replica_names_files_of_its_own_deployment_only() -> None:
    def record(path: str) -> pb.RecordCollectedFilesRequest:
        file = File(path=path, sha256="0" * 64)
        return pb.RecordCollectedFilesRequest(parent=REPLICA, files=[pb.CollectedFile(file=file)])

    (place,) = domain.check_record(record("digits/blue/request/2026/11/23/08/r1-a.jsonl"))
    assert (place.deployment, place.collection, place.hour.hour) == ("blue", "request", 8)
    for wrong in (
        "digits/green/request/2026/11/23/08/r1-a.jsonl",
        "other/blue/request/2026/11/23/08/r1-a.jsonl",
        "digits/blue/request/2026/13/23/08/r1-a.jsonl",
        "digits/blue/re quest/2026/11/23/08/r1-a.jsonl",
        "digits/blue/request/2026/11/23/08/r1-a.txt",
    ):
        with pytest.raises(InvalidArgument):
            domain.check_record(record(wrong))


def test_an_update_may_end_the_collection() -> None:
    kept = DataCollection(collections=["request"], sampling_percent=10)
    rollout = endpoints_pb2.Rollout(number=1, workload=Workload(data_collection=kept))
    deployment = endpoints_pb2.Deployment(
        name="workspaces/demo/endpoints/digits/deployments/blue", rollout=1, rollouts=[rollout]
    )
    other = endpoints_pb2.UpdateDeploymentRequest(replica_count=2)
    other.update_mask.paths.append("replica_count")
    assert requests.change(deployment, other).data_collection == kept
    ending = endpoints_pb2.UpdateDeploymentRequest()
    ending.update_mask.paths.append("data_collection")
    assert not requests.change(deployment, ending).HasField("data_collection")
    ending.data_collection.collections.append("response")
    assert requests.change(deployment, ending).data_collection.collections == ["response"]
