"""The tokenizer: where it comes from, what it refuses, and that a prefix's ids and a text's ids are those of both."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.files import write_text
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import SPECIAL_TOKENS, Tokenizer, is_unicode

VOCABULARY = [*SPECIAL_TOKENS, "hello", "world", "hell", "##o", "cafe", ":", "_", "search", "query", "[", "]", "mask"]


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab.txt"
    write_text(path, "\n".join(VOCABULARY) + "\n")
    return path


def ids(tokenizer, text):
    return tokenizer.encode([text])[0].tolist()


def words(*names):
    return [VOCABULARY.index(name) for name in names]


# --- where it comes from ---------------------------------------------------------------------------------------------


def test_vocab_txt_is_berts_wordpiece(vocab_file):
    tokenizer = Tokenizer.load(vocab_file)
    assert ids(tokenizer, "Hello WORLD") == words("hello", "world")
    assert ids(tokenizer, "Café") == words("cafe")
    assert ids(tokenizer, "hellx") == words("[UNK]")
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == [*range(5)]
    assert tokenizer.vocab_size == len(VOCABULARY)
    assert tokenizer.encode(["hello"])[0].dtype == np.int32
    assert tokenizer.encode([]) == []


def test_a_folder_a_file_and_a_saved_copy_are_the_same_tokenizer(vocab_file, tmp_path):
    from_file, from_folder = Tokenizer.load(vocab_file), Tokenizer.load(vocab_file.parent)
    saved = tmp_path / "saved" / "tokenizer.json"
    from_file.save(saved)
    again, from_saved_folder = Tokenizer.load(saved), Tokenizer.load(saved.parent)
    prints = {t.fingerprint for t in (from_file, from_folder, again, from_saved_folder)}
    assert len(prints) == 1
    assert ids(again, "hello [MASK]") == ids(from_file, "hello [MASK]")


def test_tokenizer_json_is_taken_before_vocab_txt(vocab_file):
    write_text(vocab_file.with_name("other.txt"), "\n".join([*SPECIAL_TOKENS, "x"]))
    Tokenizer.load(vocab_file.with_name("other.txt")).save(vocab_file.with_name("tokenizer.json"))
    assert Tokenizer.load(vocab_file.parent).vocab_size == len(SPECIAL_TOKENS) + 1


def test_special_tokens_in_a_text_are_themselves(vocab_file):
    """As in every tokenizer.json, and so in transformers."""
    assert ids(Tokenizer.load(vocab_file), "hello[MASK] world") == words("hello", "[MASK]", "world")


def test_a_cased_vocab_txt_says_so_beside(vocab_file):
    assert ids(Tokenizer.load(vocab_file), "Hello") == words("hello")
    write_text(vocab_file.with_name("tokenizer_config.json"), json.dumps({"do_lower_case": False}))
    assert ids(Tokenizer.load(vocab_file), "Hello") == words("[UNK]")
    assert ids(Tokenizer.load(vocab_file), "hello") == words("hello")


def test_published_truncation_and_padding_are_switched_off(vocab_file, tmp_path):
    import tokenizers

    plain = Tokenizer.load(vocab_file)
    plain.save(tmp_path / "tokenizer.json")
    rust = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rust.enable_truncation(3)
    rust.enable_padding(length=20)
    rust.save(str(tmp_path / "cutting.json"))
    assert len(rust.encode("hello " * 9).ids) == 20  # it would cut and pad
    cutting = Tokenizer.load(tmp_path / "cutting.json")
    assert [len(i) for i in cutting.encode(["hello " * 9, "hello"])] == [9, 1]
    assert cutting.fingerprint == plain.fingerprint
    saved = json.loads(cutting.definition())
    assert saved["truncation"] is None
    assert saved["padding"] is None


def test_definition_wraps_a_text_for_others(small_tokenizer, tmp_path):
    import tokenizers

    rust = tokenizers.Tokenizer.from_str(small_tokenizer.definition())
    expected = [small_tokenizer.cls_id, *ids(small_tokenizer, "the fox"), small_tokenizer.sep_id]
    assert rust.encode("the fox").ids == expected
    pair = rust.encode("the fox", "the dogs")
    assert pair.ids == [*expected, *ids(small_tokenizer, "the dogs"), small_tokenizer.sep_id]
    assert pair.type_ids == [0] * len(expected) + [1] * (len(pair.ids) - len(expected))


def test_vocab_size_reaches_the_largest_id(tmp_path):
    """A vocabulary may leave ids out; a table of vectors must still reach the last."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS)} | {"far": 99}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocabulary}
    model["max_input_chars_per_word"] = 100
    definition = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    write_text(tmp_path / "tokenizer.json", json.dumps(definition))
    tokenizer = Tokenizer.load(tmp_path)
    assert ids(tokenizer, "far") == [99]
    assert tokenizer.vocab_size == 100


