"""The server's whole configuration: frozen, in one place, every field documented.

Read from YAML by :func:`load_config`; field names are the YAML keys. ``deploy/stepwell.yaml`` shows every one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwell.serving.config_reader import ConfigError, at_least, build, choice, ratio, read_yaml

MIB = 1 << 20
MAX_BYTES = 2**31 - 1
"""The largest message gRPC and protobuf know."""
DEFAULT_CLASS = "default"


@dataclass(frozen=True)
class SLOClass:
    """A named set of service-level objectives. A latency that is left out is not asked for."""

    deadline_ms: float | None = field(default=None, metadata=at_least(0.0, exclusive=True))
    """End-to-end latency in milliseconds, > 0."""
    ttft_ms: float | None = field(default=None, metadata=at_least(0.0, exclusive=True))
    """Time to first token in milliseconds, > 0."""
    tpot_ms: float | None = field(default=None, metadata=at_least(0.0, exclusive=True))
    """Time per output token after the first in milliseconds, > 0."""
    min_quality: float | None = field(default=None, metadata=ratio())
    """Quality floor relative to the full model, in (0, 1]."""
    priority: int = field(default=0, metadata=at_least(0))
    """0 = default, 1 = highest, larger = less urgent."""


def _default_classes() -> dict[str, SLOClass]:
    return {
        "tight": SLOClass(ttft_ms=100.0, tpot_ms=30.0, priority=1),
        "normal": SLOClass(ttft_ms=500.0, tpot_ms=100.0, priority=2),
        "relaxed": SLOClass(ttft_ms=5000.0, tpot_ms=500.0, priority=3),
        DEFAULT_CLASS: SLOClass(),
    }


@dataclass(frozen=True)
class ModelConfig:
    """One hosted model. In YAML a plain string is short for ``source`` alone."""

    source: str
    """Directory in the Hugging Face layout, name of a shipped model, or hub id."""
    name: str = ""
    """Name clients use. Empty = the last part of ``source``."""
    dtype: str = field(default="auto", metadata=choice("auto", "float32", "bfloat16"))
    """Type the weights run in; ``auto`` = as stored in the checkpoint, or float32 where this processor has no fast way
    with that. Keys and values are float32 for all."""
    packed_weights_ratio: float = field(default=3.0, metadata=at_least(0.0))
    """Memory for packed copies of weight slices, which multiply few rows faster, as a multiple of the weights' own;
    0 = none."""
    default_slo_class: str = DEFAULT_CLASS
    """Class of requests that state no latency of their own."""
    policy: str = "staircase"
    """Scheduling policy by name; ``fixed:LADDER:LEVEL`` pins everybody."""
    profile: str = field(default="auto", metadata=choice("auto", "default"))
    """What steps are predicted from: ``auto`` = the model's measured profile, measured at the first start on a machine
    (seconds); ``default`` = a rule of thumb. Both are corrected while serving."""
    kv_cache_mib: int = field(default=256, metadata=at_least(1))
    """Memory for cached keys and values, in MiB. Ignored if ``kv_cache_tokens`` is set."""
    kv_cache_tokens: int | None = field(default=None, metadata=at_least(1))
    """Size of the cache in tokens of the full model instead of MiB."""
    page_tokens: int = field(default=32, metadata=at_least(1))
    """Tokens per cache page."""
    max_step_tokens: int | None = field(default=None, metadata=at_least(1))
    """Tokens of one step over all its sequences. Longer prompts are prefilled in chunks; an image or a text to encode
    must fit. None = 512 for a model that generates, 4096 for others."""
    max_running: int = field(default=96, metadata=at_least(1))
    """Sequences that may hold cache pages at the same time."""
    max_waiting: int = field(default=1024, metadata=at_least(1))
    """Requests that may wait; further ones are refused at once (RESOURCE_EXHAUSTED)."""
    default_max_tokens: int = field(default=256, metadata=at_least(1))
    """Tokens to generate at most where the request does not say; less where the context ends before."""

    @property
    def generation_step_tokens(self) -> int:
        """Tokens of a step of a model that generates."""
        return self.max_step_tokens or 512

    @property
    def predict_step_tokens(self) -> int:
        """Tokens of a step of a model that answers as a whole."""
        return self.max_step_tokens or 4096

    @property
    def display_name(self) -> str:
        """``name``, or the last part of ``source``."""
        return self.name or Path(self.source).name or self.source


@dataclass(frozen=True)
class ServerConfig:
    """All of a server's settings."""

    models: tuple[ModelConfig, ...] = ()
    """Models to host. Names must differ."""
    host: str = "127.0.0.1"
    """Address to listen on. Loopback by default: nothing here authenticates."""
    grpc_port: int = field(default=8001, metadata=at_least(0, 65535))
    """Port of the gRPC services; 0 = any free port."""
    http_port: int = field(default=8002, metadata=at_least(0, 65535))
    """Port of metrics and health over HTTP; 0 = any free port."""
    slo_classes: Mapping[str, SLOClass] = field(default_factory=_default_classes)
    """Classes requests may name. Replaces the built-in ones, except that ``default`` always exists."""
    max_message_bytes: int = field(default=64 * MIB, metadata=at_least(1024, MAX_BYTES))
    """Largest request message in bytes, unpacked; larger ones are refused (RESOURCE_EXHAUSTED)."""
    max_buffered_bytes: int | None = field(default=None, metadata=at_least(1024, MAX_BYTES))
    """Largest message read at all, >= ``max_message_bytes``. One between the two is read, which takes several times its
    memory, to be refused with a full explanation, and a stream goes on; above, gRPC refuses it in words of its own and
    ends the call. None = 2**31 - 1 where ``host`` is a loopback address; elsewhere, where strangers could fill the
    memory, ``max_message_bytes``. Set it to that too where a proxy lets strangers in."""
    max_prompt_bytes: int = field(default=4 * MIB, metadata=at_least(1))
    """Largest prompt text in bytes; tokenising costs time and memory in proportion."""
    deadline_margin_ms: float = field(default=5.0, metadata=at_least(0.0))
    """Time kept back from a gRPC deadline for the way back to the client, in milliseconds ..."""
    deadline_margin_ratio: float = field(default=0.05, metadata=at_least(0.0, 0.5))
    """... but never more than this fraction of the time that remains."""
    grace_s: float = field(default=30.0, metadata=at_least(0.0))
    """On SIGTERM, seconds to finish what was admitted before the rest is answered UNAVAILABLE."""
    threads: int = field(default=0, metadata=at_least(0))
    """Threads of one model operation; 0 = what torch chooses."""
    engine_nice: int = field(default=5, metadata=at_least(0, 19))
    """By how much the threads that run the models are nicer than the rest of the server, as with ``nice``: answering
    calls, a little work each, goes before. 0 = as important, for a machine or container where others want the
    processor too. Linux only; elsewhere all are alike."""

    @property
    def receive_limit_bytes(self) -> int:
        """Largest message that is read: ``max_buffered_bytes``, or what its None means."""
        if self.max_buffered_bytes is not None:
            return self.max_buffered_bytes
        return MAX_BYTES if _is_loopback(self.host) else self.max_message_bytes

    def model(self, name: str) -> ModelConfig | None:
        """The model called ``name``, or None."""
        return next((model for model in self.models if model.display_name == name), None)


