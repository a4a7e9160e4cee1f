"""Images to classify, over real channels: as tensors and as files, each at its own token budget, in any mix."""

from __future__ import annotations

import io
import threading

import grpc
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stepwell.serving import Client, Engine
from stepwell.serving.client import RequestFailedError
from stepwell.serving.images import MAX_PIXELS

SIZE, TOKENS = 32, 65
POINTS = ["merge:0@0.5", "merge:1@0.65", "merge:2@0.8", "merge:3", "super:0@0.5", "depth:0", "depth:1"]


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def client(hosting_classifier):
    with Client(hosting_classifier.address) as client:
        yield client


def test_the_full_model_says_what_transformers_says(client, vit) -> None:
    pixels = images(9)  # more than a step has room for: 6 images of 65 tokens in 400
    with torch.inference_mode():
        expected = vit(torch.from_numpy(pixels)).logits.numpy()
    answer = client.predict("classifier", pixel_values=pixels)
    assert answer.outputs.keys() == {"logits"}
    np.testing.assert_allclose(answer.outputs["logits"], expected, atol=1e-4)
    report = answer.report
    assert (report.operating_point, report.quality, report.degraded) == ("merge:3", 1.0, False)
    assert (report.prompt_tokens, report.tokens_kept) == (9 * TOKENS, 9 * TOKENS)


def test_files_are_decoded_resized_and_normalised(client, vit) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    scaled = (pixels.astype(np.float32) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    with torch.inference_mode():
        expected = vit(torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()).logits.numpy()
    answer = client.predict("classifier", images=[png(each) for each in pixels])
    np.testing.assert_allclose(answer.outputs["logits"], expected, atol=1e-4)
    large = np.full((3 * SIZE, 2 * SIZE, 3), 77, np.uint8)
    same = np.full((SIZE, SIZE, 3), 77, np.uint8)
    for kind in ("PNG", "JPEG"):
        answers = client.predict("classifier", images=[png(large, kind), png(same, kind)]).outputs["logits"]
        np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
    grey = client.predict("classifier", images=[png(same[:, :, 0])]).outputs["logits"]
    np.testing.assert_allclose(grey, client.predict("classifier", images=[png(same)]).outputs["logits"], atol=1e-4)


@pytest.mark.parametrize(("budget", "point"), [(0.5, "merge:0@0.5"), (0.7, "merge:1@0.65"), (1.0, "merge:3")])
def test_a_token_budget_is_kept_to(client, budget: float, point: str) -> None:
    report = client.predict("classifier", pixel_values=images(2), token_budget=budget).report
    assert report.operating_point == point
    assert report.tokens_kept <= budget * report.prompt_tokens + 1
    assert report.tokens_kept >= 0.75 * float(point.partition("@")[2] or 1.0) * report.prompt_tokens


def test_what_reduction_saved_is_counted(hosting_classifier, wire, client) -> None:
    def counted(kind: str) -> float:
        labels = {"model": "classifier", "kind": kind}
        return hosting_classifier.server.metrics.registry.get_sample_value("stepwell_tokens_total", labels) or 0.0

    before = counted("prompt"), counted("reduced")
    report = client.predict("classifier", pixel_values=images(3), operating_point="merge:0").report
    wire.eventually(lambda: counted("prompt") >= before[0] + 3 * TOKENS)  # a step is counted after its answers left
    assert counted("reduced") - before[1] == 3 * TOKENS - report.tokens_kept > 0


@settings(max_examples=15, deadline=None)
@given(asked=st.lists(st.tuples(st.sampled_from(POINTS), st.integers(1, 3)), min_size=2, max_size=8))
def test_an_answer_does_not_depend_on_what_runs_beside_it(hosting_classifier, asked) -> None:
    """Requests at all kinds of points that run in one step are answered as each is alone."""
    inputs = [images(count, seed) for seed, (_, count) in enumerate(asked)]
    with Client(hosting_classifier.address) as client:

        def predict(i: int) -> np.ndarray:
            answer = client.predict("classifier", pixel_values=inputs[i], operating_point=asked[i][0])
            assert answer.report.operating_point == asked[i][0]
            return answer.outputs["logits"]

        alone = [predict(i) for i in range(len(asked))]
        together: dict[int, np.ndarray] = {}
        hosting_classifier.gate.close()
        try:
            threads = [threading.Thread(target=lambda i=i: together.update({i: predict(i)})) for i in range(len(asked))]
            for thread in threads:
                thread.start()
            engine = hosting_classifier.engine("classifier")
            while engine.num_waiting + engine.num_running < len(asked):
                pass
        finally:
            hosting_classifier.gate.open()
        for thread in threads:
            thread.join(20.0)
    for i, expected in enumerate(alone):
        np.testing.assert_allclose(together[i], expected, atol=1e-4)


def test_the_model_describes_itself(client, hosting_classifier) -> None:
    model = client.describe("classifier")
    assert (model.task, model.labels, model.image_size) == (
        "classify",
        ("ant", "bee", "cat", "dog", "eel"),
        (SIZE, SIZE),
    )
    merge = next(ladder for ladder in model.ladders if ladder.name == "merge")
    assert [(p.name, p.token_budget, p.cost) for p in merge.points[:2]] == [
        ("merge:0@0.5", 0.5, 0.5),
        ("merge:1@0.65", 0.65, 0.65),
    ]
    from stepwell.serving.pb import inference_pb2 as pb

    found = hosting_classifier.oip.ModelMetadata(pb.ModelMetadataRequest(name="classifier"))
    assert [(t.name, t.datatype, list(t.shape)) for t in found.inputs] == [
        ("pixel_values", "FP32", [-1, 3, -1, -1]),
        ("image", "BYTES", [-1]),
    ]
    assert ("logits", [-1, 5]) in [(t.name, list(t.shape)) for t in found.outputs]
    assert found.platform == "stepwell_classify"


NOISE = np.random.default_rng(2).integers(0, 256, (50, 50, 3), np.uint8)


def bomb() -> bytes:
    """A small file of a huge picture."""
    side = int(MAX_PIXELS**0.5) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pixel_values": images(1)[:, :2]}, r"shape must be \[3, H, W\] or \[N, 3, H, W\], got \[1, 2, 32, 32\]"),
        ({"pixel_values": images(1)[0, 0]}, r"shape must be"),
        ({"pixel_values": np.zeros((3, 31, 32))}, r"pixel_values\[0\]: .*\[3, 32, 32\].*\[3, 31, 32\]"),
        ({"pixel_values": np.zeros((0, 3, 32, 32))}, "1 to 1024 items, got 0"),
        ({"images": [b""]}, r"images\[0\]: the file is empty"),
        ({"images": [png(np.zeros((4, 4, 3), np.uint8)), b"GIF89a"]}, r"images\[1\]: not a PNG or JPEG"),
        (
            {"images": [png(NOISE)[:2000]]},
            r"images\[0\]: not a PNG or JPEG",
        ),
        ({"images": [png(np.zeros((4, 4), np.uint8), "BMP")]}, r"images\[0\]: not a PNG or JPEG"),
        ({"images": [bomb()]}, f"at most {MAX_PIXELS} pixels"),
        ({"texts": ["a"]}, "exactly one of pixel_values and images"),
        ({"pixel_values": images(1), "operating_point": "merge:0@0.4"}, r"level 0 of ladder 'merge' is merge:0@0\.5"),
        ({"pixel_values": images(1), "token_budget": 0.2}, r"token_budget: the smallest is 0\.5, got 0\.2"),
        ({"pixel_values": images(1), "token_budget": 1.5}, "token_budget"),
        ({"pixel_values": images(1), "outputs": ["masks"]}, "outputs: unknown output, got 'masks'"),
    ],
)
def test_bad_input_is_told_precisely_and_harms_nobody(client, given, words) -> None:
    with pytest.raises(RequestFailedError, match=words) as caught:
        client.predict("classifier", **given)
    assert caught.value.status == "INVALID_ARGUMENT"
    client.predict("classifier", pixel_values=images(1))