def test_decode_and_special_ids(small_tokenizer):
    assert small_tokenizer.decode(ids(small_tokenizer, "The quick foxes")) == "the quick foxes"
    wrapped = np.array([small_tokenizer.cls_id, 9, small_tokenizer.mask_id, small_tokenizer.sep_id])
    assert small_tokenizer.is_special(wrapped).tolist() == [True, False, False, True]
    assert "[MASK]" in small_tokenizer.decode(wrapped)


# --- training --------------------------------------------------------------------------------------------------------


def test_training_is_a_function_of_the_texts():
    texts = [f"word{i % 17} other{i % 5} naïve {i * i} end" for i in range(300)]
    first = Tokenizer.train(texts, 200)
    assert first.vocab_size == 200
    assert [Tokenizer.train(texts, 200).fingerprint for _ in range(3)] == [first.fingerprint] * 3
    assert Tokenizer.train(iter(texts[::-1]), 200).fingerprint == first.fingerprint
    assert Tokenizer.train(texts[:100], 200).fingerprint != first.fingerprint


def test_training_cuts_the_alphabet_the_same_way_each_time():
    rare = [f"common {chr(0x4E00 + i)} {chr(0xA000 + i)}q" for i in range(600)]  # all equally rare
    first = Tokenizer.train(rare, 700)
    assert Tokenizer.train(rare[::-1], 700).fingerprint == first.fingerprint
    assert ids(first, chr(0xA000 + 599)) == [first.unk_id]


def test_training_learns_frequent_words_whole(small_tokenizer):
    assert small_tokenizer.decode(ids(small_tokenizer, "fox")) == "fox"
    assert len(ids(small_tokenizer, "quick brown fox")) == 3
    pieces = ids(small_tokenizer, "foxover")
    assert len(pieces) > 1
    assert small_tokenizer.unk_id not in pieces
    assert ids(small_tokenizer, "##a")[0] == ids(small_tokenizer, "#")[0]  # letters inside words are no special tokens


def test_training_merges_what_is_most_frequent():
    """Not what stands in most words: `ab` is in fifty, each of them once, and `zebra` in one, three thousand times."""
    rare = " ".join(f"ab{i:02d}" for i in range(50))
    letters = Tokenizer.train([f"zebra {rare}"], 0).vocab_size
    tokenizer = Tokenizer.train([rare, *["zebra " * 1500] * 2], letters + 4)
    assert len(ids(tokenizer, "zebra")) == 1
    assert len(ids(tokenizer, "ab49")) == 4


def test_training_refuses_what_is_not_unicode_text():
    with pytest.raises(LongspanError, match="text number 1 is not Unicode text"):
        Tokenizer.train(["fine", "half \ud800 pair"], 100)


