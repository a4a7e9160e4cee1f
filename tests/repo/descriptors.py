"""Prints, as JSON, everything that two ends of a wire must agree on in the generated modules named on the command line.

A program of its own: the messages of package ``inference`` can be registered only once in a process.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)


def describe_field(field: FieldDescriptorProto, oneofs: list[str]) -> list[object]:
    in_oneof = field.HasField("oneof_index") and not field.proto3_optional
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type)
    group = oneofs[field.oneof_index] if in_oneof else None
    return [field.number, kind, field.label, field.json_name, group, field.proto3_optional, field.options.packed]


def describe_message(prefix: str, message: DescriptorProto, found: dict[str, Any]) -> None:
    name = f"{prefix}.{message.name}"
    oneofs = [oneof.name for oneof in message.oneof_decl]
    found["messages"][name] = {field.name: describe_field(field, oneofs) for field in message.field}
    describe_enums(name, message.enum_type, found)
    for nested in message.nested_type:
        describe_message(name, nested, found)


def describe_enums(prefix: str, enums: Any, found: dict[str, Any]) -> None:
    enum: EnumDescriptorProto
    for enum in enums:
        found["enums"][f"{prefix}.{enum.name}"] = {value.name: value.number for value in enum.value}


def describe_file(file: FileDescriptorProto, found: dict[str, Any]) -> None:
    describe_enums(f".{file.package}", file.enum_type, found)
    for message in file.message_type:
        describe_message(f".{file.package}", message, found)
    for service in file.service:
        for rpc in service.method:
            streams = [rpc.client_streaming, rpc.server_streaming]
            found["rpcs"][f"{file.package}.{service.name}/{rpc.name}"] = [rpc.input_type, rpc.output_type, *streams]


if __name__ == "__main__":
    described: dict[str, Any] = {"messages": {}, "enums": {}, "rpcs": {}}
    for module in sys.argv[1:]:
        parsed = FileDescriptorProto()
        importlib.import_module(module).DESCRIPTOR.CopyToProto(parsed)
        describe_file(parsed, described)
    print(json.dumps(described))
