"""Serve models over gRPC until SIGTERM or SIGINT; metrics and health over HTTP.

A MODEL is a directory in the Hugging Face layout (config.json, model.safetensors, tokenizer.json, and optionally
ladder.json), a hub id, or the name of a shipped model. Options given here replace those of the configuration file.
On SIGTERM what was admitted is finished within the configured grace time; a second signal ends the process at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from stepwell.serving.cli.output import UsageError, add_json_option, print_json, say

if TYPE_CHECKING:
    from stepwell.serving.app import Server

HELP = "serve models over gRPC"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell serve``."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="what to serve, instead of the models in --config")
    parser.add_argument("--config", metavar="F", help="YAML configuration")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--grpc-port", type=int, metavar="N", help="port of gRPC (default 8001; 0 = any free one)")
    parser.add_argument(
        "--http-port", type=int, metavar="N", help="port of /metrics, /healthz and /readyz (default 8002; 0 = any)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of one model operation (default 0: torch's)")
    parser.add_argument("--policy", metavar="NAME", help="scheduling policy of every model (default staircase)")
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Serve. Returns when a signal ended it. Raises ValueError, OSError or UsageError if it cannot start."""
    from stepwell.serving.app import Server
    from stepwell.serving.config import load_config
    from stepwell.serving.event_loop import new_event_loop

    names = ("host", "grpc_port", "http_port", "threads")
    overrides = {name: getattr(args, name) for name in names} | {"models": args.models or None}
    config = load_config(args.config, overrides)
    if args.policy:
        config = replace(config, models=tuple(replace(model, policy=args.policy) for model in config.models))
    if not config.models:
        raise UsageError("models: none to serve; name one (stepwell serve nested-lm) or list them in --config")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    say(f"loading {', '.join(model.display_name for model in config.models)} ...")
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(Server(config).run(partial(_ready, announce_json if args.json else announce)))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _ready(tell: Callable[[Server], None], server: Server) -> None:
    # What was made until now stays: a full collection need not look at it again, while requests wait.
    gc.collect()
    gc.freeze()
    tell(server)


def listening(server: Server) -> dict[str, object]:
    """What a running server offers, and where."""
    host = server.config.host
    return {
        "grpc": f"{host}:{server.grpc_port}",
        "http": f"http://{host}:{server.http_port}",
        "models": {
            name: {
                "task": served.hosted.task,
                "operating_points": len(served.hosted.points),
                "context_length": served.hosted.context_length,
            }
            for name, served in server.plane.models.items()
        },
    }


def announce_json(server: Server) -> None:
    """Say what a running server offers, as one document."""
    print_json(listening(server))


def announce(server: Server) -> None:
    """Say what a running server offers, for people."""
    found = listening(server)
    print(f"gRPC on {found['grpc']}, metrics and health on {found['http']} (/metrics, /healthz, /readyz)")
    for name, served in server.plane.models.items():
        hosted = served.hosted
        ladders = ", ".join(f"{ladder.name} ({len(ladder.levels)})" for ladder in hosted.ladders.ladders.values())
        wanted = hosted.image_input
        size = f"images of {wanted.height} x {wanted.width}" if wanted else f"context {hosted.context_length} tokens"
        print(f"model {name} ({hosted.task}): {size}; ladders (levels): {ladders}", flush=True)
