"""tritonclient.grpc, unchanged, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("triton_script.py")


@pytest.fixture(scope="module")
def seen(shared: Any) -> dict[str, Any]:
    """What the client saw."""
    done = subprocess.run(
        [sys.executable, SCRIPT, shared.address], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_health_and_metadata(seen: dict[str, Any]) -> None:
    about = seen["about"]
    assert about["live"]
    assert about["ready"]
    assert about["model_ready"] == [True, True, False]
    assert about["server"]["name"] == "stepwell"
    assert about["metadata"]["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": ["1"]}
    assert about["config"]["config"]["model_transaction_policy"] == {"decoupled": True}
    assert about["config"]["config"]["output"][1] == {"name": "output_ids", "data_type": "TYPE_INT64", "dims": ["-1"]}
    assert {"name": "tiny", "version": "1", "state": "READY"} in about["index"]["models"]


def test_infer(seen: dict[str, Any]) -> None:
    by_text, with_logprobs, with_everything = seen["infer"]["results"]
    assert by_text["id"] == "r1"
    assert len(by_text["output_ids"]) == 4
    assert isinstance(by_text["text"][0], str)
    assert "text" not in with_logprobs
    assert len(with_logprobs["logprobs"]) == len(with_logprobs["output_ids"]) == 2
    assert with_everything["parameters"]["slo_ms"] == 9000.0
    assert with_everything["parameters"]["operating_point"] == "depth:1"
    assert seen["infer"]["async"]["error"] is None
    assert seen["infer"]["async"]["result"]["output_ids"] == with_logprobs["output_ids"]


def test_statistics(seen: dict[str, Any]) -> None:
    (stats,) = seen["infer"]["statistics"]["model_stats"]
    assert stats["inference_count"] == "4"
    assert int(stats["inference_stats"]["success"]["ns"]) > 0
    assert int(stats["execution_count"]) >= 4


@pytest.mark.parametrize(
    ("mistake", "status", "part"),
    [
        ("model", "NOT_FOUND", "'absent'"),
        ("version", "NOT_FOUND", "'9'"),
        ("slo", "INVALID_ARGUMENT", "slo_ms"),
        ("key", "INVALID_ARGUMENT", "'slo_ms'"),
        ("token", "INVALID_ARGUMENT", "5000"),
        ("shared_memory", "UNIMPLEMENTED", ""),
        ("load", "NOT_FOUND", "'absent'"),
        ("deadline", "DEADLINE_EXCEEDED", ""),
    ],
)
def test_errors(seen: dict[str, Any], mistake: str, status: str, part: str) -> None:
    got_status, message = seen["errors"][mistake]
    assert got_status == f"StatusCode.{status}"
    assert part in message


def test_stream(seen: dict[str, Any]) -> None:
    pieces = {name: [p for p in seen["stream"]["pieces"] if p["id"] == name] for name in "ab"}
    expected = seen["stream"]["after"]["output_ids"]
    for name in "ab":
        assert [i for p in pieces[name] for i in p.get("output_ids", [])] == expected
        assert "".join(p["text"][0] for p in pieces[name] if "text" in p) == seen["stream"]["after"]["text"][0]
        assert [p["parameters"]["triton_final_response"] for p in pieces[name]] == [False] * (len(pieces[name]) - 1) + [
            True
        ]
    assert "output_ids" in pieces["a"][-1]
    assert "output_ids" not in pieces["b"][-1]
    (error,) = seen["stream"]["errors"]
    assert "'absent'" in error


def test_cancelled_stream(seen: dict[str, Any], shared: Any, wire: Any) -> None:
    assert seen["stream"]["cancelled"] == "StatusCode.CANCELLED"
    wire.eventually(lambda: not shared.engine().has_work)
    assert shared.sample("slo_requests_total", slo_class="default", outcome="cancelled") >= 1
