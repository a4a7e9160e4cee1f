"""Image files from clients: decoded by Pillow, within limits, and made what the model wants."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from stepwell.serving.engine.job import Array
from stepwell.serving.errors import RequestError, invalid

if TYPE_CHECKING:
    from stepwell.models.image_input import ImageInput

FORMATS = ("PNG", "JPEG")
MAX_FILE_BYTES = 16 << 20
MAX_PIXELS = 1 << 25
"""A small file may claim a huge picture: it is refused before anything is decoded."""


def decode_image(name: str, data: bytes, wanted: ImageInput) -> Array:
    """A PNG or JPEG file -> pixels, float32 [3, H, W], resized (bilinear, without keeping the aspect) and normalised.

    ``name`` is the field's, for messages. Raises RequestError (INVALID_ARGUMENT). Takes milliseconds: not for the event
    loop.
    """
    from PIL import Image

    if not data:
        raise invalid(name, "the file is empty", len(data), "send the bytes of a PNG or JPEG file")
    if len(data) > MAX_FILE_BYTES:
        raise invalid(name, f"at most {MAX_FILE_BYTES} bytes", len(data), "send a smaller file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height}"
                    raise invalid(name, f"at most {MAX_PIXELS} pixels", size, "send a smaller image")
                # What is much larger than wanted is decoded at a fraction of its size, where the format can.
                image.draft("RGB", (2 * wanted.width, 2 * wanted.height))
                pixels = image.convert("RGB").resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
    except RequestError:
        raise
    except Exception as error:  # Pillow raises many kinds for what is broken
        problem = f"not a PNG or JPEG file that can be decoded ({type(error).__name__})"
        raise invalid(name, problem, data[:8], "send the bytes of a PNG or JPEG file") from error
    return normalised(np.asarray(pixels), wanted)


def normalised(pixels_HW3: Array, wanted: ImageInput) -> Array:
    """Bytes of red, green and blue, uint8 [H, W, 3] -> float32 [3, H, W]."""
    mean, std = np.array(wanted.mean, np.float32), np.array(wanted.std, np.float32)
    values: Array = (pixels_HW3.astype(np.float32) / np.float32(255.0) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))
