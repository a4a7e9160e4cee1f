"""The checkpoint in Triton's Python backend, decoupled: a response a token. ``start_triton.py`` puts this in place."""

import json
import os
import sys

sys.path.insert(0, os.environ["RIVAL_PACKAGES"])

import hf
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Parameter ``batching`` of the configuration: ``static`` generates for the requests that Triton's dynamic batcher
    brings together; ``continuous`` takes them one by one and batches them itself."""

    def initialize(self, args):
        """Load the model."""
        given = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        self._static = given["batching"] == "static"
        kind = hf.Static if self._static else hf.Continuous
        self._runs = kind(given["source"], int(given["threads"]))

    def execute(self, requests):
        """Requests of one batch, answered as their tokens come."""
        jobs = [self._job(request) for request in requests]
        if self._static:
            self._runs.run(jobs)
        else:
            for job in jobs:
                self._runs.submit(job)

    def _job(self, request):
        ids = pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy().reshape(-1).tolist()
        sender = request.get_response_sender()
        shape = (1, 1) if self._static else (1,)

        def gone():
            if not sender.is_cancelled():
                return False
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return True

        def on_token(token, last):
            tensor = pb_utils.Tensor("output_ids", np.full(shape, token, np.int64))
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            sender.send(pb_utils.InferenceResponse([tensor]), flags=flags)

        return hf.Job(ids, json.loads(request.parameters())["max_tokens"], on_token, gone)
