"""Opening a model for serving, whatever its kind."""

from __future__ import annotations

from stepwell.models.config import DecoderConfig
from stepwell.models.loader import read_files
from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import open_decoder_engine
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.engine.thread_host import ThreadHost
from stepwell.serving.hosted import HostedModel, OpenedEngine
from stepwell.serving.predictor_hosting import open_predictor_engine


def open_in_thread(config: ModelConfig, observer: EngineObserver) -> HostedModel:
    """Load a model whose engine runs in a thread. Raises ValueError naming the file or field and the remedy."""
    opened = open_engine(config, observer)
    host = ThreadHost(opened.engine, opened.cost_model, name=config.display_name)
    return HostedModel.of(config, opened.files, host)


def open_engine(config: ModelConfig, observer: EngineObserver) -> OpenedEngine:
    """Load a model and build its engine. Raises ValueError naming the file or field and the remedy."""
    files = read_files(config.source)
    if isinstance(files.config, DecoderConfig):
        return open_decoder_engine(config, files, observer)
    return open_predictor_engine(config, files, observer)
