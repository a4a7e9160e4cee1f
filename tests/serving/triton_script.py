"""A user of tritonclient, unchanged. Runs in its own process: its messages and ours have the same names.

Usage: ``python triton_script.py HOST:PORT``; prints one JSON object of what it saw.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def text_input(text: bytes) -> list[triton.InferInput]:
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], dtype=object))
    return [tensor]


def ids_input(ids: list[int]) -> list[triton.InferInput]:
    tensor = triton.InferInput("input_ids", [len(ids)], "INT64")
    tensor.set_data_from_numpy(np.array(ids, dtype=np.int64))
    return [tensor]


def plain(result: triton.InferResult) -> dict[str, Any]:
    """A result as JSON."""
    response = result.get_response(as_json=True)
    found: dict[str, Any] = {"id": response.get("id", "")}
    for name in ("text", "output_ids", "logprobs"):
        if (array := result.as_numpy(name)) is not None:
            found[name] = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    found["parameters"] = {k: next(iter(v.values())) for k, v in response.get("parameters", {}).items()}
    return found


def error_of(call: Any) -> list[str]:
    """Status and message of the exception that ``call`` must raise."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["no error", ""]


def about(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Health, metadata, configuration, statistics, repository."""
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready("tiny"), client.is_model_ready("tiny", "1"), client.is_model_ready("no")],
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata("tiny", as_json=True),
        "config": client.get_model_config("tiny", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }


def infer(client: triton.InferenceServerClient) -> dict[str, Any]:
    """One request, one answer, in several forms."""
    outputs = [triton.InferRequestedOutput(name) for name in ("output_ids", "logprobs")]
    requests: list[triton.InferResult] = []
    pending: queue.Queue[Any] = queue.Queue()
    client.async_infer(
        "tiny", ids_input([1, 2]), lambda result, error: pending.put((result, error)), parameters={"max_tokens": 2}
    )
    requests.append(client.infer("tiny", text_input(b"hello"), request_id="r1", parameters={"max_tokens": 4}))
    requests.append(client.infer("tiny", ids_input([1, 2]), outputs=outputs, parameters={"max_tokens": 2}))
    requests.append(
        client.infer(
            "tiny",
            ids_input([1, 2]),
            model_version="1",
            priority=3,
            timeout=60_000_000,
            client_timeout=60.0,
            sequence_id=7,
            sequence_start=True,
            sequence_end=True,
            compression_algorithm="gzip",
            headers={"x-stepwell-slo-ms": "9000"},
            parameters={"max_tokens": 2, "slo_ms": 77.5, "operating_point": "depth:1"},
        )
    )
    result, error = pending.get(timeout=30)
    return {
        "results": [plain(r) for r in requests],
        "async": {"result": plain(result), "error": error},
        "statistics": client.get_inference_statistics("tiny", as_json=True),
    }


def errors(client: triton.InferenceServerClient) -> dict[str, list[str]]:
    """What a user sees of mistakes."""
    hello = text_input(b"hello")
    return {
        "model": error_of(lambda: client.infer("absent", hello)),
        "version": error_of(lambda: client.infer("tiny", hello, model_version="9")),
        "slo": error_of(lambda: client.infer("tiny", hello, parameters={"slo_ms": float("nan")})),
        "key": error_of(lambda: client.infer("tiny", hello, parameters={"slo_mz": 5})),
        "token": error_of(lambda: client.infer("tiny", ids_input([5000]))),
        "shared_memory": error_of(client.get_system_shared_memory_status),
        "load": error_of(lambda: client.load_model("absent")),
        "deadline": error_of(
            lambda: client.infer("tiny", hello, client_timeout=0.0001, parameters={"max_tokens": 100})
        ),
    }


def stream(address: str) -> dict[str, Any]:
    """Two requests and a mistake on one stream; then a stream that is cancelled in the middle."""
    answers: queue.Queue[Any] = queue.Queue()

    def callback(result: Any, error: Any) -> None:
        answers.put((result, error))

    seen: dict[str, Any] = {"pieces": [], "errors": []}
    with triton.InferenceServerClient(address) as client:
        client.start_stream(callback)
        options: dict[str, Any] = {"max_tokens": 5, "ignore_eos": True}
        client.async_stream_infer("tiny", ids_input([3, 4]), request_id="a", parameters=options)
        client.async_stream_infer("absent", ids_input([3, 4]), request_id="bad")
        client.async_stream_infer(
            "tiny", ids_input([3, 4]), request_id="b", enable_empty_final_response=True, parameters=options
        )
        finals = 0
        while finals < 2 or not seen["errors"]:
            result, error = answers.get(timeout=30)
            if error is not None:
                seen["errors"].append(str(error))
            else:
                seen["pieces"].append(plain(result))
                finals += bool(result.get_response().parameters["triton_final_response"].bool_param)
        client.stop_stream()
        client.start_stream(callback)
        long = {"max_tokens": 240, "ignore_eos": True}
        client.async_stream_infer("tiny", ids_input([5, 6]), request_id="long", parameters=long)
        answers.get(timeout=30)
        client.stop_stream(cancel_requests=True)
        while not answers.empty():
            result, error = answers.get()
            if error is not None:
                seen["cancelled"] = str(error.status())
        seen["after"] = plain(client.infer("tiny", ids_input([3, 4]), parameters={"max_tokens": 5, "ignore_eos": True}))
    return seen


def main(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        seen = {"about": about(client), "infer": infer(client), "errors": errors(client), "stream": stream(address)}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
