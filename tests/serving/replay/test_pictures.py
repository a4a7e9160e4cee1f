"""Images for a model that is known by its metadata alone."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.serving.grpc.tensors import TensorSpec
from stepwell.serving.replay.pictures import NUM_MADE_UP, Pictures, from_folder, made_up, takes_images

OPEN = {"pixels": TensorSpec("pixels", "FP32", (-1, 3, -1, -1))}
FIXED = {"x": TensorSpec("x", "FP32", (3, 8, 6)), "image": TensorSpec("image", "BYTES", (-1,))}
TEXT = {"input_ids": TensorSpec("input_ids", "INT64", (-1,)), "mask": TensorSpec("mask", "FP32", (-1, -1))}


def test_images_are_seen_by_type_and_shape():
    assert takes_images(OPEN)
    assert takes_images(FIXED)
    assert not takes_images(TEXT)


@pytest.mark.parametrize(("inputs", "size", "shape"), [(OPEN, (4, 5), (1, 3, 4, 5)), (FIXED, (4, 5), (3, 8, 6))])
def test_noise_has_the_shape_of_the_input_and_depends_on_the_seed(inputs, size, shape):
    first, again, other = (list(made_up(inputs, size, seed).tensors()) for seed in (1, 1, 2))
    assert first == again != other
    assert len({tensor.data for tensor in first}) == NUM_MADE_UP
    for tensor in first:
        assert tensor.shape == shape
        values = np.frombuffer(tensor.data, "<f4").reshape(shape)
        assert np.isfinite(values).all()


def test_a_size_that_nobody_says_is_an_error():
    with pytest.raises(ValueError, match=r"pixels has shape \[-1, 3, -1, -1\]; give --image-size"):
        made_up(OPEN, None, 0)


def test_files_are_sent_as_they_are(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    tensors = list(from_folder(FIXED, tmp_path, 0).tensors())
    assert sorted(tensor.data[4:] for tensor in tensors) == [b"a.png", b"b.JPG"]
    assert {tensor.shape for tensor in tensors} == {(1,)}
    with pytest.raises(ValueError, match="takes no files"):
        from_folder(OPEN, tmp_path, 0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"cannot be read, got .*a.png"):
        list(Pictures(FIXED["image"], files=(str(tmp_path / "a.png"),)).tensors())
