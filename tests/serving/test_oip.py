"""The Open Inference Protocol service over a real channel: one request, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from stepwell.models.loader import open_model
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.pb import model_config_pb2 as config_pb

PROMPT = "def f(x):"


@pytest.fixture(scope="module")
def greedy(tiny: Path) -> Any:
    """``greedy(token_ids, level, n)``: what the model continues with, by recomputing everything for each token."""
    loaded = open_model(str(tiny))

    def run(token_ids: list[int], point: str, num_tokens: int) -> list[int]:
        ids = list(token_ids)
        for _ in range(num_tokens):
            hidden = loaded.decoder.forward_dense(torch.tensor([ids]), loaded.ladders.subnet(point))[-1]
            ids.append(int(loaded.decoder.logits(hidden[0, -1]).argmax()))
        return ids[len(token_ids) :]

    return run


def test_server_and_model_are_live_and_ready(shared: Any) -> None:
    assert shared.oip.ServerLive(pb.ServerLiveRequest()).live
    assert shared.oip.ServerReady(pb.ServerReadyRequest()).ready
    for version in ("", "1"):
        assert shared.oip.ModelReady(pb.ModelReadyRequest(name="tiny", version=version)).ready
    assert not shared.oip.ModelReady(pb.ModelReadyRequest(name="tiny", version="2")).ready
    assert not shared.oip.ModelReady(pb.ModelReadyRequest(name="absent")).ready


def test_server_metadata(shared: Any) -> None:
    metadata = shared.oip.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "stepwell"
    assert metadata.version
    assert {"model_configuration", "model_repository", "statistics"} <= set(metadata.extensions)


def test_model_metadata(shared: Any) -> None:
    metadata = shared.oip.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("text", "BYTES", [1]),
        ("input_ids", "INT64", [-1]),
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("text", "BYTES", [1]),
        ("output_ids", "INT64", [-1]),
        ("logprobs", "FP32", [-1]),
    ]


def test_model_config(shared: Any) -> None:
    config = shared.oip.ModelConfig(pb.ModelConfigRequest(name="tiny")).config
    assert (config.name, config.max_batch_size) == ("tiny", 0)
    assert config.platform
    assert config.model_transaction_policy.decoupled
    kinds = {t.name: t.data_type for t in [*config.input, *config.output]}
    assert kinds == {
        "text": config_pb.TYPE_STRING,
        "input_ids": config_pb.TYPE_INT64,
        "output_ids": config_pb.TYPE_INT64,
        "logprobs": config_pb.TYPE_FP32,
    }


@pytest.mark.parametrize("point", ["depth:0", "depth:1", "depth:2", "width:0"])
def test_the_answer_is_that_of_the_sub_network_it_is_pinned_to(shared: Any, wire: Any, greedy: Any, point: str) -> None:
    ids = [5, 17, 200, 3]
    response = shared.oip.ModelInfer(wire.infer(ids, operating_point=point, max_tokens=6, ignore_eos=True))
    assert wire.output(response, "output_ids") == greedy(ids, point, 6)
    assert response.parameters["operating_point"].string_param == point


def test_text_and_ids_are_the_same_request(shared: Any, wire: Any) -> None:
    tokenizer = shared.server.plane.models["tiny"].hosted.tokenizer
    by_text = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=5))
    by_ids = shared.oip.ModelInfer(wire.infer(list(tokenizer.encode(PROMPT)), max_tokens=5))
    assert wire.output(by_text, "output_ids") == wire.output(by_ids, "output_ids")
    assert wire.output(by_text, "text") == wire.output(by_ids, "text")


def test_typed_contents_are_the_same_request(shared: Any, wire: Any) -> None:
    typed = pb.ModelInferRequest(model_name="tiny")
    typed.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(PROMPT.encode())
    raw = wire.infer(PROMPT)
    for request in (typed, raw):
        wire.set_parameter(request.parameters["max_tokens"], 4)
    answers = [wire.output(shared.oip.ModelInfer(request), "output_ids") for request in (typed, raw)]
    assert answers[0] == answers[1]
    typed_ids = pb.ModelInferRequest(model_name="tiny")
    typed_ids.inputs.add(name="input_ids", datatype="INT64", shape=[2]).contents.int64_contents.extend([1, 2])
    assert shared.oip.ModelInfer(typed_ids).parameters["prompt_tokens"].int64_param == 2


def test_response_names_itself_and_answers_in_raw_bytes(shared: Any, wire: Any) -> None:
    request = wire.infer(PROMPT, max_tokens=3)
    request.id = "my id"
    response = shared.oip.ModelInfer(request)
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "my id")
    assert [(t.name, t.datatype, list(t.shape)) for t in response.outputs] == [
        ("text", "BYTES", [1]),
        ("output_ids", "INT64", [3]),
    ]
    assert len(response.raw_output_contents) == 2
    assert not any(t.HasField("contents") for t in response.outputs)


def test_requested_outputs_come_in_the_order_requested(shared: Any, wire: Any) -> None:
    request = wire.infer(PROMPT, max_tokens=3)
    for name in ("logprobs", "output_ids"):
        request.outputs.add(name=name)
    response = shared.oip.ModelInfer(request)
    assert [t.name for t in response.outputs] == ["logprobs", "output_ids"]
    logprobs = wire.output(response, "logprobs")
    assert len(logprobs) == 3
    assert all(value <= 0.0 for value in logprobs)


def test_report_is_in_the_parameters(shared: Any, wire: Any) -> None:
    request = wire.infer([9, 8, 7], max_tokens=4, ignore_eos=True, operating_point="min", slo_ms=60_000)
    parameters = shared.oip.ModelInfer(request).parameters
    found = {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()}
    assert found["operating_point"] == "depth:0"
    assert found["quality"] == 0.5
    assert found["slo_ms"] == 60_000.0
    assert (found["slo_met"], found["degraded"], found["finish_reason"]) == (True, False, "length")
    assert (found["prompt_tokens"], found["generated_tokens"], found["tokens_at_depth:0"]) == (3, 4, 4)
    assert 0 < found["ttft_ms"] <= found["total_ms"]
    assert 0 <= found["queue_ms"] <= found["total_ms"]
    assert found["compute_ms"] > 0
    assert 0 < found["tpot_ms"] < found["total_ms"]
    assert found["predicted_ms"] > 0
    kinds = {key: value.WhichOneof("parameter_choice") for key, value in parameters.items()}
    assert kinds["generated_tokens"] == kinds["tokens_at_depth:0"] == "int64_param"
    assert kinds["total_ms"] == kinds["quality"] == "double_param"


def test_without_slo_no_slo_is_reported(shared: Any, wire: Any) -> None:
    parameters = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=1)).parameters
    assert "slo_ms" not in parameters
    assert "tpot_ms" not in parameters, "one token has no time per further token"
    assert parameters["slo_met"].bool_param


def test_slo_from_metadata_wins_over_parameters_and_is_reported(shared: Any, wire: Any) -> None:
    metadata = (("x-stepwell-slo-ms", "54321"), ("x-request-id", "abc"), ("trace-bin", b"\x00\xff"))
    response = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=1, slo_ms=9999.0), metadata=metadata)
    assert response.parameters["slo_ms"].double_param == 54321.0


def test_an_slo_that_was_missed_is_said_to_be(shared: Any, wire: Any) -> None:
    response = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=3, ttft_ms=0.001))
    assert not response.parameters["slo_met"].bool_param


def test_min_quality_and_max(shared: Any, wire: Any) -> None:
    response = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=1, min_quality=0.75))
    assert response.parameters["quality"].double_param >= 0.75
    response = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=1, operating_point="max"))
    assert response.parameters["operating_point"].string_param == "depth:2"


def test_lossless_is_the_full_model(shared: Any, wire: Any) -> None:
    lossless = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=4, lossless=True))
    full = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=4, operating_point="max"))
    assert lossless.parameters["quality"].double_param == 1.0
    assert wire.output(lossless, "output_ids") == wire.output(full, "output_ids")


def test_stop_text_ends_the_answer_and_is_not_in_it(shared: Any, wire: Any) -> None:
    whole = wire.output(shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=12, ignore_eos=True)), "text")
    stop = whole[1]
    response = shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=12, ignore_eos=True, stop=stop))
    assert wire.output(response, "text") == whole[: whole.index(stop)]
    assert response.parameters["finish_reason"].string_param == "stop"
    several = shared.oip.ModelInfer(
        wire.infer(PROMPT, max_tokens=12, ignore_eos=True, stop=f'["no such text", {pb_json(stop)}]')
    )
    assert wire.output(several, "text") == whole[: whole.index(stop)]


def pb_json(text: str) -> str:
    import json

    return json.dumps(text)


def test_sampling_is_reproducible_by_seed(shared: Any, wire: Any) -> None:
    def run(seed: int) -> list[int]:
        request = wire.infer(PROMPT, max_tokens=12, temperature=2.0, seed=seed, top_k=200, top_p=0.99, ignore_eos=True)
        return wire.output(shared.oip.ModelInfer(request), "output_ids")

    assert run(7) == run(7)
    assert len({tuple(run(seed)) for seed in range(4)}) > 1


def test_tokens_to_generate_by_default_end_with_the_context(shared: Any, wire: Any) -> None:
    prompt = [1] * (wire.context - 5)
    response = shared.oip.ModelInfer(wire.infer(prompt, ignore_eos=True))
    assert response.parameters["generated_tokens"].int64_param == 5


def test_a_model_without_tokenizer_takes_and_gives_ids(shared: Any, wire: Any) -> None:
    metadata = shared.oip.ModelMetadata(pb.ModelMetadataRequest(name="token-only"))
    assert [t.name for t in metadata.inputs] == ["input_ids"]
    assert [t.name for t in metadata.outputs] == ["output_ids", "logprobs"]
    response = shared.oip.ModelInfer(wire.infer([1, 2, 3], model="token-only", max_tokens=2))
    assert [t.name for t in response.outputs] == ["output_ids"]


def test_statistics_count_what_was_done(shared: Any, wire: Any) -> None:
    def read() -> Any:
        (found,) = shared.oip.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
        return found

    before = read()
    shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=3, ignore_eos=True))
    with pytest.raises(grpc.RpcError):
        shared.oip.ModelInfer(wire.infer(PROMPT, max_tokens=-1))
    with pytest.raises(grpc.RpcError):
        shared.oip.ModelInfer(wire.infer([], max_tokens=1))
    wire.eventually(lambda: read().execution_count >= before.execution_count + 3)  # the step ends after its requests
    after = read()
    assert (after.name, after.version) == ("tiny", "1")
    assert after.inference_count - before.inference_count == 1
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.last_inference >= before.last_inference > 0


def test_statistics_of_all_models(shared: Any) -> None:
    found = shared.oip.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert {stats.name for stats in found} == {"tiny", "token-only"}


def test_methods_that_are_not_offered_are_unimplemented(shared: Any) -> None:
    call = shared.channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_repository_index(shared: Any) -> None:
    entries = shared.oip.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    assert [(e.name, e.version, e.state, e.reason) for e in entries] == [
        ("tiny", "1", "READY", ""),
        ("token-only", "1", "READY", ""),
    ]


def test_unload_and_load_by_name(make_server: Any, wire: Any) -> None:
    running = make_server()
    running.oip.ModelInfer(wire.infer(PROMPT, max_tokens=1))
    running.oip.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
    (entry,) = running.oip.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "unloaded")
    assert not running.oip.ServerReady(pb.ServerReadyRequest()).ready
    assert list(running.oip.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models) == []
    with pytest.raises(grpc.RpcError) as caught:
        running.oip.ModelInfer(wire.infer(PROMPT))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert running.oip.ModelMetadata(pb.ModelMetadataRequest(name="tiny")).name == "tiny"
    running.oip.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
    running.oip.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"))
    running.check_serves()
    (stats,) = running.oip.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
    assert stats.inference_count == 2, "counters outlive a reload"


def test_a_model_that_cannot_be_loaded_again_is_said_why(make_server: Any, tmp_path: Path, tiny: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    running = make_server(extra_models=[{"source": str(copy), "kv_cache_tokens": 1024}])
    running.oip.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="copy"))
    (copy / "model.safetensors").write_bytes(b"corrupt")
    with pytest.raises(grpc.RpcError) as caught:
        running.oip.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="copy"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "model.safetensors" in caught.value.details()
    (entry,) = [e for e in running.oip.RepositoryIndex(pb.RepositoryIndexRequest()).models if e.name == "copy"]
    assert entry.state == "UNAVAILABLE"
    assert "model.safetensors" in entry.reason
    running.check_serves()
