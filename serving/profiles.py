"""Measured costs of models, kept on disk: a model is measured once on a machine, not at every start.

One msgpack file a profile, in ``$STEPWELL_PROFILE_DIR``, else ``$XDG_CACHE_HOME/stepwell/profiles``, else
``~/.cache/stepwell/profiles``. A file that does not read is measured again and replaced.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgpack
import torch

from stepwell.models.cache import PagedKVCache
from stepwell.models.decoder import Decoder
from stepwell.models.kernels.linear import SliceLinear
from stepwell.models.ladder import LadderSet
from stepwell.models.loader import LoadedModel
from stepwell.models.profiler import Progress, measure_units, no_progress
from stepwell.models.unit_profile import AttendCosts, UnitProfile
from stepwell.schedulers.cost_model import StepCostModel
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving.calibration import TrialRunner, fit_residual
from stepwell.serving.predictor_costs import PointCurves
from stepwell.serving.step_costs import StepResidual, cost_model

FORMAT = 2
FOLDER_VARIABLE = "STEPWELL_PROFILE_DIR"
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 64
"""Blocks of each weight file that its hash covers, beside its header and its size."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileKey:
    """What a profile holds for. Anything else in the configuration changes predictions little or not at all."""

    model_hash: str
    device: str
    dtype: str
    threads: int
    packed_weights_ratio: float
    torch_version: str = field(default_factory=lambda: torch.__version__)

    @property
    def file_name(self) -> str:
        digest = hashlib.blake2b(repr(asdict(self)).encode(), digest_size=10).hexdigest()
        return f"{digest}.msgpack"


@dataclass(frozen=True)
class Profile:
    """The costs of one model on one machine."""

    key: ProfileKey
    units: UnitProfile
    residual: StepResidual
    measured_in_s: float

    def cost_model(self, ladders: LadderSet) -> StepCostModel:
        """A predictor of the model's steps that has observed none yet."""
        return cost_model(self.units, self.residual, ladders)


@dataclass(frozen=True)
class PredictorProfile:
    """The same of a model that answers as a whole."""

    key: ProfileKey
    curves: PointCurves
    measured_in_s: float

    def cost_model(self, ladders: LadderSet) -> StepCostModel:
        """A predictor of the model's steps that has observed none yet."""
        return self.curves.cost_model(ladders)


AnyProfile: TypeAlias = Profile | PredictorProfile


def profile_folder() -> Path:
    """Where profiles are kept."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "stepwell" / "profiles"


def profile_key(directory: Path, dtype: torch.dtype, packed_weights_ratio: float) -> ProfileKey:
    """The key of the model in ``directory`` as it would run in this process now, in ``dtype``."""
    name = str(dtype).removeprefix("torch.")
    return ProfileKey(model_hash(directory), _device(), name, torch.get_num_threads(), packed_weights_ratio)


def model_hash(directory: Path) -> str:
    """Of configuration, ladders and weights; of large weight files a sample, since costs follow from their shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (directory / "config.json", directory / "ladder.json", *sorted(directory.glob("*.safetensors"))):
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            _hash_file(path, digest)
    return digest.hexdigest()


def load_profile(key: ProfileKey) -> AnyProfile | None:
    """The stored profile; None if there is none, or none that reads (then a warning says so)."""
    path = profile_folder() / key.file_name
    try:
        profile = _decoded(path.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is in the file, the server must start
        _log.warning("profile %s does not read (%s: %s): ignored", path, type(error).__name__, error)
        return None
    if profile.key != key:
        _log.warning("profile %s is of another model or machine: ignored", path)
        return None
    return profile


def save_profile(profile: AnyProfile) -> Path | None:
    """Write the profile, whole or not at all; None, with a warning, if the folder does not take it."""
    path = profile_folder() / profile.key.file_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            whole = Path(folder) / path.name
            whole.write_bytes(_encoded(profile))
            os.replace(whole, path)
    except OSError as error:
        _log.warning("profile not kept (%s); set %s to a folder that can be written", error, FOLDER_VARIABLE)
        return None
    return path


def measure_profile(
    loaded: LoadedModel,
    points: Mapping[str, OperatingPoint],
    cache: PagedKVCache,
    key: ProfileKey,
    progress: Progress = no_progress,
) -> Profile:
    """Measure a model that is prepared for serving; its packed weights are dropped. ``cache`` lends its free pages:
    nobody else may use it."""
    start = time.monotonic()
    decoder, ladders = loaded.decoder, loaded.ladders

    def half(offset: int) -> Progress:
        return lambda done, total: progress(offset * total + done, 2 * total)

    units = measure_units(decoder, ladders, cache, half(0))
    _forget_packed(decoder)
    levels = sorted((p for p in points.values() if p.ladder == ladders.default), key=lambda p: p.level)
    residual = fit_residual(TrialRunner(decoder, cache, ladders), units, ladders, levels, half(1))
    _forget_packed(decoder)
    return Profile(key, units, residual, time.monotonic() - start)


def load_or_measure(
    loaded: LoadedModel, points: Mapping[str, OperatingPoint], cache: PagedKVCache, packed_weights_ratio: float
) -> Profile:
    """The stored profile of a model that is prepared for serving; measured and stored if there is none."""
    key = profile_key(loaded.path, loaded.decoder.dtype, packed_weights_ratio)
    stored = load_profile(key)
    if isinstance(stored, Profile):
        return stored
    _log.info("%s: no profile for this machine with %d threads; measuring", loaded.name, key.threads)
    profile = measure_profile(loaded, points, cache, key)
    path = save_profile(profile)
    _log.info("%s: measured in %.1f s, kept as %s", loaded.name, profile.measured_in_s, path)
    return profile


def _forget_packed(decoder: Decoder) -> None:
    """What was packed to be measured takes the room of what will be served."""
    decoder.linear = SliceLinear(decoder.linear.budget_bytes)


def _hash_file(path: Path, digest: Any) -> None:
    size = path.stat().st_size
    step = max(size // _SAMPLES, _SAMPLE_BYTES)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else size
        file.seek(0)
        digest.update(file.read(min(header + 8, size)))
        for offset in range(0, size, step):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES))


def _device() -> str:
    """The processor: folders of users may be shared by several machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"cpu {name or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _encoded(profile: AnyProfile) -> bytes:
    content = msgpack.packb(asdict(profile))
    document = {"format": FORMAT, "check": _check(content), "content": content}
    return bytes(msgpack.packb(document))


def _check(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _decoded(data: bytes) -> AnyProfile:
    """Raises something if the bytes are not a profile of this format."""
    document = msgpack.unpackb(data)
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, expected {FORMAT}")
    if document["check"] != _check(document["content"]):
        raise ValueError("check sum differs")
    content = msgpack.unpackb(document["content"], strict_map_key=False, use_list=False)
    if "curves" in content:
        curves = PointCurves(**content["curves"])
        return PredictorProfile(ProfileKey(**content["key"]), curves, content["measured_in_s"])
    units = content["units"] | {"attend": {g: AttendCosts(**each) for g, each in content["units"]["attend"].items()}}
    return Profile(
        ProfileKey(**content["key"]),
        UnitProfile(**units),
        StepResidual(**content["residual"]),
        content["measured_in_s"],
    )