def test_a_pixel_that_is_no_number_is_named(client) -> None:
    pixels = images(2)
    pixels[1, 2, 3, 4] = np.nan
    with pytest.raises(RequestFailedError, match=r"pixel_values\[1, 2, 3, 4\]: must be finite, got nan"):
        client.predict("classifier", pixel_values=pixels)


def test_images_over_the_open_protocol(hosting_classifier, oip, vit) -> None:
    pixels = images(1)[0]
    with torch.inference_mode():
        expected = vit(torch.from_numpy(pixels[None])).logits.numpy()
    response = hosting_classifier.oip.ModelInfer(oip.request("classifier", {"pixel_values": pixels}), timeout=20)
    np.testing.assert_allclose(oip.array(response, "logits"), expected, atol=1e-4)
    assert response.parameters["tokens_kept"].int64_param == TOKENS
    file = png(np.zeros((8, 8, 3), np.uint8))
    response = hosting_classifier.oip.ModelInfer(oip.request("classifier", {"image": [file, file]}), timeout=20)
    assert list(response.outputs[0].shape) == [2, 5]
    request = oip.request("classifier", {"image": [file]})
    request.outputs.add(name="masks")
    with pytest.raises(grpc.RpcError, match=r"outputs\[0\].name: unknown output, got 'masks'"):
        hosting_classifier.oip.ModelInfer(request, timeout=20)


def test_offline_is_the_same(classifier, client) -> None:
    pixels = images(2)
    with Engine.open(str(classifier), profile="default") as engine:
        answer = engine.predict(pixel_values=pixels, operating_point="merge:1")
    online = client.predict("classifier", pixel_values=pixels, operating_point="merge:1")
    np.testing.assert_allclose(answer.outputs["logits"], online.outputs["logits"], atol=1e-5)
    assert answer.report.tokens_kept == online.report.tokens_kept
