#!/usr/bin/env python3
"""Asks the service in this container for its health (grpc.health.v1); the image has no grpc_health_probe."""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 3.0


def main() -> int:
    # Services answer without a certificate on a port for that; the gateway's door does anyhow.
    listen = os.environ.get("STELLWERK_HEALTH_LISTEN") or os.environ["STELLWERK_LISTEN"]
    port = listen.rsplit(":", 1)[1]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            print(error, file=sys.stderr)
            return 1
    return int(answer.status != health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(main())
