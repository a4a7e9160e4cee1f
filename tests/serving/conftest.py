"""A tiny nested decoder on disk, and real servers on real ports that host it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stepwell.models.config import DecoderConfig
from stepwell.models.decoder import Decoder
from stepwell.models.loader import save_checkpoint
from stepwell.serving.app import Server
from stepwell.serving.background import BackgroundServer
from stepwell.serving.config import ModelConfig, load_config
from stepwell.serving.engine.observer import EngineObserver
from stepwell.serving.hosted import HostedModel
from stepwell.serving.hosting import open_in_thread
from stepwell.serving.pb import inference_pb2 as pb
from stepwell.serving.pb import inference_pb2_grpc

NUM_LAYERS = 3
CONTEXT = 256
EOS = 256
VOCAB = 257
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}
LADDERS = {
    "format": 1,
    "quality_metric": {"name": "bits_per_byte", "better": "lower", "data": "none: random weights"},
    "default": "depth",
    "ladders": {
        "depth": {
            "kv": "exact",
            "levels": [{"layers": n, "quality": q, "metric": 2.0 / q} for n, q in ((1, 0.5), (2, 0.8), (3, 1.0))],
        },
        "width": {"kv": "approximate", "levels": [{"ffn": 16, "quality": 0.7}, {"ffn": 64}]},
    },
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, a tokenizer of bytes, and two ladders."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(1)
    decoder = Decoder(DecoderConfig.from_hf(CONFIG)).requires_grad_(False)
    for weight in decoder.parameters():
        weight.copy_(torch.randn_like(weight) * (0.5 if weight.dim() > 1 else 0.1) + (weight.dim() == 1))
    save_checkpoint(path, decoder, CONFIG)
    (path / "ladder.json").write_text(json.dumps(LADDERS))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and one for the end of the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


@pytest.fixture(scope="session")
def token_only(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a tokenizer."""
    path = tmp_path_factory.mktemp("models") / "token-only"
    path.mkdir()
    for name in ("config.json", "model.safetensors", "ladder.json"):
        (path / name).write_bytes((tiny / name).read_bytes())
    return path


@dataclass
class Gate:
    """Lets the engines of a server run a number of steps; open at first."""

    steps_allowed: float = float("inf")
    steps_run: int = 0
    fail: bool = False
    """The next step raises."""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def close(self) -> None:
        """No further step."""
        self.allow(0)

    def open(self) -> None:
        """As many as there are."""
        self.allow(float("inf"))

    def allow(self, steps: float) -> None:
        with self._changed:
            self.steps_allowed = steps
            self._changed.notify_all()

    def enter(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.steps_allowed > 0, 30)
            self.steps_allowed -= 1
            self.steps_run += 1
            if self.fail:
                self.fail = False
                raise RuntimeError("secret: the stack trace of a step that failed")


class GatedRunner:
    """Waits at the gate before every step of the real runner."""

    def __init__(self, runner: Any, gate: Gate) -> None:
        self.runner, self.gate = runner, gate

    def run(self, steps: Sequence[Any]) -> Mapping[str, Any]:
        self.gate.enter()
        return self.runner.run(steps)  # type: ignore[no-any-return]


@dataclass
class Running:
    """A server that runs, and ways to look at it."""

    background: BackgroundServer
    gate: Gate
    channel: grpc.Channel

    @property
    def server(self) -> Server:
        return self.background.server

    @property
    def address(self) -> str:
        return self.background.address

    @property
    def oip(self) -> inference_pb2_grpc.GRPCInferenceServiceStub:
        return inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def engine(self, model: str = "tiny") -> Any:
        return self.server.plane.models[model].hosted.host.engine

    def sample(self, name: str, **labels: str) -> float:
        """A metric of model ``tiny``."""
        registry = self.server.metrics.registry
        return registry.get_sample_value(f"stepwell_{name}", {"model": "tiny", **labels}) or 0.0

    def check_serves(self) -> None:
        """An ordinary request is answered."""
        response = self.oip.ModelInfer(infer("still there?", max_tokens=1), timeout=20)
        assert response.parameters["generated_tokens"].int64_param == 1


