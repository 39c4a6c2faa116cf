"""The codec against numpy, which knows the layouts, and against what the protocol forbids."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from stellwerk_scorer import tensors
from stellwerk_scorer.tensors import TensorError

_DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


@st.composite
def _arrays(draw: st.DrawFn) -> tuple[str, Any]:
    datatype = draw(st.sampled_from(sorted(_DTYPES)))
    shape = draw(st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    # NaN equals nothing, itself included; its own test is below.
    elements = {"allow_nan": False} if datatype.startswith("FP") else {}
    return datatype, draw(st_numpy.arrays(np.dtype(_DTYPES[datatype]), shape, elements=elements or None))


@given(_arrays())
def test_raw_bytes_are_numpys_layout(case: tuple[str, Any]) -> None:
    datatype, array = case
    values = tensors.decode_raw(array.tobytes(), array.shape, datatype)
    assert values == array.ravel().tolist()
    assert tensors.encode_raw(values, datatype) == array.tobytes()


@given(_arrays())
def test_nested_and_flat_lists_are_the_same_tensor(case: tuple[str, Any]) -> None:
    datatype, array = case
    flat = array.ravel().tolist()
    assert tensors.flatten(flat, array.shape, datatype) == flat
    assert tensors.flatten(array.tolist(), array.shape, datatype) == flat
    assert tensors.nest(flat, array.shape) == array.tolist()


@given(st.lists(st.text(), max_size=20))
def test_bytes_elements_survive_their_raw_form(values: list[str]) -> None:
    raw = tensors.encode_raw(values, "BYTES")
    assert tensors.decode_raw(raw, [len(values)], "BYTES") == values


@given(st.binary(max_size=64), st.integers(0, 8), st.sampled_from(tensors.DATATYPES))
def test_any_raw_bytes_are_a_tensor_or_a_tensor_error(raw: bytes, count: int, datatype: str) -> None:
    with suppress(TensorError):
        assert len(tensors.decode_raw(raw, [count], datatype)) == count


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=12,
)


@given(_json, st.lists(st.integers(-1, 3), max_size=4), st.sampled_from(tensors.DATATYPES))
def test_any_json_is_a_tensor_or_a_tensor_error(data: Any, shape: list[int], datatype: str) -> None:
    with suppress(TensorError):
        assert len(tensors.flatten(data, shape, datatype)) == math.prod(shape)


@given(_json)
def test_any_result_is_measured_or_refused(value: Any) -> None:
    with suppress(TensorError):
        shape, values = tensors.measure(value)
        assert len(values) == math.prod(shape)
        tensors.convert(values, tensors.guess_datatype(values))


def test_not_a_number_travels_raw() -> None:
    raw = np.array([np.nan, np.inf], "<f4").tobytes()
    values = tensors.decode_raw(raw, [2], "FP32")
    assert math.isnan(values[0])
    assert values[1] == math.inf
    assert tensors.encode_raw(values, "FP32") == raw


@pytest.mark.parametrize(
    ("data", "shape", "datatype", "says"),
    [
        ([1, 2, 3], [2, 2], "INT64", "3 values do not fill the shape [2, 2], which takes 4"),
        ([[1, 2], [3]], [2, 2], "INT64", "a row of dimension 1 has 1 elements"),
        ([[1, 2], 3], [2, 2], "INT64", "dimension 1 holds a int where a list must be"),
        ([[1], [2], [3]], [2, 1], "INT64", "dimension 0 has 3 elements"),
        ([[[1]]], [1, 1], "INT64", "INT64 does not hold values of type list"),
        ([1.5], [1], "INT64", "INT64 does not hold values of type float"),
        ([True], [1], "INT64", "type bool"),
        ([1], [1], "BOOL", "type int"),
        ([300], [1], "UINT8", "which holds 0 to 255"),
        ([-1], [1], "UINT64", "does not fit UINT64"),
        (["1"], [1], "FP32", "type str"),
        ([None], [1], "FP64", "type NoneType"),
        ([10**400], [1], "FP64", "does not fit FP64"),
        ([1], [1], "BYTES", "type int"),
        ([1], [1], "BF16", "BF16 has no form in JSON"),
        ([1], [1], "TF32", "the datatype 'TF32' is none of BOOL"),
        ([1], [-1], "INT8", "whole numbers of zero or more"),
        ([1], [1.0], "INT8", "whole numbers of zero or more"),
        ([1], [1] * 33, "INT8", "33 dimensions"),
        ([], [10**12, 0], "INT8", "too many rows"),
    ],
)
def test_what_is_wrong_is_named(data: Any, shape: list[Any], datatype: str, says: str) -> None:
    with pytest.raises(TensorError) as caught:
        tensors.flatten(data, shape, datatype)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "shape", "datatype", "says"),
    [
        (b"123", [1], "INT32", "3 raw bytes are not the 4 of INT32 [1]"),
        (b"\x05\0\0\0ab", [1], "BYTES", "end within an element"),
        (b"\x05\0", [1], "BYTES", "end within a length"),
        (b"\x01\0\0\0a", [2], "BYTES", "1 raw BYTES elements, the shape takes 2"),
        (b"\x01\0\0\0\xff", [1], "BYTES", "not UTF-8"),
    ],
)
def test_raw_bytes_that_do_not_fit_are_refused(
    raw: bytes, shape: list[int], datatype: str, says: str
) -> None:
    with pytest.raises(TensorError) as caught:
        tensors.decode_raw(raw, shape, datatype)
    assert says in str(caught.value)


def test_values_that_the_raw_form_cannot_hold_are_refused() -> None:
    with pytest.raises(TensorError, match="does not fit FP16"):
        tensors.encode_raw([1e300], "FP16")


def test_types_are_guessed_from_json() -> None:
    cases: list[tuple[list[Any], str]] = [
        ([1, 2], "INT64"),
        ([1, 2.5], "FP64"),
        ([], "FP64"),
        ([2**63], "UINT64"),
        ([True], "BOOL"),
        (["a"], "BYTES"),
    ]
    assert [tensors.guess_datatype(values) for values, _ in cases] == [datatype for _, datatype in cases]
