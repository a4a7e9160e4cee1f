"""Images under load: whether they are answered in time, and how well: ``python benchmarks/vision_slo.py``.

A real server (engine in a process of its own) with the shipped ``routed-vit``; images arrive at random (Poisson), open
loop, each with a deadline that a batch of 16 at the full budget takes three times over. Load 1 is what the model
answers per second at its full budget in batches of 16. The same arrivals for every policy.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from common import arguments, report

from stepwell.models.loader import read_files
from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.config import ModelConfig, load_config
from stepwell.serving.engine_process.host import open_in_process
from stepwell.serving.grpc.calls import Calls
from stepwell.serving.grpc.replies import reply_of
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.point_costs import columns_of
from stepwell.serving.predictor_hosting import predictor_cost_model, prepare_predictor

MODEL = "routed-vit"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
TOGETHER = 16
DEADLINE_FACTOR = 3.0


@dataclass(frozen=True)
class Run:
    """What became of the images of one run."""

    met_share: float
    quality: float
    """Mean over those that were answered."""
    tokens_share: float
    """Kept, of the tokens of those that were answered."""
    points: Counter[str]


def capacity() -> tuple[float, float]:
    """Images per second at full budget, and milliseconds of a batch of 16, as the server's profile predicts."""
    files, config = read_files(MODEL), ModelConfig(MODEL)
    predictor = prepare_predictor(config, files)
    costs = predictor_cost_model(config, predictor)
    ladder = files.ladders.ladders[files.ladders.default]
    best = predictor.points[ladder.point_name(len(ladder.levels) - 1)]
    batch_ms = columns_of(files).costs(costs, best)["items_together_ms"]
    return TOGETHER / batch_ms * 1e3, batch_ms


def request(image: np.ndarray, slo_ms: float) -> bytes:
    """One image, serialised."""
    message = pb.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="pixel_values", datatype="FP32", shape=image.shape)
    message.raw_input_contents.append(image.tobytes())
    message.parameters["slo_ms"].double_param = slo_ms
    return message.SerializeToString()


def run(policy: str, rate: float, slo_ms: float, seconds: float, messages: Sequence[bytes]) -> Run:
    """One policy at one load."""
    settings = {"source": MODEL, "policy": policy}
    config = load_config(None, {"grpc_port": 0, "http_port": 0, "threads": 1, "models": [settings]})
    arrivals, draw = [0.0], random.Random(1)
    while arrivals[-1] < seconds:
        arrivals.append(arrivals[-1] + draw.expovariate(rate))
    server = Server(config, partial(open_in_process, threads=1))
    with BackgroundServer(server) as background, closing(Calls(background.address, METHOD, 10.0)) as calls:
        calls.connect(10.0)
        for message in messages[:8]:
            calls.send(message)
        calls.finish()
        start = time.monotonic()
        exchanges = []
        for number, at_s in enumerate(arrivals):
            calls.wait(start + at_s)
            exchanges.append(calls.send(messages[number % len(messages)]))
        calls.finish()
        replies = [reply_of(exchange) for exchange in exchanges]
    answers = [pb.ModelInferResponse.FromString(r.messages[0][1]).parameters for r in replies if r.status == "OK"]
    tokens = sum(p["tokens"].int64_param for p in answers)
    return Run(
        sum(p["slo_met"].bool_param for p in answers) / len(replies),
        sum(p["quality"].double_param for p in answers) / max(len(answers), 1),
        sum(p["tokens_kept"].int64_param for p in answers) / max(tokens, 1),
        Counter(p["operating_point"].string_param for p in answers),
    )


def main() -> None:
    """The table."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--loads", default="0.3,1,1.5,2,3")
    parser.add_argument("--policies", default="staircase,max_quality,max_throughput,slack_fit")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rate, batch_ms = capacity()
    slo_ms, rng = DEADLINE_FACTOR * batch_ms, np.random.default_rng(0)
    messages = [request(rng.normal(size=(3, 64, 64)).astype(np.float32), slo_ms) for _ in range(64)]
    rows = []
    for load in map(float, args.loads.split(",")):
        cells = []
        for policy in args.policies.split(","):
            found = run(policy, load * rate, slo_ms, args.seconds, messages)
            cells.append(f"{found.met_share:.1%} / {found.quality:.3f} / {found.tokens_share:.0%}")
        rows.append([f"{load:g}", f"{load * rate:.0f}", *cells])
    header = ["load", "images/s", *(f"{policy}" for policy in args.policies.split(","))]
    notes = f"Met in {slo_ms:.0f} ms / mean quality / tokens kept. Load 1 = {rate:.0f} images a second."
    report("vision_slo", "Images under load, routed-vit over gRPC", header, rows, notes, args.save)


if __name__ == "__main__":
    main()
