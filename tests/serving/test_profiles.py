"""Profiles on disk: found again, measured anew when they are not of this model or do not read."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from stepwell.models.cache import PagedKVCache
from stepwell.models.loader import LoadedModel
from stepwell.models.unit_profile import AttendCosts, UnitProfile
from stepwell.schedulers.request import OperatingPoint
from stepwell.serving import profiles
from stepwell.serving.config import ModelConfig
from stepwell.serving.decoder_hosting import prepare
from stepwell.serving.profiles import (
    Profile,
    ProfileKey,
    load_or_measure,
    load_profile,
    model_hash,
    profile_folder,
    profile_key,
    save_profile,
)
from stepwell.serving.step_costs import StepResidual

UNITS = UnitProfile(
    (1, 2),
    (1e-6, 2e-6),
    {2: (3.0, 4.0)},
    {8: (0.1, 0.2)},
    {2: AttendCosts(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)},
    (7.0, 8.0),
    9,
)
KEY = ProfileKey("abc", "cpu x", "float32", 2, 3.0, "2.9")
PROFILE = Profile(KEY, UNITS, StepResidual(1.1, 2.0, 3.0, 4.0, 5.0), 0.5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "profiles"
    monkeypatch.setenv("STEPWELL_PROFILE_DIR", str(path))
    return path


def test_a_profile_reads_as_it_was_written(folder: Path) -> None:
    assert load_profile(KEY) is None
    path = save_profile(PROFILE)
    assert load_profile(KEY) == PROFILE
    assert list(folder.iterdir()) == [path], "nothing but the file is left"


@pytest.mark.parametrize(
    "other",
    [
        {"model_hash": "abd"},
        {"device": "cpu y"},
        {"dtype": "bfloat16"},
        {"threads": 1},
        {"packed_weights_ratio": 0.0},
        {"torch_version": "2.10"},
    ],
)
def test_another_key_is_another_profile(other: dict[str, object]) -> None:
    save_profile(PROFILE)
    assert load_profile(replace(KEY, **other)) is None  # type: ignore[arg-type]


def damaged(data: bytes) -> dict[str, bytes]:
    document = msgpack.unpackb(data)
    flipped = bytearray(data)
    flipped[-20] ^= 1
    return {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "one bit": bytes(flipped),
        "not msgpack": b"profile: yes",
        "a number": msgpack.packb(3),
        "newer": msgpack.packb({**document, "format": 99}),
        "other fields": msgpack.packb(
            {"format": 1, "check": profiles._check(msgpack.packb({"key": {}})), "content": msgpack.packb({"key": {}})}
        ),
    }


@pytest.mark.parametrize("how", ["empty", "cut", "one bit", "not msgpack", "a number", "newer", "other fields"])
def test_a_file_that_does_not_read_is_told_and_ignored(how: str, caplog: pytest.LogCaptureFixture) -> None:
    path = save_profile(PROFILE)
    assert path is not None
    path.write_bytes(damaged(path.read_bytes())[how])
    assert load_profile(KEY) is None
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert str(path) in warning.getMessage()


def test_a_file_under_the_wrong_name_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    path, other = save_profile(PROFILE), replace(KEY, threads=1)
    assert path is not None
    shutil.copy(path, path.with_name(other.file_name))
    assert load_profile(other) is None
    assert "another model or machine" in caplog.text


def test_a_folder_that_takes_no_files_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("not a folder")
    assert save_profile(PROFILE) is None
    assert "STEPWELL_PROFILE_DIR" in caplog.text


def test_where_profiles_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STEPWELL_PROFILE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert profile_folder() == tmp_path / "stepwell" / "profiles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if sys.platform != "win32":
        assert profile_folder() == tmp_path / "home" / ".cache" / "stepwell" / "profiles"


def test_the_hash_is_of_the_content(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    os.utime(copy / "model.safetensors", (1, 1))
    hashes = [model_hash(tiny)]
    assert model_hash(copy) == hashes[0]
    for name in ("config.json", "ladder.json", "model.safetensors"):
        data = bytearray((copy / name).read_bytes())
        data[-2] ^= 1
        (copy / name).write_bytes(data)
        hashes.append(model_hash(copy))
    (copy / "ladder.json").unlink()
    assert len({*hashes, model_hash(copy)}) == 5


Prepared = tuple[LoadedModel, PagedKVCache, dict[str, OperatingPoint]]


@pytest.fixture(scope="module")
def prepared(tiny: Path) -> Prepared:
    return prepare(ModelConfig(str(tiny), kv_cache_tokens=1024, page_tokens=16))


def test_a_model_is_measured_once(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loaded, cache, points = prepared
    measured = load_or_measure(loaded, points, cache, 3.0)
    assert "no profile" in caplog.text
    assert "measured in" in caplog.text
    assert cache.free_pages == cache.total_pages
    assert set(measured.units.ffn_s) == {16, 48, 64}
    assert loaded.decoder.linear.packed_bytes == 0, "what was packed to be measured leaves its room to what is served"
    monkeypatch.setattr(profiles, "measure_profile", None)
    caplog.clear()
    assert load_or_measure(loaded, points, cache, 3.0) == measured
    assert not caplog.text


def test_predictions_grow_with_the_level(prepared: Prepared) -> None:
    loaded, cache, points = prepared
    model = load_or_measure(loaded, points, cache, 3.0).cost_model(loaded.ladders)
    assert set(model.ladders) == {"depth", "width"}
    for name, costs in model.ladders.items():
        assert costs.points == tuple(f"{name}:{k}" for k in range(len(costs.split)))
        assert all(curve[1] >= 0.0 for curve in costs.split)
    assert profile_key(loaded.path, loaded.decoder.dtype, 3.0) != profile_key(loaded.path, loaded.decoder.dtype, 0.0)
