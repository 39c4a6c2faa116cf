"""The frames between front and worker, which both ends must spell alike.

A frame is a header, metadata (JSON, or nothing) and a payload. Requests carry an id that the
answer repeats; a worker answers them one after the other, in the order in which they came.
A BATCH holds whole frames, each of which is answered by a frame of its own.
"""

import struct

# kind, number (request: milliseconds that run() may take; answer: microseconds that it took),
# request id, size of the metadata, size of the payload
HEADER = struct.Struct("<BIQII")

READY, LOAD_FAILED, SCORE, INFER, BATCH, RESULT, RESPONSE, TENSORS, ERROR, SKIPPED = range(1, 11)

EXIT_LOAD_FAILED = 3
MAX_PAYLOAD_BYTES = 2**32 - 1

# Shared memory of one worker: the request that it has begun, and one that the front took back. The
# worker notes the first before it looks at the second; the front writes the second and looks at the
# first some milliseconds later. So of the two at least one sees the other, and no request runs twice.
CLAIMS = struct.Struct("<QQ")
STARTED, REVOKED = 0, 1


def encode(kind: int, request_id: int, meta: bytes = b"", payload: bytes = b"", number: int = 0) -> bytes:
    """One frame as it goes over the socket."""
    return HEADER.pack(kind, number, request_id, len(meta), len(payload)) + meta + payload
