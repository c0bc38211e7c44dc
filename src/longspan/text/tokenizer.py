"""WordPiece tokens from text, in Rust (the `tokenizers` library), with the few special ids that the encoder needs.

A tokenizer comes from a file, a folder or a hub id, or is trained where there is none. Truncation and padding that a
published `tokenizer.json` may ask for are switched off: cutting is a decision of the recipe, and padding does not
exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from longspan.errors import LongspanError
from longspan.files import sha256_json, write_text

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """Text to token ids.

    Attributes:
        vocab_size: number of ids, the special ones included.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        fingerprint: hex SHA-256 of the tokenizer's whole definition; equal fingerprints give equal ids.
    """

    def __init__(self, rust: tokenizers.Tokenizer, *, where: str) -> None:
        rust.no_truncation()
        rust.no_padding()
        self._rust = rust
        self.vocab_size = rust.get_vocab_size(with_added_tokens=True)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            _special_id(rust, token, where) for token in SPECIAL_TOKENS
        )
        # How texts are wrapped in special tokens is not part of it: `encode` never wraps.
        self.fingerprint = sha256_json(json.loads(rust.to_str()) | {"post_processor": None})

    @classmethod
    def load(cls, path_or_id: str | os.PathLike[str]) -> Tokenizer:
        """Load from a `tokenizer.json`, a `vocab.txt`, a folder that holds one of them, or a hub id.

        Raises:
            LongspanError: there is nothing there, or the file is not a tokenizer.
        """
        path = Path(path_or_id)
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
            if not found:
                raise LongspanError(
                    "the folder holds neither tokenizer.json nor vocab.txt",
                    where=path,
                    remedy="name a folder of a published model, or a tokenizer file",
                )
            path = found[0]
        elif not path.is_file():
            path = _download(str(path_or_id))
        if path.suffix == ".txt":
            return cls(_bert(models.WordPiece.from_file(str(path), unk_token="[UNK]")), where=str(path))
        try:
            rust = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise LongspanError(
                f"this is not a tokenizer: {error}", where=path, remedy="name a tokenizer.json or a vocab.txt"
            ) from None
        return cls(rust, where=str(path))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a lower-casing WordPiece vocabulary, as BERT's, on `texts`.

        The result depends on the texts only, not on the number of threads.
        """
        rust = _bert(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False, limit_alphabet=500
        )
        rust.train_from_iterator(texts, trainer)
        return cls(rust, where="Tokenizer.train")

    def save(self, path: str | Path) -> None:
        """Write the whole definition as a `tokenizer.json`."""
        write_text(path, self.definition())

    def definition(self) -> str:
        """The content of a `tokenizer.json`; wraps a text as [CLS] text [SEP] for those who load it elsewhere."""
        definition: dict[str, Any] = json.loads(self._rust.to_str())
        definition["post_processor"] = _cls_sep_template(self.cls_id, self.sep_id)
        return json.dumps(definition, ensure_ascii=False, indent=1) + "\n"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32, without special tokens and uncut. Uses all cores."""
        return [np.array(e.ids, dtype=np.int32) for e in self._rust.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Readable text of token ids (special tokens are kept: they are what the model sees)."""
        return self._rust.decode([int(i) for i in ids], skip_special_tokens=False)

    def is_special(self, ids: np.ndarray) -> np.ndarray:
        """Boolean mask of the ids that stand for [PAD], [CLS] or [SEP]: never masked, never predicted."""
        return np.isin(ids, (self.pad_id, self.cls_id, self.sep_id))


def _special_id(rust: tokenizers.Tokenizer, token: str, where: str) -> int:
    token_id = rust.token_to_id(token)
    if token_id is None:
        raise LongspanError(
            f"the vocabulary has no {token} token",
            where=where,
            remedy="use a BERT-type vocabulary, or train one with Tokenizer.train",
        )
    return token_id


def _bert(model: models.WordPiece) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    rust.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    return rust


def _cls_sep_template(cls_id: int, sep_id: int) -> dict[str, Any]:
    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    second = [sequence("B", 1), {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    first = [special("[CLS]"), sequence("A", 0), special("[SEP]")]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]}
            for token, token_id in (("[CLS]", cls_id), ("[SEP]", sep_id))
        },
    }


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "tokenizer.json"))
    except Exception as error:  # the hub client raises many kinds; each means "not to be had"
        raise LongspanError(
            f"no tokenizer {hub_id!r}: no such file or folder, and the hub did not give it ({type(error).__name__})",
            where=hub_id,
            remedy="check the spelling of the path or hub id, or download the model first and name its folder",
        ) from None
