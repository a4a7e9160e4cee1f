"""HPACK (RFC 7541) as far as a client needs it that announces a header table of size 0: every header block then stands
for itself, so it can be kept and decoded later, or never."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TABLE_SIZE = 61
"""Entries of the static table; the first one of the dynamic table has the index after it."""
EMPTY_TABLE = b"\x20"
"""Starts a header block whose sender will use no dynamic table."""
_STATIC = (
    ":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204 "
    ":status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= accept-encoding= "
    "accept-language= accept-ranges= accept= access-control-allow-origin= age= allow= authorization= cache-control= "
    "content-disposition= content-encoding= content-language= content-length= content-location= content-range= "
    "content-type= cookie= date= etag= expect= expires= from= host= if-match= if-modified-since= if-none-match= "
    "if-range= if-unmodified-since= last-modified= link= location= max-forwards= proxy-authenticate= "
    "proxy-authorization= range= referer= refresh= retry-after= server= set-cookie= strict-transport-security= "
    "transfer-encoding= user-agent= vary= via= www-authenticate="
)
_FIELDS = {
    index: (name, value)
    for index, (name, _, value) in enumerate((entry.partition("=") for entry in _STATIC.split(" ")), start=1)
}
_CODES = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
    19: "\\",
}
"""Bits of the Huffman code -> the characters that have as many; their codes count up. Headers of gRPC are ASCII."""


def _huffman() -> dict[tuple[int, int], str]:
    """(number of bits, code) -> character."""
    codes: dict[tuple[int, int], str] = {}
    code = last_bits = 0
    for bits, characters in _CODES.items():
        code <<= bits - last_bits
        for character in characters:
            codes[bits, code] = character
            code += 1
        last_bits = bits
    return codes


_HUFFMAN = _huffman()


def encode(fields: Sequence[tuple[str, str]], *, index: bool) -> bytes:
    """A header block of literals. ``index``: the receiver keeps them in its table, the last one at its first place."""
    first = 0x40 if index else 0x00
    return b"".join(bytes([first]) + _text(name) + _text(value) for name, value in fields)


def indexed(count: int) -> bytes:
    """The header block that :func:`encode` gave for ``count`` fields, when the receiver's table has just those."""
    return bytes(0x80 | (TABLE_SIZE + count - i) for i in range(count))


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    return _number(len(data), 7) + data


def _number(value: int, prefix_bits: int) -> bytes:
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([value])
    digits, rest = [limit], value - limit
    while rest >= 0x80:
        digits.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*digits, rest])


def decode(block: bytes) -> list[tuple[str, str]]:
    """The fields of a header block that uses no dynamic table. Raises ValueError if it is not one."""
    try:
        return list(_decode(block))
    except (IndexError, KeyError):
        raise ValueError(f"header block: cut short or refers to a table it may not have, got {block.hex()}") from None


def _decode(block: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            index, at = _read_number(block, at, 7)
            yield _FIELDS[index]
        elif first & 0xE0 == 0x20:  # a new size of the dynamic table, which stays empty
            _, at = _read_number(block, at, 5)
        else:
            index, at = _read_number(block, at, 6 if first & 0x40 else 4)
            name, at = (_FIELDS[index][0], at) if index else _read_text(block, at)
            value, at = _read_text(block, at)
            yield name, value


def _read_number(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    limit = (1 << prefix_bits) - 1
    value, at, shift = block[at] & limit, at + 1, 0
    if value < limit:
        return value, at
    while True:
        digit, at = block[at], at + 1
        value += (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            return value, at


def _read_text(block: bytes, at: int) -> tuple[str, int]:
    huffman = block[at] & 0x80
    size, at = _read_number(block, at, 7)
    data = block[at : at + size]
    if len(data) < size:
        raise IndexError
    return (_unpack(data) if huffman else data.decode("utf-8", "replace")), at + size


def _unpack(data: bytes) -> str:
    """Huffman-coded text; a character that no header of gRPC has ends it."""
    found, code, bits = [], 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, bits = code << 1 | byte >> shift & 1, bits + 1
            character = _HUFFMAN.get((bits, code))
            if character is not None:
                found.append(character)
                code = bits = 0
    return "".join(found)
