"""WordPiece tokens from text, in Rust (the `tokenizers` library), with the few special ids that the encoder needs.

A tokenizer comes from a file, a folder or a hub id, or is trained where there is none. Truncation and padding that a
published `tokenizer.json` may ask for are switched off: cutting is a decision of the recipe, and padding does not
exist.
"""

from __future__ import annotations

import array
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from longspan.errors import LongspanError
from longspan.files import read_json, sha256_json, write_text

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 500
"""Characters that a trained vocabulary knows: the most frequent ones. Words with others become [UNK]."""


def is_unicode(text: object) -> bool:
    """Whether it is a text that UTF-8 can say: a string without half surrogate pairs."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_unicode(number: int, text: object) -> LongspanError:
    """The error for something that `is_unicode` refuses."""
    return LongspanError(
        f"text number {number} is not Unicode text: {text!r:.80}",
        where=f"texts[{number}]",
        remedy="leave it out, or repair it where it was read (errors='replace')",
    )


class Tokenizer:
    """Text to token ids.

    Attributes:
        vocab_size: one more than the largest id, the special ones included.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        fingerprint: hex SHA-256 of the tokenizer's whole definition; equal fingerprints give equal ids.
    """

    def __init__(self, rust: tokenizers.Tokenizer, *, where: str) -> None:
        rust.no_truncation()
        rust.no_padding()
        self._rust = rust
        # Not the number of tokens: a vocabulary may leave ids out, and a table of vectors must reach the last.
        self.vocab_size = max(rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
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
        if not path.exists():
            path = _download(str(path_or_id))
        if path.is_dir():
            path = _file_of(path)
        try:
            rust = _from_vocabulary(path) if path.suffix == ".txt" else tokenizers.Tokenizer.from_file(str(path))
        except LongspanError:
            raise
        except Exception as error:  # the library raises a bare Exception
            raise LongspanError(
                f"this is not a tokenizer: {error}", where=path, remedy="name a tokenizer.json or a vocab.txt"
            ) from None
        return cls(rust, where=str(path))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a lower-casing WordPiece vocabulary, as BERT's, on `texts`.

        The result depends on the words of the texts only: not on the texts' order, the number of threads or chance.

        Raises:
            LongspanError: a text is not Unicode text.
        """
        vocabulary = _learn_wordpiece(_count_words(texts), vocab_size)
        rust = _bert(models.WordPiece(vocabulary, unk_token="[UNK]"), lowercase=True)
        rust.add_special_tokens(list(SPECIAL_TOKENS))
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
        """Token ids of each text, int32, without special tokens and uncut. Uses all cores.

        Raises:
            LongspanError: something is not Unicode text (see `is_unicode`).
        """
        return [np.array(one.ids, dtype=np.int32) for one in self._encoded(texts)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `encode` laid end to end (int32), and how many each text has (int64).

        Raises:
            LongspanError: something is not Unicode text (see `is_unicode`).
        """
        encoded = self._encoded(texts)
        ids = array.array("i")
        for one in encoded:
            ids.fromlist(one.ids)
        return np.asarray(ids, dtype=np.int32), np.fromiter(map(len, encoded), np.int64, len(encoded))

    def _encoded(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        try:
            return self._rust.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            number = next((n for n, text in enumerate(texts) if not is_unicode(text)), None)
            if number is None:
                raise
            raise not_unicode(number, texts[number]) from None

    def pieces(self, text: str) -> list[tuple[int, int, int]]:
        """The tokens of a text with their places: id, and the characters from start to end (not included).

        Raises:
            LongspanError: it is not Unicode text (see `is_unicode`).
        """
        if not is_unicode(text):
            raise not_unicode(0, text)
        encoded = self._rust.encode(text, add_special_tokens=False)
        return [(token, start, end) for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)]

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


def _file_of(folder: Path) -> Path:
    found = [folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file()]
    if not found:
        raise LongspanError(
            "the folder holds neither tokenizer.json nor vocab.txt",
            where=folder,
            remedy="name a folder of a published model, or a tokenizer file",
        )
    return found[0]


def _from_vocabulary(path: Path) -> tokenizers.Tokenizer:
    settings_file = path.with_name("tokenizer_config.json")
    settings = read_json(settings_file, remedy="download the model again") if settings_file.is_file() else {}
    rust = _bert(
        models.WordPiece.from_file(str(path), unk_token="[UNK]"), lowercase=settings.get("do_lower_case", True)
    )
    # As in a tokenizer.json, "[MASK]" in a text is the special token and not five pieces.
    rust.add_special_tokens([token for token in SPECIAL_TOKENS if rust.token_to_id(token) is not None])
    return rust


def _bert(model: models.WordPiece, *, lowercase: bool) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # pyright: ignore[reportAttributeAccessIssue]
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    rust.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    return rust


def _count_words(texts: Iterable[str]) -> Counter[str]:
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for number, text in enumerate(texts):
        if not is_unicode(text):
            raise not_unicode(number, text)
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    return words


def _learn_wordpiece(words: Counter[str], vocab_size: int) -> dict[str, int]:
    # Given only texts, the library numbers the letters inside words in the order of a randomly seeded hash table,
    # breaks ties between merges by these numbers, and cuts the alphabet among equally rare letters at random. So the
    # alphabet is cut here, and the letters are handed over as special tokens, which keep their order.
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    alphabet = set(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MAX_ALPHABET])
    words = Counter({word: count for word, count in words.items() if alphabet.issuperset(word)})
    inside = sorted({f"##{letter}" for word in words for letter in word[1:]})
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *inside], show_progress=False
    )
    learner.train_from_iterator(_repeated(words), trainer)
    return learner.get_vocab()


def _repeated(words: Counter[str], at_once: int = 1024) -> Iterator[str]:
    for word, count in words.items():
        for done in range(0, count, at_once):
            yield f"{word} " * min(at_once, count - done)


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
    from huggingface_hub import snapshot_download

    # Not hf_hub_download: where there is no network, that tries again for twenty seconds.
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["tokenizer.json", "tokenizer_config.json", "vocab.txt"]))
    except Exception as error:  # the hub client raises many kinds; each means "not to be had"
        raise LongspanError(
            f"no tokenizer {hub_id!r}: no such file or folder, and the hub did not give it ({type(error).__name__})",
            where=hub_id,
            remedy="check the spelling of the path or hub id, or download the model first and name its folder",
        ) from None
