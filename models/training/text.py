"""From files to token streams: corpus, tokenizer, and a digest that tells one training text from another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tokenizers import Tokenizer

from stepwell.models.training.bpe import train_tokenizer
from stepwell.models.training.config import NestedConfig
from stepwell.models.training.corpus import Document, load_corpus
from stepwell.models.training.windows import TokenStream, token_stream

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TrainingText:
    """Everything a run reads."""

    tokenizer: Tokenizer
    train: TokenStream
    held_out: tuple[Document, ...]
    digest: str
    """SHA-256 of the training stream."""


def prepare_text(config: NestedConfig) -> TrainingText:
    """Read the corpus and train the tokenizer on its training side, or load the one an earlier run left in ``output``.

    Raises ValueError if the corpus is too small.
    """
    corpus = load_corpus(config.sources, config.held_out_share)
    texts = [document.text for document in corpus.train]
    path = config.output / TOKENIZER_FILE
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = train_tokenizer(texts, config.vocab_size)
        config.output.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path))
    stream = token_stream(tokenizer, texts)
    return TrainingText(tokenizer, stream, corpus.held_out, hashlib.sha256(stream.tobytes()).hexdigest())