def test_training_does_not_depend_on_threads():
    """In processes of their own: the library starts its threads once."""
    source = (
        "from longspan.text.tokenizer import Tokenizer\n"
        "texts = [f'word{i % 17} other{i % 5} {i * i} end' for i in range(300)]\n"
        "print(Tokenizer.train(texts, 150).fingerprint)"
    )
    prints = set()
    for threads in ("1", "3"):
        env = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        run = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, text=True, check=True)
        prints.add(run.stdout)
    assert len(prints) == 1


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_refuses_a_vocabulary_without_a_special_token(tmp_path, missing):
    write_text(tmp_path / "vocab.txt", "\n".join(token for token in VOCABULARY if token != missing))
    with pytest.raises(LongspanError, match=re.escape(f"no {missing} token")) as caught:
        Tokenizer.load(tmp_path)
    assert "vocab.txt" in caught.value.where


@pytest.mark.parametrize("content", ["nonsense", "{}", "[1, 2]", '{"model": {"type": "Nothing"}}'])
def test_refuses_a_file_that_is_no_tokenizer(tmp_path, content):
    write_text(tmp_path / "tokenizer.json", content)
    with pytest.raises(LongspanError, match="not a tokenizer") as caught:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert "tokenizer.json" in caught.value.where


def test_refuses_a_binary_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00[PAD]\n")
    with pytest.raises(LongspanError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_refuses_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(LongspanError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "nothing-of-this-name", "not a name"])
def test_a_name_that_is_nowhere_fails_soon(monkeypatch, name):
    def no_network(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    start = time.monotonic()
    with pytest.raises(LongspanError, match="no such file or folder, and the hub did not give it") as caught:
        Tokenizer.load(name)
    assert caught.value.where == name
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("bad", ["half \ud800 pair", 7, None])
def test_encode_refuses_what_is_not_unicode_text(small_tokenizer, bad):
    assert not is_unicode(bad)
    with pytest.raises(LongspanError, match="text number 1 is not Unicode text") as caught:
        small_tokenizer.encode(["fine", bad])
    assert caught.value.where == "texts[1]"


# --- the law that lets data be prepared once for every prefix --------------------------------------------------------

# Arbitrary text hardly ever begins with what is hard: marks that combine, join or vanish, special tokens, other spaces.
_HARD = st.text(
    st.sampled_from("\u0301\u0308\u3099\u200d\u200b\ufeff\u00ad\u1ab0\u302e\u0f71 \t\u3000\u2028:_-#東ｱéß'")
)
_SPECIAL = st.sampled_from([*SPECIAL_TOKENS, "[cls]", "##s", "query: ", ": "])
any_text = st.lists(st.one_of(st.text(), _HARD, _SPECIAL), min_size=1, max_size=4).map("".join)


def check_prefix_law(tokenizer, text):
    for prefix in PREFIXES.values():
        assert ids(tokenizer, prefix) + ids(tokenizer, text) == ids(tokenizer, prefix + text)


@settings(max_examples=200)
@given(any_text)
@example("\u0301a")
@example("")
@example("[MASK]")
def test_ids_of_prefix_and_text_are_those_of_both(small_tokenizer, text):
    check_prefix_law(small_tokenizer, text)


@settings(max_examples=200)
@given(any_text)
@example("\u0301a")
def test_ids_of_prefix_and_text_are_those_of_both_in_berts_vocabulary(berts_tokenizer, text):
    check_prefix_law(berts_tokenizer, text)


@pytest.fixture(scope="module")
def berts_tokenizer(shared_data):
    return Tokenizer.load(shared_data / "vocab" / "bert-base-uncased-vocab.txt")


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=6))
def test_flat_ids_are_the_ids_of_the_texts_end_to_end(small_tokenizer, texts):
    ids_T, lengths_N = small_tokenizer.encode_flat(texts)
    assert (ids_T.dtype, lengths_N.dtype) == (np.int32, np.int64)
    expected = small_tokenizer.encode(texts)
    assert lengths_N.tolist() == [len(ids) for ids in expected]
    assert ids_T.tolist() == [i for ids in expected for i in ids.tolist()]


def test_flat_ids_of_what_is_not_unicode_are_refused(small_tokenizer):
    with pytest.raises(LongspanError, match="text number 1 is not Unicode"):
        small_tokenizer.encode_flat(["fox", "\ud800"])
