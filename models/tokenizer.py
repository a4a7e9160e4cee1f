"""Text to token ids and back, all at once or token by token as they are generated.

A file ``tokenizer.json`` in the format of Hugging Face's ``tokenizers`` says how; this module adds precise errors and
the streaming that never shows half a character or a piece of a stop string.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CHARACTER_BYTES = 4
"""The longest UTF-8 character, so the most tokens that one can be spread over."""
KEPT_TOKENS = 12
"""Tokens kept before the newest when the window is cut: at least twice ``CHARACTER_BYTES``."""
WINDOW_TOKENS = 32
"""Length at which the window of a stream is cut."""


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used. The message names the file, what is wrong and the remedy."""


class Tokenizer:
    """What a model's ``tokenizer.json`` says, safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()  # texts that are too long are refused, unless told otherwise; nothing is padded
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        """Number of tokens, added ones included."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read ``tokenizer.json``. Raises TokenizerError."""
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError as error:
            raise TokenizerError(f"{path}: not found; put the model's tokenizer.json there") from error
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: not readable ({error}); fetch the model's tokenizer.json again") from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, name: str = "tokenizer.json") -> Tokenizer:
        """Take the content of a ``tokenizer.json``; ``name`` is for messages. Raises TokenizerError."""
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises no narrower class
            raise TokenizerError(
                f"{name}: not a tokenizer ({error}); fetch the model's tokenizer.json again"
            ) from error

    def truncate(self, max_tokens: int) -> None:
        """Cut texts and pairs to so many tokens from now on, special ones included; of a pair the longer text first.
        Raises TokenizerError if that leaves none of them."""
        if max_tokens <= (added := self._backend.num_special_tokens_to_add(True)):
            raise TokenizerError(
                f"max_seq_length: {max_tokens} tokens leave nothing of a pair, to which the tokenizer adds {added}; "
                "raise it"
            )
        self._backend.enable_truncation(max_tokens, strategy="longest_first")

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the file's post-processor adds."""
        token_ids: list[int] = self._backend.encode(text, add_special_tokens=True).ids
        return token_ids

    def encode_pair(self, text: str, pair: str) -> tuple[list[int], list[int]]:
        """Token ids of two texts as one, as the file's post-processor puts them together, and of each token which text
        it is of: its token type, 0 or 1."""
        encoding = self._backend.encode(text, pair, add_special_tokens=True)
        return encoding.ids, encoding.type_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the ids, without special tokens and unknown ids; U+FFFD for bytes that are no character."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def shows(self, token_id: int) -> bool:
        """False for special tokens and unknown ids, which ``decode`` leaves out."""
        return token_id not in self._special_ids and self._backend.id_to_token(token_id) is not None


class TextStream:
    """Text of one generation, token by token; nothing that was given has ever to be taken back.

    Held back are bytes that may still become a character, and the end that may still become a stop string. Of several
    stop strings the one that is complete first counts; text before it is given, the string itself never.
    The pieces join to ``decode`` of all tokens up to there, for byte-level tokenizers whatever the tokens; where a file
    decodes whole runs of bytes (byte fallback), an invalid byte does not change characters that were already given.

    As elsewhere (TGI, vLLM), a token's text is the difference it makes to a window of recent tokens, so that work per
    token is bounded.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ValueError("stop: must not contain an empty string, got ''; leave it out")
        self.stopped = False
        """Whether a stop string was met."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window: list[int] = []
        self._num_given = 0  # characters of the window's text that left the window
        self._num_incomplete = 0  # newest tokens since the text last ended with a whole character
        self._held = ""  # left the window, but may begin a stop string

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is now safe to show, perhaps none."""
        if self.stopped or not self._tokenizer.shows(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        num_ready = self._num_ready(text)
        new = text[self._num_given : num_ready]
        self._num_given = max(self._num_given, num_ready)
        if len(self._window) >= WINDOW_TOKENS:
            self._cut_window(text)
        return self._before_stop(new)

    def finish(self) -> str:
        """The end of the generation: returns what was held back, U+FFFD for an incomplete character."""
        if self.stopped:
            return ""
        rest = self._before_stop(self._tokenizer.decode(self._window)[self._num_given :]) + self._held
        self._window, self._num_given, self._num_incomplete, self._held = [], 0, 0, ""
        return rest

    def _num_ready(self, text: str) -> int:
        """Leading characters of ``text`` that later tokens cannot change."""
        num_whole = len(text.rstrip(REPLACEMENT))
        if num_whole == len(text):
            self._num_incomplete = 0
            return num_whole
        self._num_incomplete += 1
        if self._num_incomplete < CHARACTER_BYTES:
            return num_whole
        # So many tokens would have completed a character: these bytes are none, but the last may begin one.
        return max(num_whole, len(text) - (CHARACTER_BYTES - 1))

    def _cut_window(self, text: str) -> None:
        """Forget old tokens, where the text of the others ends with the last character given and all that follows."""
        tail = text[max(self._num_given - 1, 0) :]
        num_pending = len(text) - self._num_given
        for num_kept in range(KEPT_TOKENS, KEPT_TOKENS - CHARACTER_BYTES, -1):
            kept = self._window[-num_kept:]
            kept_text = self._tokenizer.decode(kept)
            if kept_text.endswith(tail) or len(self._window) >= 2 * WINDOW_TOKENS:
                self._window, self._num_given = kept, max(len(kept_text) - num_pending, 0)
                return

    def _before_stop(self, new: str) -> str:
        """``new`` text passes here: returns what is before a stop string and cannot be the beginning of one."""
        text = self._held + new
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, less than the whole of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
