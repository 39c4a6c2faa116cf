"""The provisioning states by short names, and which of them are an end."""

from stellwerk_protos.inference.v1 import endpoints_pb2 as pb

State = pb.ProvisioningState
CREATING = pb.PROVISIONING_STATE_CREATING
SUCCEEDED = pb.PROVISIONING_STATE_SUCCEEDED
FAILED = pb.PROVISIONING_STATE_FAILED
DELETING = pb.PROVISIONING_STATE_DELETING
DELETED = pb.PROVISIONING_STATE_DELETED
NOT_RESPONDING = pb.PROVISIONING_STATE_NOT_RESPONDING

# The resource is gone or on its way.
LEAVING = frozenset({DELETING, DELETED})
READY_CODE = "READY"


def name_of(state: State.ValueType) -> str:
    """The name of a state as documents hold it."""
    return State.Name(state)
