"""Tensors of the Open Inference Protocol <-> numpy arrays and lists of bytes, every count and size checked.

In: typed contents or raw bytes (row-major, little-endian; an element of BYTES is a 4-byte length and its bytes).
Out: raw bytes always, because clients read only those for every type. FP16 and BF16 exist only raw; BF16 is carried
as uint16 bit patterns.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.serving.errors import invalid
from stepwell.serving.pb import inference_pb2 as pb

Tensor = np.ndarray[Any, Any] | list[bytes]
"""A numpy array, or for datatype BYTES the list of its elements in row-major order."""

BYTES = "BYTES"


@dataclass(frozen=True)
class _Layout:
    dtype: np.dtype[Any]
    contents: str | None
    """Typed field of InferTensorContents; None = raw only."""


_LAYOUTS: Mapping[str, _Layout] = {
    "BOOL": _Layout(np.dtype("?"), "bool_contents"),
    "INT8": _Layout(np.dtype("<i1"), "int_contents"),
    "INT16": _Layout(np.dtype("<i2"), "int_contents"),
    "INT32": _Layout(np.dtype("<i4"), "int_contents"),
    "INT64": _Layout(np.dtype("<i8"), "int64_contents"),
    "UINT8": _Layout(np.dtype("<u1"), "uint_contents"),
    "UINT16": _Layout(np.dtype("<u2"), "uint_contents"),
    "UINT32": _Layout(np.dtype("<u4"), "uint_contents"),
    "UINT64": _Layout(np.dtype("<u8"), "uint64_contents"),
    "FP16": _Layout(np.dtype("<f2"), None),
    "BF16": _Layout(np.dtype("<u2"), None),
    "FP32": _Layout(np.dtype("<f4"), "fp32_contents"),
    "FP64": _Layout(np.dtype("<f8"), "fp64_contents"),
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 = variable."""
    or_shape: tuple[int, ...] | None = None
    """Another one that is taken as well."""


def decode_inputs(request: pb.ModelInferRequest, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """The inputs of a request by name, each checked against its specification. Raises RequestError."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise invalid(
            "raw_input_contents",
            f"must have {len(request.inputs)} entries, one an input",
            len(raw),
            "send every input raw or every input typed",
        )
    decoded: dict[str, Tensor] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name in decoded:
            raise invalid(f"inputs[{i}].name", "the same input twice", tensor.name, "send each input once")
        if tensor.name not in specs:
            raise invalid(f"inputs[{i}].name", "unknown input", tensor.name, f"send some of {sorted(specs)}")
        count = _check_header(tensor, specs[tensor.name])
        decoded[tensor.name] = _from_raw(tensor, raw[i], count) if raw else _from_typed(tensor, count)
    return decoded


def _check_header(tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec) -> int:
    """Check datatype and shape; return the number of elements."""
    where, shape = f"input {tensor.name!r}", list(tensor.shape)
    if tensor.datatype != spec.datatype:
        raise invalid(f"{where} datatype", f"must be {spec.datatype}", tensor.datatype, "send it in that type")
    shapes = [known for known in (spec.shape, spec.or_shape) if known is not None]
    if not any(_fits(shape, known) for known in shapes):
        choices = " or ".join(str(list(known)) for known in shapes)
        raise invalid(f"{where} shape", f"must be {choices} (-1 = any size)", shape, "send that shape")
    if "shared_memory_region" in tensor.parameters:
        raise invalid(
            f"{where} shared_memory_region",
            "shared memory is not offered",
            tensor.parameters["shared_memory_region"].string_param,
            "send the contents",
        )
    return math.prod(shape)


def _fits(shape: Sequence[int], known: Sequence[int]) -> bool:
    return len(shape) == len(known) and all(n >= 0 and m in (n, -1) for n, m in zip(shape, known, strict=True))


def _from_raw(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes, count: int) -> Tensor:
    where = f"input {tensor.name!r}"
    if tensor.HasField("contents"):
        raise invalid(f"{where} contents", "given typed and raw at once", len(raw), "send one of the two")
    if tensor.datatype == BYTES:
        return split_bytes(where, raw, count)
    dtype = _LAYOUTS[tensor.datatype].dtype
    if len(raw) != count * dtype.itemsize:
        raise invalid(
            f"{where} raw bytes",
            f"shape {list(tensor.shape)} of {tensor.datatype} takes {count * dtype.itemsize} bytes",
            len(raw),
            "make shape and data agree",
        )
    return np.frombuffer(raw, dtype).reshape(list(tensor.shape))


def split_bytes(where: str, raw: bytes, count: int) -> list[bytes]:
    """Raw BYTES data -> its ``count`` elements. ``where`` names the tensor in errors."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise invalid(
                f"{where} raw bytes",
                f"cut inside the length of element {len(elements)}",
                len(raw),
                "send each element as a 4-byte little-endian length and its bytes",
            )
        (size,) = struct.unpack_from("<I", raw, at)
        if at + 4 + size > len(raw):
            raise invalid(
                f"{where} raw bytes",
                f"element {len(elements)} says it has {size} bytes but {len(raw) - at - 4} are left",
                len(raw),
                "send each element as a 4-byte little-endian length and its bytes",
            )
        elements.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    if len(elements) != count:
        raise invalid(f"{where} elements", f"the shape says {count}", len(elements), "make shape and data agree")
    return elements


def _from_typed(tensor: pb.ModelInferRequest.InferInputTensor, count: int) -> Tensor:
    where = f"input {tensor.name!r}"
    name = "bytes_contents" if tensor.datatype == BYTES else _LAYOUTS[tensor.datatype].contents
    if name is None:
        raise invalid(f"{where} contents", f"{tensor.datatype} has no typed form", tensor.datatype, "send raw bytes")
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != name:
            raise invalid(f"{where} contents", f"{tensor.datatype} is sent as {name}", descriptor.name, "use it")
    values = getattr(tensor.contents, name)
    if len(values) != count:
        raise invalid(
            f"{where} {name}",
            f"shape {list(tensor.shape)} has {count} elements",
            len(values),
            "make shape and data agree",
        )
    if tensor.datatype == BYTES:
        return list(values)
    try:
        return np.array(values, _LAYOUTS[tensor.datatype].dtype).reshape(list(tensor.shape))
    except OverflowError as error:
        raise invalid(
            f"{where} {name}", f"a value does not fit {tensor.datatype}", str(error), "send it wider"
        ) from None


def encode(datatype: str, values: Sequence[Any] | np.ndarray[Any, Any]) -> bytes:
    """Elements in row-major order -> raw bytes of an output tensor."""
    if datatype == BYTES:
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return np.asarray(values, _LAYOUTS[datatype].dtype).tobytes()
