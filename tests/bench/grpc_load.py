"""A load over gRPC by `h2load` (Debian package `nghttp2-client`): a caller in Python would take as much
of the two cores as the server that is measured."""

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from stellwerk_protos.open_inference import grpc_predict_v2_pb2 as oip
from tests.bench.inference_peers import Load, Target, rows

_PATH = "/inference.GRPCInferenceService/ModelInfer"
# Callers that share a connection are the rule with gRPC; one each is what wrk does over HTTP.
_STREAMS = 1


def message() -> bytes:
    """A ModelInferRequest with one row."""
    request = oip.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="data", datatype="FP64", shape=[1, 64])
    tensor.contents.fp64_contents.extend(rows(1)[0])
    return request.SerializeToString()


def h2load(target: Target, connections: int, seconds: float) -> Load:
    """Calls ModelInfer over so many connections, each waiting for its answer; raises if all fail."""
    found = shutil.which("h2load")
    if found is None:
        raise RuntimeError("the load generator h2load is missing: apt-get install nghttp2-client")
    body = message()
    headers = {"content-type": "application/grpc", "te": "trailers", **target.headers}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "body")
        data.write_bytes(b"\0" + struct.pack(">I", len(body)) + body)
        log = Path(folder, "log")
        shown = subprocess.run(
            [
                *(found, "-t1", f"-c{connections}", f"-m{_STREAMS}", f"-D{seconds:g}", "-d", str(data)),
                *(f"--log-file={log}", *(f"-H{name}: {value}" for name, value in headers.items())),
                f"http://{target.grpc}{_PATH}",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines = [line.split("\t") for line in log.read_text().splitlines()]
    rate = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", shown)
    if rate is None or not lines:
        raise RuntimeError(f"h2load said what nobody understands: {shown}")
    times = sorted(int(line[2]) / 1e3 for line in lines)
    errors = sum(line[1] != "200" for line in lines)
    return Load(float(rate[1]), times[len(times) // 2], times[len(times) * 99 // 100], errors)
