"""Texts to encode, over real channels: what transformers says of them, whatever form they come in."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import torch

from stepwell.serving import Client
from stepwell.serving.client import RequestFailedError

TEXTS = ["a", "hello there", "a longer text than the others"]


def ids_of(text: str) -> list[int]:
    return [1, *map(ord, text), 2]


@pytest.fixture(scope="module")
def expected(bert) -> list[np.ndarray]:
    """Last hidden states of TEXTS, one by one."""
    with torch.inference_mode():
        return [bert(torch.tensor([ids_of(text)])).last_hidden_state[0].numpy() for text in TEXTS]


@pytest.mark.parametrize("form", ["texts", "ragged", "padded right", "padded left"])
def test_every_form_of_texts_is_packed(hosting_encoder, wire, oip, expected, form: str) -> None:
    sequences = [ids_of(text) for text in TEXTS]
    lens = [len(ids) for ids in sequences]
    padded, mask = np.zeros((2, 3, max(lens)), np.int64)
    for row, ids in enumerate(sequences):
        at = slice(0, len(ids)) if form == "padded right" else slice(max(lens) - len(ids), None)
        padded[row, at], mask[row, at] = ids, 1
    tensors = {
        "texts": {"text": [text.encode() for text in TEXTS]},
        "ragged": {"input_ids": np.concatenate([np.array(ids) for ids in sequences]), "seq_lens": np.array(lens)},
    }.get(form, {"input_ids": padded, "attention_mask": mask})
    sample = lambda kind: hosting_encoder.server.metrics.registry.get_sample_value(  # noqa: E731
        "stepwell_tokens_total", {"model": "encoder", "kind": kind}
    )
    before = [sample(kind) or 0.0 for kind in ("prompt", "padding_avoided")]
    response = hosting_encoder.oip.ModelInfer(oip.request("encoder", tensors), timeout=20)
    np.testing.assert_allclose(oip.array(response, "last_hidden_state"), np.concatenate(expected), atol=1e-4)
    means = np.stack([states.mean(0) for states in expected])
    np.testing.assert_allclose(oip.array(response, "embedding"), means, atol=1e-4)
    assert response.parameters["operating_point"].string_param == "depth:2"
    assert response.parameters["tokens"].int64_param == sum(lens)
    assert response.parameters["tokens_kept"].int64_param == sum(lens)
    avoided = padded.size - sum(lens) if "padded" in form else 0
    assert (sample("padding_avoided") or 0.0) - before[1] == avoided
    # A step is counted after its answers have left: this one, or that of an earlier request, may still be missing.
    wire.eventually(lambda: (sample("prompt") or 0.0) >= before[0] + sum(lens))


def test_the_engine_knows_that_each_text_attends_to_itself(hosting_encoder, oip, monkeypatch) -> None:
    engine, jobs = hosting_encoder.engine("encoder"), []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda job, sink: (jobs.append(job), submit(job, sink)))
    tensors = {"input_ids": np.arange(1, 31), "seq_lens": np.array([5, 10, 15])}
    hosting_encoder.oip.ModelInfer(oip.request("encoder", tensors), timeout=20)
    (job,) = jobs
    assert job.request.reach_tokens == pytest.approx((25 + 100 + 225) / 30)


def test_only_what_is_asked_for_is_answered(hosting_encoder, oip, expected) -> None:
    request = oip.request("encoder", {"text": [TEXTS[0].encode()]}, operating_point="width:0")
    request.outputs.add(name="embedding")
    response = hosting_encoder.oip.ModelInfer(request, timeout=20)
    assert [tensor.name for tensor in response.outputs] == ["embedding"]
    assert response.parameters["operating_point"].string_param == "width:0"
    assert response.parameters["quality"].double_param == 0.7
    assert np.abs(oip.array(response, "embedding")[0] - expected[0].mean(0)).max() > 1e-3, "a smaller sub-network"


def test_a_stream_answers_every_request_once(hosting_encoder, oip, expected) -> None:
    requests = [oip.request("encoder", {"text": [text.encode()]}) for text in TEXTS]
    for i, request in enumerate(requests):
        request.id = str(i)
    responses = list(hosting_encoder.oip.ModelStreamInfer(iter(requests), timeout=20))
    assert sorted(r.infer_response.id for r in responses) == ["0", "1", "2"]
    for response in responses:
        assert not response.error_message
        assert response.infer_response.parameters["triton_final_response"].bool_param
        states = oip.array(response.infer_response, "last_hidden_state")
        np.testing.assert_allclose(states, expected[int(response.infer_response.id)], atol=1e-4)


def test_the_typed_client(hosting_encoder, expected) -> None:
    with Client(hosting_encoder.address) as client:
        described = client.describe("encoder")
        assert (described.task, described.platform, described.context_length) == ("encode", "stepwell_encode", 48)
        for given in ({"texts": TEXTS}, {"token_ids": [ids_of(text) for text in TEXTS]}):
            answer = client.predict("encoder", outputs=["last_hidden_state"], slo_ms=20_000, **given)
            np.testing.assert_allclose(answer.outputs["last_hidden_state"], np.concatenate(expected), atol=1e-4)
            assert (answer.report.outcome, answer.report.finish_reason) == ("met", "complete")
        with pytest.raises(RequestFailedError, match="inputs: exactly one of"):
            client.predict("encoder", texts=TEXTS, token_ids=[[1]])


@pytest.mark.parametrize(
    ("tensors", "parameters", "words"),
    [
        ({"input_ids": np.arange(50)}, {}, r"input_ids\[0\]: input_ids: 50 tokens.*at most 48"),
        ({"input_ids": np.array([1, 300])}, {}, r"input_ids\[1\]: must be in 0\.\.299, got 300"),
        ({"input_ids": np.array([1, -1])}, {}, r"input_ids\[1\]"),
        ({"input_ids": np.arange(3), "seq_lens": np.array([2, 2])}, {}, "seq_lens: must add up to the 3 tokens.*got 4"),
        ({"input_ids": np.arange(3), "seq_lens": np.array([3, 0])}, {}, r"seq_lens\[1\]: must be >= 1, got 0"),
        (
            {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 4), np.int64)},
            {},
            r"attention_mask: must have input_ids' shape \[2, 3\], got \[2, 4\]",
        ),
        (
            {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.array([[1, 0, 1]])},
            {},
            r"attention_mask\[0\]: must mark one run of tokens, got \[1, 0, 1\]",
        ),
        (
            {"input_ids": np.ones((1, 2), np.int64), "attention_mask": np.array([[1, 2]])},
            {},
            r"attention_mask\[0\]: must be 0 or 1",
        ),
        ({"input_ids": np.ones((1, 2, 3), np.int64)}, {}, r"input 'input_ids' shape: must be \[-1\] or \[-1, -1\]"),
        ({"text": []}, {}, "inputs: must be 1 to 1024 items, got 0"),
        ({"text": [b"a"], "input_ids": np.arange(2)}, {}, "inputs: exactly one of texts and input_ids"),
        ({"pixel_values": np.zeros((3, 4, 4), np.float32)}, {}, "unknown input, got 'pixel_values'"),
        ({"text": [b"\xff"]}, {}, "not valid UTF-8"),
        ({"text": [b"a"]}, {"token_budget": 0.5}, "token_budget: this model reduces no tokens, got 0.5"),
        ({"text": [b"a"]}, {"operating_point": "depth:9"}, "levels 0..2"),
        ({"text": [b"a"]}, {"min_quality": 2.0}, "min_quality"),
    ],
)
def test_bad_input_is_told_precisely_and_harms_nobody(hosting_encoder, oip, tensors, parameters, words) -> None:
    with pytest.raises(grpc.RpcError, match=words) as caught:
        hosting_encoder.oip.ModelInfer(oip.request("encoder", tensors, **parameters), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    hosting_encoder.oip.ModelInfer(oip.request("encoder", {"text": [b"ok"]}), timeout=20)


def test_requests_for_the_other_kind_of_model_are_refused(hosting_encoder) -> None:
    with Client(hosting_encoder.address) as client:
        with pytest.raises(RequestFailedError, match="'tiny' does not take such requests"):
            client.predict("tiny", texts=["a"])
        with pytest.raises(RequestFailedError, match="'encoder' does not take such requests"):
            client.complete("encoder", "a")