def _is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches ``host``; False for a name that could be any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> ServerConfig:
    """Read a configuration file and put ``overrides`` (same keys; None = not given) over it.

    Raises ConfigError (a ValueError) naming the field, the value and the remedy.
    """
    document = dict(read_yaml(Path(path))) if path is not None else {}
    document.update({key: value for key, value in (overrides or {}).items() if value is not None})
    if isinstance(models := document.get("models"), (list, tuple)):
        document["models"] = [{"source": entry} if isinstance(entry, str) else entry for entry in models]
    config = build(ServerConfig, document, "")
    if DEFAULT_CLASS not in config.slo_classes:
        config = build(ServerConfig, {**document, "slo_classes": {**document["slo_classes"], DEFAULT_CLASS: {}}}, "")
    _check_references(config)
    _check_limits(config)
    return config


def _check_limits(config: ServerConfig) -> None:
    if config.receive_limit_bytes < config.max_message_bytes:
        raise ConfigError(
            f"max_buffered_bytes: must be at least max_message_bytes ({config.max_message_bytes}), "
            f"got {config.max_buffered_bytes}; raise it, lower max_message_bytes, or leave it out"
        )


def _check_references(config: ServerConfig) -> None:
    names: dict[str, int] = {}
    for i, model in enumerate(config.models):
        where = f"models[{i}]"
        if model.default_slo_class not in config.slo_classes:
            raise ConfigError(
                f"{where}.default_slo_class: no such class, got {model.default_slo_class!r}; "
                f"use one of {sorted(config.slo_classes)} or define it under slo_classes"
            )
        if model.display_name in names:
            raise ConfigError(
                f"{where}.name: {model.display_name!r} is already models[{names[model.display_name]}]; "
                "give each model its own name"
            )
        names[model.display_name] = i
