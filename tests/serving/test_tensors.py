"""Tensors of the Open Inference Protocol: every type in both forms, and every way of getting them wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.errors import RequestError, Status
from stepwell.serving.grpc.tensors import TensorSpec, decode_inputs, encode, split_bytes
from stepwell.serving.pb import inference_pb2 as pb

NUMPY = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "FP16": "f2",
    "BF16": "u2",
    "FP32": "f4",
    "FP64": "f8",
}
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def spec(datatype: str, shape: tuple[int, ...] = (-1,)) -> dict[str, TensorSpec]:
    return {"x": TensorSpec("x", datatype, shape)}


def message(datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return request


@pytest.mark.parametrize("datatype", NUMPY)
def test_raw_bytes_are_row_major_little_endian(datatype: str) -> None:
    values = np.arange(6).astype(NUMPY[datatype]).reshape(2, 3)
    request = message(datatype, [2, 3])
    request.raw_input_contents.append(values.astype(values.dtype.newbyteorder("<")).tobytes())
    decoded = decode_inputs(request, spec(datatype, (-1, 3)))["x"]
    np.testing.assert_array_equal(decoded, values)
    assert encode(datatype, decoded) == request.raw_input_contents[0]


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(datatype: str) -> None:
    values = np.arange(4).astype(NUMPY[datatype])
    request = message(datatype, [4], **{TYPED[datatype]: values.tolist()})
    np.testing.assert_array_equal(decode_inputs(request, spec(datatype))["x"], values)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_survive_the_way_there_and_back(elements: list[bytes]) -> None:
    request = message("BYTES", [len(elements)])
    request.raw_input_contents.append(encode("BYTES", elements))
    assert decode_inputs(request, spec("BYTES"))["x"] == elements
    typed = message("BYTES", [len(elements)], bytes_contents=elements)
    assert decode_inputs(typed, spec("BYTES"))["x"] == elements


@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_bytes_are_either_split_without_loss_or_refused(raw: bytes, count: int) -> None:
    elements = split_or_none(raw, count)
    if elements is not None:
        assert len(elements) == count
        assert encode("BYTES", elements) == raw


def split_or_none(raw: bytes, count: int) -> list[bytes] | None:
    try:
        return split_bytes("x", raw, count)
    except RequestError:
        return None


def raw(datatype: str, shape: list[int], *entries: bytes) -> pb.ModelInferRequest:
    request = message(datatype, shape)
    request.raw_input_contents.extend(entries)
    return request


def both() -> pb.ModelInferRequest:
    request = message("INT64", [1], int64_contents=[1])
    request.raw_input_contents.append(bytes(8))
    return request


def twice() -> pb.ModelInferRequest:
    request = raw("INT64", [1], bytes(8), bytes(8))
    request.inputs.add().CopyFrom(request.inputs[0])
    return request


def shared() -> pb.ModelInferRequest:
    request = message("INT64", [1])
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


WRONG: list[tuple[str, Callable[[], pb.ModelInferRequest], str, list[str]]] = [
    ("unknown name", lambda: raw("INT64", [1], bytes(8)), "y", ["inputs[0].name", "'x'", "['y']"]),
    ("twice", twice, "x", ["inputs[1].name", "same input twice", "'x'"]),
    ("type", lambda: raw("INT32", [1], bytes(4)), "x", ["'x' datatype", "INT64", "'INT32'"]),
    ("type that does not exist", lambda: raw("int64", [1], bytes(8)), "x", ["'x' datatype", "INT64", "'int64'"]),
    ("rank", lambda: raw("INT64", [1, 1], bytes(8)), "x", ["'x' shape", "[-1]", "[1, 1]"]),
    ("negative size", lambda: raw("INT64", [-1], b""), "x", ["'x' shape", "got [-1]"]),
    ("too few bytes", lambda: raw("INT64", [2], bytes(15)), "x", ["'x' raw bytes", "16 bytes", "got 15"]),
    ("too many bytes", lambda: raw("INT64", [1], bytes(9)), "x", ["'x' raw bytes", "8 bytes", "got 9"]),
    ("vast shape", lambda: raw("INT64", [2**62], bytes(8)), "x", ["'x' raw bytes", str(2**65), "got 8"]),
    ("raw entries", lambda: raw("INT64", [1], bytes(8), bytes(8)), "x", ["raw_input_contents", "1 entries", "got 2"]),
    ("no contents", lambda: message("INT64", [3]), "x", ["int64_contents", "3 elements", "got 0"]),
    ("typed count", lambda: message("INT64", [3], int64_contents=[1]), "x", ["int64_contents", "3 elements", "got 1"]),
    ("typed field", lambda: message("INT64", [1], int_contents=[1]), "x", ["int64_contents", "'int_contents'"]),
    ("typed and raw", both, "x", ["'x' contents", "typed and raw"]),
    ("shared memory", shared, "x", ["shared_memory_region", "not offered", "'region'"]),
]


@pytest.mark.parametrize(("make", "known", "parts"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_tensors(make: Callable[[], pb.ModelInferRequest], known: str, parts: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        decode_inputs(make(), {known: TensorSpec(known, "INT64", (-1,))})
    assert caught.value.code is Status.INVALID_ARGUMENT
    for part in parts:
        assert part in caught.value.message


@pytest.mark.parametrize(("datatype", "shape"), [("FP16", [1]), ("BF16", [1])])
def test_half_precision_exists_only_raw(datatype: str, shape: list[int]) -> None:
    with pytest.raises(RequestError, match="no typed form"):
        decode_inputs(message(datatype, shape, fp32_contents=[1.0]), spec(datatype))


def test_a_typed_value_that_does_not_fit() -> None:
    with pytest.raises(RequestError, match="does not fit INT8"):
        decode_inputs(message("INT8", [1], int_contents=[300]), spec("INT8"))


def test_fixed_sizes_are_checked() -> None:
    with pytest.raises(RequestError, match="shape"):
        decode_inputs(raw("INT64", [2], bytes(16)), spec("INT64", (1,)))
