"""How a step of an allocation ends early."""

import errno

from stellwerk_platform.errors import PlatformError
from stellwerk_protos.common.v1 import common_pb2


class StepFailed(Exception):
    """The allocation fails, and this is why."""

    def __init__(self, code: str, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.reason = common_pb2.Reason(code=code, message=message, cure=cure)


class Stopped(Exception):
    """Its owner asked it to stop."""

    def __init__(self, reason: common_pb2.Reason) -> None:
        super().__init__(reason.message)
        self.reason = reason


def reason_of(error: Exception) -> common_pb2.Reason:
    """The reason to report for an error that ended a step."""
    if isinstance(error, StepFailed | Stopped):
        return error.reason
    if isinstance(error, PlatformError):
        return common_pb2.Reason(code=error.reason, message=error.message, cure=error.cure)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return common_pb2.Reason(
            code="NODE_DISK_FULL",
            message=f"The node's disk is full: {error}.",
            cure="Free space on the node, then submit it again.",
        )
    return common_pb2.Reason(
        code="AGENT_ERROR",
        message=f"The agent could not go on: {type(error).__name__}: {error}",
        cure="See the agent's log (`stellwerk logs agent`) and report it.",
    )
