"""The engine in a process of its own: images, token types and answers cross as they are."""

from __future__ import annotations

import numpy as np

from stepwell.serving import Client
from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.config import load_config
from stepwell.serving.engine_process.host import ProcessHost


def test_answers_are_those_of_an_engine_in_a_thread(hosting_classifier, hosting_encoder, classifier, encoder) -> None:
    models = [{"source": str(path), "profile": "default"} for path in (classifier, encoder)]
    server = Server(load_config(None, {"grpc_port": 0, "http_port": 0, "models": models, "threads": 1}))
    pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    image = {"pixel_values": pixels, "operating_point": "merge:1"}
    with BackgroundServer(server) as background, Client(background.address) as there:
        assert isinstance(server.plane.models["encoder"].hosted.host, ProcessHost)
        for model, given, here in (
            ("classifier", image, hosting_classifier),
            ("encoder", {"texts": ["abc", "d"]}, hosting_encoder),
            ("encoder", {"token_ids": [[1, 7, 2], [5]], "token_type_ids": [[0, 1, 1], [0]]}, hosting_encoder),
        ):
            answer = there.predict(model, **given)
            with Client(here.address) as client:
                expected = client.predict(model, **given)
            assert answer.outputs.keys() == expected.outputs.keys()
            for name, values in answer.outputs.items():
                np.testing.assert_allclose(values, expected.outputs[name], atol=1e-5)
            assert answer.report.tokens_kept == expected.report.tokens_kept
