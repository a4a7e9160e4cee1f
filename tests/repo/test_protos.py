"""The wire format: ours is the protocol's, and the committed stubs are those of proto/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

OFFERED = {
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStreamInfer",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
}


def described_by(*modules: str) -> dict[str, Any]:
    script = Path(__file__).with_name("descriptors.py")
    done = subprocess.run([sys.executable, script, *modules], capture_output=True, text=True, check=True)
    described: dict[str, Any] = json.loads(done.stdout)
    return described


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    return described_by("stepwell.serving.pb.model_config_pb2", "stepwell.serving.pb.inference_pb2")


@pytest.fixture(scope="module")
def tritons() -> dict[str, Any]:
    return described_by("tritonclient.grpc.model_config_pb2", "tritonclient.grpc.service_pb2")


def test_every_field_of_ours_is_the_protocols(ours: dict[str, Any], tritons: dict[str, Any]) -> None:
    assert ours["messages"]
    for message, fields in ours["messages"].items():
        theirs = tritons["messages"][message]
        assert fields == {name: theirs.get(name) for name in fields}, message


def test_messages_carry_all_fields_except_the_subset_of_model_config(
    ours: dict[str, Any], tritons: dict[str, Any]
) -> None:
    subset = {".inference.ModelConfig", ".inference.ModelInput", ".inference.ModelOutput"}
    for message, fields in ours["messages"].items():
        if message not in subset:
            assert fields.keys() == tritons["messages"][message].keys(), message


def test_enums_are_the_protocols(ours: dict[str, Any], tritons: dict[str, Any]) -> None:
    assert ours["enums"].keys() == {".inference.DataType"}
    assert ours["enums"][".inference.DataType"] == tritons["enums"][".inference.DataType"]


def test_rpcs_are_the_protocols(ours: dict[str, Any], tritons: dict[str, Any]) -> None:
    assert ours["rpcs"].keys() == {f"inference.GRPCInferenceService/{name}" for name in OFFERED}
    assert ours["rpcs"] == {name: tritons["rpcs"].get(name) for name in ours["rpcs"]}


def test_committed_stubs_are_generated_from_proto(root: Path, tmp_path: Path) -> None:
    command = ["make", "protos", f"PY={sys.executable}", "TEST=", f"PB={tmp_path}", f"PROTO_BUILD={tmp_path / 'build'}"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    committed = {path.name: path.read_text() for path in (root / "serving" / "pb").iterdir() if path.is_file()}
    del committed["__init__.py"]
    assert generated.keys() == committed.keys()
    stale = [name for name in generated if generated[name] != committed[name]]
    assert not stale, "run `make protos` and commit serving/pb"
