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

DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}


def check(module: ModuleType, address: str, headers: dict[str, str], binary: dict[str, bool]) -> None:
    """The calls that people make, with one of the two clients."""
    client: Any = module.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", headers=headers)
    assert client.is_model_ready("digits", "3", headers=headers)
    client.get_server_metadata(headers=headers)
    client.get_model_metadata("digits", headers=headers)
    metadata = client.get_model_metadata("digits", headers=headers)
    assert (metadata["name"] if isinstance(metadata, dict) else metadata.name) == "digits"
    for dtype, name in DATATYPES.items():
        array = np.arange(6).reshape(2, 3).astype(dtype)
        expected = array if dtype == "bool" else array.astype("float64") * 2
        tensor = module.InferInput("x", array.shape, name)
        if binary.get("binary_data") is False and dtype == "float16":
            continue  # the client has no JSON form for it
        tensor.set_data_from_numpy(array, **binary)
        outputs = [module.InferRequestedOutput("y", **binary)]
        result = client.infer("digits", [tensor], outputs=outputs, request_id="9", headers=headers)
        np.testing.assert_array_equal(result.as_numpy("y"), expected)
        assert result.as_numpy("kind") is None
        response = result.get_response()
        assert (response["id"] if isinstance(response, dict) else response.id) == "9"
        result = client.infer("digits", [tensor], model_version="3", headers=headers)
        np.testing.assert_array_equal(result.as_numpy("y"), expected)
        assert result.as_numpy("kind") is not None
    texts = np.array([["a", "\u00e9"]], dtype=object)
    tensor = module.InferInput("x", texts.shape, "BYTES")
    tensor.set_data_from_numpy(texts, **binary)
    outputs = [module.InferRequestedOutput("y", **binary)]
    doubled = client.infer("digits", [tensor], outputs=outputs, headers=headers).as_numpy("y")
    assert [item.decode() if isinstance(item, bytes) else item for item in doubled] == ["aa", "\u00e9\u00e9"]
    if module is tritonclient.grpc or binary["binary_data"]:
        # Its own half of a float: the script gets what it stands for.
        tensor = module.InferInput("x", [1, 2], "BF16")
        tensor.set_data_from_numpy(np.array([[1.5, -2.0]], dtype="float32"), **binary)
        result = client.infer("digits", [tensor], outputs=outputs, headers=headers)
        np.testing.assert_array_equal(result.as_numpy("y"), [[3.0, -4.0]])
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
