"""Scores with NVIDIA's `tritonclient`, run by test_triton.py under an interpreter that has it.

A process of its own, for the client needs an older protobuf than Stellwerk and brings its
own copy of the protocol's messages. Arguments: HTTP address, gRPC address, token.
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc  # type: ignore[import-not-found]  # see above: not where types are checked
import tritonclient.http  # type: ignore[import-not-found]
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]


def check(module: ModuleType, address: str, headers: dict[str, str], binary: dict[str, bool]) -> None:
    """The calls that people make, with one of the two clients."""
    client: Any = module.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", headers=headers)
    assert client.is_model_ready("digits", "3", headers=headers)
    client.get_server_metadata(headers=headers)
    client.get_model_metadata("digits", headers=headers)
    for dtype, name in (("float32", "FP32"), ("int64", "INT64"), ("uint8", "UINT8"), ("float64", "FP64")):
        array = np.arange(6, dtype=dtype).reshape(2, 3)
        tensor = module.InferInput("x", array.shape, name)
        tensor.set_data_from_numpy(array, **binary)
        outputs = [module.InferRequestedOutput("y", **binary)]
        result = client.infer("digits", [tensor], outputs=outputs, request_id="9", headers=headers)
        np.testing.assert_array_equal(result.as_numpy("y"), array * 2)
        np.testing.assert_array_equal(
            client.infer("digits", [tensor], headers=headers).as_numpy("y"), array * 2
        )
    problem = ""
    try:
        client.infer("letters", [tensor], headers=headers)
    except InferenceServerException as error:
        problem = str(error)
    assert "does not serve letters" in problem
    client.close()


def main() -> None:
    """Checks HTTP with JSON tensors, HTTP with binary tensors, and gRPC."""
    http, grpc, token = sys.argv[1:]
    headers = {"authorization": f"Bearer {token}"}
    for binary in (False, True):
        check(tritonclient.http, http, headers, {"binary_data": binary})
    # The HTTP client has written into its dictionary what gRPC does not take.
    check(tritonclient.grpc, grpc, {"authorization": headers["authorization"]}, {})


if __name__ == "__main__":
    main()
