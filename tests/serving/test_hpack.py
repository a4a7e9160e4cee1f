"""HPACK against the examples of RFC 7541, Appendix C."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.serving.grpc import hpack

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [("custom-key", "custom-header")]),  # C.2.1
        ("040c2f73616d706c652f70617468", [(":path", "/sample/path")]),  # C.2.2
        ("100870617373776f726406736563726574", [("password", "secret")]),  # C.2.3
        ("82", [(":method", "GET")]),  # C.2.4
        (  # C.4.1, Huffman
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
        ),
        ("20885886a8eb10649cbf", [(":status", "200"), ("cache-control", "no-cache")]),  # C.4.2, a table resized
        (  # C.6.1
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            [
                (":status", "302"), ("cache-control", "private"), ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
                ("location", "https://www.example.com"),
            ],
        ),
    ],
)  # fmt: skip
def test_blocks_of_the_specification(block, fields):
    assert hpack.decode(bytes.fromhex(block)) == fields


@given(st.lists(st.tuples(NAMES, NAMES), max_size=10), st.booleans())
def test_what_is_encoded_is_decoded(fields, index):
    assert hpack.decode(hpack.encode(fields, index=index)) == fields


def test_indexed_fields_count_back_from_the_newest():
    assert hpack.indexed(3) == bytes([0x80 | 64, 0x80 | 63, 0x80 | 62])


@pytest.mark.parametrize("block", ["80", "be", "ff8001", "400a6375", "40", "ff80"])
def test_what_is_no_block_of_ours_is_an_error(block):
    with pytest.raises(ValueError, match="header block"):
        hpack.decode(bytes.fromhex(block))


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(block):
    with contextlib.suppress(ValueError):
        hpack.decode(block)
