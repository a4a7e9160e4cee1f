"""The configuration: the example file, defaults, and an error with the field's path for whatever is wrong."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwell.serving.config import ModelConfig, ServerConfig, SLOClass, load_config
from stepwell.serving.config_reader import ConfigError

EXAMPLE = Path(__file__).parents[2] / "deploy" / "stepwell.yaml"


def test_the_example_file_says_the_defaults_and_leaves_nothing_out() -> None:
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert load_config(EXAMPLE) == ServerConfig(models=(ModelConfig("nested-lm", "nested-lm"),))
    assert set(document) == {field.name for field in dataclasses.fields(ServerConfig)}
    assert set(document["models"][0]) == {field.name for field in dataclasses.fields(ModelConfig)}


def test_the_example_file_explains_what_a_class_may_hold() -> None:
    comments = " ".join(line for line in EXAMPLE.read_text().splitlines() if line.lstrip().startswith("#"))
    assert [field.name for field in dataclasses.fields(SLOClass) if field.name not in comments] == []


@pytest.mark.parametrize("cls", [ServerConfig, ModelConfig, SLOClass])
def test_every_field_has_a_docstring_under_it(cls: type) -> None:
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{cls.__name__}.{ast.unparse(statement.target)}"


def test_without_a_file_all_is_default_and_overrides_win() -> None:
    assert load_config() == ServerConfig()
    config = load_config(None, {"models": ["a/b/tiny"], "grpc_port": 0, "host": None})
    assert (config.models[0].display_name, config.grpc_port, config.host) == ("tiny", 0, "127.0.0.1")
    assert config.model("tiny") is config.models[0]
    assert config.model("other") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost"])
def test_messages_above_the_bound_are_read_where_only_this_machine_reaches_the_server(host: str) -> None:
    assert load_config(None, {"host": host, "max_message_bytes": 4096}).receive_limit_bytes == 2**31 - 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "fe80::1", "example.org", "localhost.example.org", ""])
def test_messages_above_the_bound_are_not_read_where_strangers_reach_the_server(host: str) -> None:
    config = load_config(None, {"host": host, "max_message_bytes": 4096})
    assert config.receive_limit_bytes == 4096
    assert load_config(None, {"host": host, "max_buffered_bytes": 2**30}).receive_limit_bytes == 2**30, "unless told to"


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"grpc_port": 1, "http_port": 2})
    config = load_config(path, {"grpc_port": 3})
    assert (config.grpc_port, config.http_port) == (3, 2)


def test_given_classes_replace_the_built_in_ones_but_default_exists() -> None:
    config = load_config(None, {"slo_classes": {"gold": {"deadline_ms": 5}}})
    assert dict(config.slo_classes) == {"gold": SLOClass(deadline_ms=5.0), "default": SLOClass()}


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("")
    assert load_config(path) == ServerConfig()


MODEL = {"source": "x"}
BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"grpcport": 1}, ["grpcport: unknown key", "'grpc_port'", "http_port"]),
    ({"models": [{"source": "x", "dtpye": "float32"}]}, ["models[0].dtpye: unknown key", "'dtype'"]),
    ({"models": [{}]}, ["models[0].source: missing"]),
    ({"models": "x"}, ["models: expected a list", "'x'"]),
    ({"models": [3]}, ["models[0]: expected", "3"]),
    ({"models": [MODEL, {**MODEL, "max_running": 0}]}, ["models[1].max_running: expected a number in [1", "0"]),
    ({"models": [{**MODEL, "max_running": 2.5}]}, ["models[0].max_running: expected a whole number", "2.5"]),
    ({"models": [{**MODEL, "max_running": True}]}, ["models[0].max_running: expected a whole number", "True"]),
    ({"models": [{**MODEL, "dtype": "int8"}]}, ["models[0].dtype: expected one of", "bfloat16", "'int8'"]),
    (
        {"models": [{**MODEL, "default_slo_class": "gold"}]},
        ["models[0].default_slo_class: no such class", "'gold'", "tight"],
    ),
    ({"models": [MODEL, MODEL]}, ["models[1].name: 'x' is already models[0]"]),
    ({"slo_classes": {"gold": {"ttft_ms": -1}}}, ["slo_classes.gold.ttft_ms: expected a number in (0", "-1"]),
    ({"slo_classes": {"gold": {"ttft_ms": float("nan")}}}, ["slo_classes.gold.ttft_ms", "nan"]),
    (
        {"slo_classes": {"gold": {"min_quality": 1.5}}},
        ["slo_classes.gold.min_quality: expected a number in (0.0, 1.0]"],
    ),
    ({"slo_classes": {"gold": {"latency": 1}}}, ["slo_classes.gold.latency: unknown key", "deadline_ms"]),
    ({"slo_classes": [1]}, ["slo_classes: expected", "[1]"]),
    ({"grpc_port": 70000}, ["grpc_port: expected a number in [0, 65535]", "70000"]),
    ({"grpc_port": "8001"}, ["grpc_port: expected a whole number", "'8001'"]),
    ({"max_message_bytes": 1}, ["max_message_bytes: expected a number in [1024"]),
    ({"max_buffered_bytes": 2**31}, ["max_buffered_bytes: expected a number in [1024, 2147483647]", "2147483648"]),
    (
        {"max_message_bytes": 4096, "max_buffered_bytes": 4095},
        ["max_buffered_bytes: must be at least max_message_bytes (4096)", "4095", "raise it"],
    ),
    ({"host": 7}, ["host: expected text", "7"]),
]


@pytest.mark.parametrize(("document", "parts"), BAD, ids=[parts[0].split(":")[0] for _, parts in BAD])
def test_what_is_wrong_is_named_with_its_path(tmp_path: Path, document: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, document))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "- just\n- a list\n", "text", "\xff\xfe"])
def test_a_file_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_config(tmp_path / "absent.yaml")


def test_nothing_but_plain_data_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("host: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(path)


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "stepwell.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
