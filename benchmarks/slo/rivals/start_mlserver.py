"""Start MLServer with the checkpoint: ``python start_mlserver.py --venv DIR --source MODEL --grpc-port 8001``.

``--venv`` is an environment with ``mlserver`` (README.md). This process becomes it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--batching", choices=("static", "continuous"), default="static")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    settings = {
        "host": "127.0.0.1", "grpc_port": options.grpc_port, "http_port": _free_port(), "metrics_endpoint": None,
        "parallel_workers": 0, "grpc_max_message_length": -1, "debug": False,
    }  # fmt: skip
    model = {
        "name": "nested-lm",
        "implementation": "mlserver_runtime.NestedLM",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "output_ids", "datatype": "INT64", "shape": [-1]}],
        "parameters": {
            "uri": str(options.source.resolve()),
            "extra": {"batching": options.batching, "threads": options.threads},
        },
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.chdir(folder)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.resolve())}
    server = str(options.venv.resolve() / "bin" / "mlserver")
    os.execve(server, [server, "start", str(folder)], environment)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
