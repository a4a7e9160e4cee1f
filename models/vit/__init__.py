"""Vision transformers: classifiers and segmenters of images, with token reduction."""

from stepwell.models.vit.loading import load_vit as load_model
from stepwell.models.vit.loading import read_vit_config as read_config

__all__ = ["load_model", "read_config"]
