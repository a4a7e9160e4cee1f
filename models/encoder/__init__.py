"""Text encoders over packed batches: one implementation, what differs between families is configuration."""

from stepwell.models.encoder.config import EncoderConfig
from stepwell.models.encoder.loading import load_encoder
from stepwell.models.encoder.model import Encoder

__all__ = ["Encoder", "EncoderConfig", "load_encoder"]