@contextlib.contextmanager
def run_server(tiny: Path, extra_models: Sequence[Any] = (), **settings: Any) -> Iterator[Running]:
    gate = Gate()

    def open_gated(config: ModelConfig, observer: EngineObserver) -> HostedModel:
        hosted = open_in_thread(config, observer)
        hosted.host.engine._runner = GatedRunner(hosted.host.engine._runner, gate)  # type: ignore[assignment]
        return hosted

    # Not the default policy, which refuses or degrades what these tests want served late or at full size.
    model = {"source": str(tiny), "policy": "max_quality", "kv_cache_tokens": 4096, "page_tokens": 16}
    model |= settings.pop("model", {})
    base = {"grpc_port": 0, "http_port": 0, "models": [model, *extra_models]}
    server = Server(load_config(None, {**base, **settings}), open_gated)
    with BackgroundServer(server) as background, grpc.insecure_channel(background.address) as channel:
        running = Running(background, gate, channel)
        yield running
        gate.open()
        eventually(lambda: not running.engine().has_work if server.plane.models["tiny"].hosted_or_none else True)
        if server.plane.models["tiny"].hosted_or_none is not None:
            running.engine().check_integrity()


@pytest.fixture(scope="module")
def shared(tiny: Path, token_only: Path) -> Iterator[Running]:
    """One server for the tests of a file that leave it as it is."""
    with run_server(tiny, [{"source": str(token_only), "kv_cache_tokens": 1024}]) as running:
        yield running


@pytest.fixture
def make_server(tiny: Path) -> Iterator[Callable[..., Running]]:
    """``make_server(**settings) -> Running``: a server of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(run_server(tiny, **settings))


def infer(prompt: str | bytes | Sequence[int], model: str = "tiny", **parameters: Any) -> pb.ModelInferRequest:
    """A request with raw contents."""
    request = pb.ModelInferRequest(model_name=model)
    if isinstance(prompt, (str, bytes)):
        data = prompt.encode() if isinstance(prompt, str) else prompt
        request.inputs.add(name="text", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    else:
        request.inputs.add(name="input_ids", datatype="INT64", shape=[len(prompt)])
        request.raw_input_contents.append(b"".join(int(i).to_bytes(8, "little", signed=True) for i in prompt))
    for key, value in parameters.items():
        set_parameter(request.parameters[key], value)
    return request


def set_parameter(parameter: pb.InferParameter, value: Any) -> None:
    """In the form tritonclient would use."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(parameter, kinds[type(value)], value)


def output(response: pb.ModelInferResponse, name: str) -> Any:
    """A tensor of a response: text, list of ints or list of floats."""
    names = [tensor.name for tensor in response.outputs]
    raw = response.raw_output_contents[names.index(name)]
    if name == "text":
        assert len(raw) == 4 + int.from_bytes(raw[:4], "little")
        return raw[4:].decode()
    return np.frombuffer(raw, "<i8" if name == "output_ids" else "<f4").tolist()


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.002)


def admitted(running: Running) -> int:
    """Requests the engine has taken in and not ended."""
    return running.engine().num_running + running.engine().num_waiting  # type: ignore[no-any-return]


def noticed_cancel(running: Running, count: int = 1) -> bool:
    """The engine has been told of so many cancellations, or has carried them out already."""
    return len(running.engine()._inbox._cancelled) == count or not running.engine().has_work


@pytest.fixture(scope="session")
def wire() -> Any:
    """The helpers above: ``wire.infer``, ``wire.output``, ``wire.set_parameter``, ``wire.eventually`` ..."""
    helpers = (infer, output, set_parameter, eventually, admitted, noticed_cancel, run_server)
    return SimpleNamespace(context=CONTEXT, vocab=VOCAB, **{helper.__name__: helper for helper in helpers})
