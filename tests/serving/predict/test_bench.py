"""``stepwell bench`` on models that answer as a whole: images and texts over a real channel."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stepwell.serving.cli.main import main

FEW = ("--synthetic", "poisson:rate=100,prompt=60", "--requests", 12)
SLO = {"patient": {"deadline_ms": 60000}}


@pytest.fixture
def stepwell(capsys):
    """``stepwell("bench", ..)`` as from the command line: status, what it printed, the document, the error."""

    def run(*argv):
        try:
            status = main([str(item) for item in argv])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capsys.readouterr()
        document = json.loads(out) if out.startswith("{") else None
        return SimpleNamespace(status=status, out=out, err=err, document=document, error=err.splitlines()[-1])

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "slo.yaml"
    path.write_text(json.dumps({"slo_classes": SLO}))
    return path


@pytest.fixture(scope="module")
def hosting(wire, tiny, classifier, encoder):
    """Both kinds beside a decoder."""
    models = [{"source": str(path), "profile": "default"} for path in (classifier, encoder)]
    with wire.run_server(tiny, models) as running:
        yield running


@pytest.fixture
def pictures(tmp_path):
    """A folder with files of both formats, and one that is neither."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, kind in enumerate(("png", "jpeg", "png")):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{kind}")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_are_sent_in_the_size_the_model_wants(stepwell, hosting, tmp_path):
    """And deadlines follow from what the server predicts of an item."""
    plot = tmp_path / "t.png"
    ran = stepwell("bench", "--address", hosting.address, "--model", "classifier", *FEW, "--json", "--plot", plot)
    assert ran.status == 0, ran.err
    found = ran.document
    assert found["summary"]["num_sent"] == 12
    assert found["summary"]["outcomes"]["failed"] == 0
    assert 0.0 < found["summary"]["mean_kept_ratio"] <= 1.0
    assert found["latency"]["all"]["total_s"]["p50"] > 0
    assert found["latency"]["all"]["ttft_s"]["p50"] is None
    assert (found["target"]["pictures"]["height"], found["target"]["pictures"]["width"]) == (32, 32)
    assert found["target"]["outputs"] == ["logits"]
    assert found["target"]["unary"]
    assert found["target"]["slo_as"] == "numbers"
    assert set(found["summary"]["per_class"]) <= {"tight", "normal", "relaxed"}
    deadlines = [found["target"]["slo_classes"][name]["deadline_ms"] for name in ("tight", "normal", "relaxed")]
    assert deadlines == sorted(deadlines)
    assert any(note.startswith("deadlines: tight") for note in found["workload"]["notes"])
    assert plot.stat().st_size > 10_000


def test_the_table_says_what_was_kept_and_nothing_of_tokens(stepwell, hosting, config):
    ran = stepwell("bench", "--address", hosting.address, "--model", "classifier", *FEW, "--config", config,
                   "--slo-as", "none")  # fmt: skip
    assert ran.status == 0, ran.err
    assert "kept" in ran.out
    assert "whole answer" in ran.out
    assert "first token" not in ran.out


def test_files_of_a_folder_are_sent(stepwell, hosting, config, pictures):
    ran = stepwell("bench", "--address", hosting.address, "--model", "classifier", *FEW, "--config", config,
                   "--slo-as", "numbers", "--images", pictures, "--json")  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.document["summary"]["outcomes"]["met"] == 12
    assert len(ran.document["target"]["pictures"]["files"]) == 3


def test_texts_are_as_long_as_the_prompts_and_clipped(stepwell, hosting, tmp_path, config):
    records = tmp_path / "r.jsonl"
    ran = stepwell("bench", "--address", hosting.address, "--model", "encoder", *FEW, "--config", config,
                   "--slo-as", "numbers", "--json", "--records", records)  # fmt: skip
    assert ran.status == 0, ran.err
    assert ran.document["summary"]["outcomes"]["met"] == 12
    assert ran.document["target"]["outputs"] == ["embedding"]
    assert any("clipped to 48 tokens" in note for note in ran.document["workload"]["notes"])
    assert all(json.loads(line)["kept_ratio"] == 1.0 for line in records.read_text().splitlines())


def test_a_server_is_started_for_images_too(stepwell, classifier, tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text(json.dumps({"models": [{"source": str(classifier), "profile": "default"}]}))
    ran = stepwell("bench", "--config", path, "--model", "classifier", *FEW, "--load", 0.2, "--threads", 1, "--json")
    assert ran.status == 0, ran.err
    assert "load 1 = " in ran.err
    assert ran.document["summary"]["outcomes"]["failed"] == 0


def test_what_fails_says_why(stepwell, hosting, tmp_path, pictures):
    here = ("bench", "--address", hosting.address, *FEW)
    assert "no PNG or JPEG file" in stepwell(*here, "--model", "classifier", "--images", tmp_path).error
    assert "takes no files" in stepwell(*here, "--model", "encoder", "--images", pictures).error
    assert "leave --images out" in stepwell(*here, "--model", "tiny", "--images", pictures).error
    (pictures / "0.png").write_bytes(b"no image")
    broken = stepwell(*here, "--model", "classifier", "--images", pictures, "--json")
    assert broken.document["failures"]["INVALID_ARGUMENT"]["count"] > 0


@pytest.mark.parametrize(
    ("options", "part"),
    [(["--images", "no/such/folder"], "--images"), (["--image-size", "0x3"], "1 x 1"), (["--image-size", "x"], "x")],
)
def test_wrong_usage(stepwell, options, part):
    ran = stepwell("bench", *FEW, *options)
    assert ran.status == 2
    assert part in ran.err
