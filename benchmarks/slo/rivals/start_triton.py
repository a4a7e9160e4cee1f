"""Start Triton with the checkpoint: ``python start_triton.py --venv DIR --source MODEL --grpc-port 8001``.

``--venv`` is an environment with ``nvidia-pytriton`` (README.md), whose wheel has the server. This process becomes it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MODEL = """
backend: "python"
max_batch_size: {max_batch}
input [{{ name: "input_ids", data_type: TYPE_INT64, dims: [-1], allow_ragged_batch: true }}]
output [{{ name: "output_ids", data_type: TYPE_INT64, dims: [-1] }}]
model_transaction_policy {{ decoupled: true }}
instance_group [{{ kind: KIND_CPU, count: 1 }}]
parameters [
  {{ key: "source", value: {{ string_value: "{source}" }} }},
  {{ key: "batching", value: {{ string_value: "{batching}" }} }},
  {{ key: "threads", value: {{ string_value: "{threads}" }} }}
]
"""
DYNAMIC = "dynamic_batching { max_queue_delay_microseconds: 1000 }\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--batching", choices=("static", "continuous"), default="static")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    options = parser.parse_args()
    (packages,) = options.venv.resolve().glob("lib/python*/site-packages")
    server = packages / "pytriton" / "tritonserver"
    folder = Path(tempfile.mkdtemp(prefix="triton-"))
    repository, backends = folder / "models", folder / "backends"
    static = options.batching == "static"
    _write_model(repository, options, DYNAMIC if static else "", options.max_batch if static else 0)
    version = packages.parent.name.removeprefix("python")
    shutil.copytree(server / "backends", backends)
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    python = options.venv / "bin" / "python"
    library = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"])
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{library.decode().strip()}:{packages / 'nvidia_pytriton.libs'}",
        "RIVAL_PACKAGES": str(packages),  # the backend's interpreter heeds no PYTHONPATH
    }
    command = [
        str(server / "bin" / "tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={backends}", "--grpc-address=127.0.0.1", f"--grpc-port={options.grpc_port}",
        "--allow-http=false", "--allow-metrics=false", "--log-info=false",
    ]  # fmt: skip
    os.execve(command[0], command, environment)


def _write_model(repository: Path, options: argparse.Namespace, extra: str, max_batch: int) -> None:
    model = repository / "nested-lm"
    (model / "1").mkdir(parents=True)
    text = MODEL.format(
        source=options.source.resolve(), batching=options.batching, threads=options.threads, max_batch=max_batch
    )
    (model / "config.pbtxt").write_text(text + extra)
    shutil.copy(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
    shutil.copy(Path(__file__).with_name("hf.py"), model / "1")


if __name__ == "__main__":
    main()
