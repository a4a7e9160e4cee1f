"""Vision transformers: classifiers and segmenters of images, with token reduction."""

from stepwell.models.vit.loading import load_model, read_config

__all__ = ["load_model", "read_config"]
