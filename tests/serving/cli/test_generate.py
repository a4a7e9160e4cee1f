from __future__ import annotations

import io

import pytest

MODEL, PROMPT = "nested-lm", "def __init__(self, "


def test_json_has_text_tokens_and_what_was_served(stepwell):
    ran = stepwell("generate", MODEL, PROMPT, "--max-tokens", 12, "--operating-point", "depth:2", "--json")
    assert ran.status == 0
    document = ran.document
    report = document["report"]
    assert document["prompt"] == PROMPT
    assert document["text"]
    assert len(document["token_ids"]) == report["generated_tokens"] <= 12
    assert report["operating_point"] == "depth:2"
    assert report["tokens_per_level"] == {"depth:2": report["generated_tokens"]}
    assert report["slo_met"] is True


def test_the_text_streams_to_standard_output_and_the_report_to_standard_error(stepwell):
    arguments = [MODEL, PROMPT, "--max-tokens", 12, "--operating-point", "min"]
    ran = stepwell("generate", *arguments)
    document = stepwell("generate", *arguments, "--json").document
    assert ran.status == 0
    assert ran.out == document["text"] + "\n"
    assert document["report"]["operating_point"] in ran.err
    assert f"{document['report']['generated_tokens']} tokens" in ran.err


def test_the_prompt_can_come_from_standard_input(stepwell, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    piped = stepwell("generate", MODEL, "-", "--max-tokens", 6, "--json").document
    assert piped["prompt"] == PROMPT
    assert piped["token_ids"] == stepwell("generate", MODEL, PROMPT, "--max-tokens", 6, "--json").document["token_ids"]


def test_sampling_options_reach_the_sampler(stepwell):
    def tokens(*options: object) -> list[int]:
        return stepwell("generate", MODEL, PROMPT, "--max-tokens", 16, "--json", *options).document["token_ids"]

    hot, greedy = ["--temperature", 1.5], tokens()
    assert tokens(*hot, "--seed", 1) == tokens(*hot, "--seed", 1) != tokens(*hot, "--seed", 2)
    assert tokens(*hot, "--top-k", 1) == greedy == tokens(*hot, "--top-p", 1e-6)


def test_stop_texts_end_the_answer_before_them(stepwell):
    whole = stepwell("generate", MODEL, PROMPT, "--max-tokens", 24, "--json").document["text"]
    stop = whole[len(whole) // 2 :][:3]
    cut = stepwell("generate", MODEL, PROMPT, "--max-tokens", 24, "--stop", "\0", "--stop", stop, "--json").document
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["report"]["finish_reason"] == "stop"


def test_a_missed_latency_is_told(stepwell):
    arguments = [MODEL, PROMPT, "--max-tokens", 32, "--ignore-eos", "--tpot-ms", 1e-4]
    assert stepwell("generate", *arguments, "--json").document["report"]["slo_met"] is False
    ran = stepwell("generate", *arguments)
    assert ran.status == 0
    assert ran.err.rstrip().endswith("; LATE")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--slo-ms", "-3", "slo_ms: must be > 0, got -3"),
        ("--slo-ms", "nan", "slo_ms: must be finite"),
        ("--ttft-ms", "0", "ttft_ms"),
        ("--min-quality", "1.5", "min_quality"),
        ("--operating-point", "depth:99", "operating_point"),
        ("--max-tokens", "100000", "max_tokens"),
        ("--temperature", "-1", "temperature"),
        ("--top-k", "-1", "top_k"),
        ("--top-p", "0", "top_p"),
        ("--stop", "", "stop"),
    ],
)
def test_nonsense_names_the_field(stepwell, option, value, named):
    assert named in stepwell("generate", MODEL, PROMPT, option, value).error


def test_bad_prompts_and_models_are_one_line(stepwell):
    assert "empty" in stepwell("generate", MODEL, "").error
    assert "context" in stepwell("generate", MODEL, "x = 1\n" * 2000).error
    assert "no-such-model" in stepwell("generate", "no-such-model", PROMPT).error
