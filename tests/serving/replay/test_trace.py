"""Reading the Azure and Mooncake formats, and what is said about lines that are neither."""

from __future__ import annotations

import json

import pytest

from stepwell.serving.replay.trace import TraceError, read_trace
from stepwell.serving.replay.workload import Arrival

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path):
    def write(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_azure(trace):
    path = trace(
        HEADER + "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8\n\n"
        "2023-11-16 18:17:03.0000000,0,0\n2023-11-16T18:17:05+00:00,1,2\n"
    )
    workload = read_trace(path)
    assert workload.name == "t"
    expected = [Arrival(0, 1, 1), Arrival(0.97996, 4808, 10), Arrival(1.03196, 3180, 8), Arrival(2, 1, 2)]
    assert [a.at_s for a in workload.arrivals] == pytest.approx([a.at_s for a in expected], abs=1e-6)
    assert [(a.prompt_tokens, a.output_tokens) for a in workload.arrivals] == [(1, 1), (4808, 10), (3180, 8), (1, 2)]


def test_azure_columns_may_stand_in_another_order(trace):
    text = "\ufeffid,GeneratedTokens,TIMESTAMP,ContextTokens\n9,3,2024-05-10 00:00:00.009930+00:00,5"
    workload = read_trace(trace(text))
    assert workload.arrivals == (Arrival(0, 5, 3),)


def test_mooncake(trace):
    lines = [{"timestamp": 27500, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]},
             {"timestamp": 28000.0, "input_length": 5, "output_length": 1}]  # fmt: skip
    workload = read_trace(trace("\n".join(map(json.dumps, lines)), "m.jsonl"))
    assert workload.arrivals == (Arrival(0, 6955, 52, prefix=(46, 47)), Arrival(0.5, 5, 1))


def test_only_the_first_requests_are_read(trace):
    path = trace(HEADER + "2023-11-16 18:17:03.9,1,1\n" * 2 + "broken\n")
    assert len(read_trace(path, num_requests=2)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "2023-11-16 18:17:03.9,5,5\n2023-13-16 18:17:03.9,5,5", [":3: TIMESTAMP", "'2023-13-16", "YYYY-"]),
        (HEADER + "yesterday,5,5", [":2: TIMESTAMP", "'yesterday'"]),
        (HEADER + "2023-11-16 18:17:03.9,-5,5", [":2: ContextTokens", "'-5'", "whole number"]),
        (HEADER + "2023-11-16 18:17:03.9,5,", [":2: GeneratedTokens", "''"]),
        (HEADER + "2023-11-16 18:17:03.9,5,1e9", [":2: GeneratedTokens", "'1e9'"]),
        (HEADER + "2023-11-16 18:17:03.9,5," + "9" * 5000, [":2: GeneratedTokens", "'999"]),
        (HEADER + "2023-11-16 18:17:03.9,5", [":2: 2 columns", "needs the 3 columns"]),
        (HEADER, ["no requests in it"]),
        ("", ["neither of the known formats", "ContextTokens", "input_length"]),
        ("a,b\n1,2", [":1: neither", "'a,b'"]),
        (b"\x00\xff\xfe", [":1: neither"]),
        ("{", [":1: line", "one JSON object a line"]),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}\n[1]', [":2: line", "'[1]'"]),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}\n' + "[" * 100_000, [":2: line"]),
        ('{"input_length": 1, "output_length": 1}', [":1: timestamp", "None", "milliseconds"]),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', [":1: timestamp", "nan"]),
        ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}', [":1: timestamp", "inf"]),
        ('{"timestamp": 1, "input_length": true, "output_length": 1}', [":1: input_length", "True"]),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1.5}', [":1: output_length", "1.5"]),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [-1]}', [":1: hash_ids", "[-1]"]),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": 3}', [":1: hash_ids", "3"]),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(trace, text, words):
    path = trace(text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert all(word in message for word in words)
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"none\.csv: cannot be read"):
        read_trace(tmp_path / "none.csv")
