"""The adapter to mteb: prefixes, lengths, normalisation, and that each text is embedded once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.mteb_encoder import MtebEncoder, MtebProtocol, prefix_task
from longspan.text.packed import Packed
from longspan.text.tasks import PREFIXES

mteb = pytest.importorskip("mteb", reason="needs the extra mteb", exc_type=ImportError)
datasets = pytest.importorskip("datasets", exc_type=ImportError)

TEXTS = ["the quick fox", "a dog", "the quick fox", "", "a lazy dog jumps over the brown fox " * 8]


def encode(encoder: MtebEncoder, texts: list[str], task: str = "STSBenchmark", prompt: str | None = None) -> np.ndarray:
    loader = torch.utils.data.DataLoader(datasets.Dataset.from_dict({"text": texts}), batch_size=2)
    prompt_type = None if prompt is None else mteb.types.PromptType(prompt)
    metadata = mteb.get_task(task).metadata
    return encoder.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=prompt_type)


@pytest.mark.parametrize(
    ("task_type", "prompt_type", "task"),
    [
        ("Classification", None, "classification"),
        ("PairClassification", None, "classification"),
        ("STS", None, "classification"),
        ("Summarization", None, "classification"),
        ("Reranking", "query", "classification"),
        ("Reranking", "document", "classification"),
        ("Clustering", None, "clustering"),
        ("Retrieval", "query", "search_query"),
        ("Retrieval", "document", "search_document"),
    ],
)
def test_prefixes_are_those_of_the_paper(task_type: str, prompt_type: str | None, task: str) -> None:
    assert prefix_task(task_type, prompt_type) == task


@pytest.mark.parametrize(
    ("name", "prompt", "task"),
    [
        ("STSBenchmark", None, "classification"),
        ("TwentyNewsgroupsClustering", None, "clustering"),
        ("SciFact", "query", "search_query"),
        ("SciFact", "document", "search_document"),
    ],
)
def test_vectors_are_the_embedders(small_embedder: Embedder, name: str, prompt: str | None, task: str) -> None:
    ours = encode(MtebEncoder(small_embedder), TEXTS, name, prompt)
    texts = [text for text in TEXTS if text]
    expected = small_embedder.embed(texts, task=task, max_length=128, truncate=True)
    np.testing.assert_array_equal(ours[[0, 1, 2, 4]], expected)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)


def test_an_empty_text_is_the_prefix_alone(small_embedder: Embedder) -> None:
    tokenizer = small_embedder.tokenizer
    ids = tokenizer.encode([PREFIXES["classification"]])[0]
    sequence = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])
    with torch.no_grad():
        vector_1D = small_embedder.model(Packed.of([sequence]))
    expected = torch.nn.functional.normalize(vector_1D, dim=-1)[0].numpy()
    np.testing.assert_allclose(encode(MtebEncoder(small_embedder), ["", "  ", "fox"])[0], expected, atol=1e-6)


def test_only_classification_keeps_the_lengths_of_vectors(small_embedder: Embedder) -> None:
    raw = encode(MtebEncoder(small_embedder), TEXTS, "Banking77Classification")
    lengths = np.linalg.norm(raw, axis=1)
    assert (abs(lengths - 1) > 0.01).all()
    np.testing.assert_allclose(raw / lengths[:, None], encode(MtebEncoder(small_embedder), TEXTS), atol=1e-6)
    protocol = MtebProtocol(max_length=128, normalize_classification=True)
    normalized = encode(MtebEncoder(small_embedder, protocol=protocol), TEXTS, "Banking77Classification")
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), 1, rtol=1e-5)


def test_vectors_are_cut_as_the_protocol_says(small_embedder: Embedder) -> None:
    cut = MtebEncoder(small_embedder, protocol=MtebProtocol(max_length=128, dim=16))
    texts = TEXTS[:2]
    expected = small_embedder.embed(texts, task="classification", dim=16)
    np.testing.assert_allclose(encode(cut, texts), expected, atol=1e-6)
    raw = encode(MtebEncoder(small_embedder), TEXTS, "Banking77Classification")
    np.testing.assert_array_equal(encode(cut, TEXTS, "Banking77Classification"), raw[:, :16])
    assert cut.mteb_model_meta.embed_dim == 16


def test_a_model_without_prefixes_is_measured_as_published(small_embedder: Embedder) -> None:
    plain = small_embedder.with_settings(prefixes={})
    assert MtebProtocol.of(plain) == MtebProtocol(max_length=128, normalize_classification=True)
    assert MtebProtocol.of(plain.with_settings(normalize=False)).normalize_classification is False
    assert MtebProtocol.of(small_embedder) == MtebProtocol(max_length=128)
    np.testing.assert_array_equal(encode(MtebEncoder(plain), TEXTS)[:1], plain.embed(TEXTS[:1]))


def test_texts_are_cut_at_the_protocols_length(small_embedder: Embedder) -> None:
    ours = encode(MtebEncoder(small_embedder, protocol=MtebProtocol(max_length=12)), TEXTS[-1:])
    expected = small_embedder.embed(TEXTS[-1:], task="classification", max_length=12, truncate=True)
    np.testing.assert_array_equal(ours, expected)
    with pytest.raises(LongspanError, match="max_length 512 is more than the 128 tokens"):
        MtebEncoder(small_embedder, protocol=MtebProtocol())


def test_each_text_is_embedded_once_and_kept(
    small_embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    encoder = MtebEncoder(small_embedder, vectors=tmp_path, progress=lambda *said: told.append(said))
    first = encode(encoder, TEXTS)
    assert told[-1] == ("STSBenchmark test (1)", 4, 4)
    np.testing.assert_allclose(first, encode(MtebEncoder(small_embedder), TEXTS), atol=1e-7)
    monkeypatch.setattr(Embedder, "embed", lambda *_, **__: pytest.fail("embedded again"))
    again = MtebEncoder(small_embedder, vectors=tmp_path)
    np.testing.assert_array_equal(encode(again, TEXTS[::-1]), first[::-1])


def test_mteb_takes_it_for_an_encoder(small_embedder: Embedder) -> None:
    encoder = MtebEncoder(small_embedder, name="org/small")
    assert isinstance(encoder, mteb.EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.use_instructions) == ("org/small", 64, True)
    a_ND, b_MD = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    expected = (a_ND @ b_MD.T) / np.outer(np.linalg.norm(a_ND, axis=1), np.linalg.norm(b_MD, axis=1))
    np.testing.assert_allclose(encoder.similarity(a_ND, b_MD), expected, rtol=1e-5)
    np.testing.assert_allclose(encoder.similarity_pairwise(a_ND, b_MD), expected.diagonal(), rtol=1e-5)


def test_the_revision_is_the_model_and_the_protocol(small_embedder: Embedder) -> None:
    revision = MtebEncoder(small_embedder).revision
    assert revision == MtebEncoder(small_embedder, name="org/other").revision
    others = [
        MtebEncoder(small_embedder, protocol=MtebProtocol(max_length=64)),
        MtebEncoder(small_embedder, protocol=MtebProtocol(max_length=128, normalize_classification=True)),
        MtebEncoder(small_embedder.with_settings(pooling="cls")),
    ]
    assert len({revision, *(other.revision for other in others)}) == 4


@pytest.mark.parametrize("name", ["model", "/model", "org/"])
def test_a_name_without_organization_is_refused(small_embedder: Embedder, name: str) -> None:
    with pytest.raises(LongspanError, match="organization/model"):
        MtebEncoder(small_embedder, name=name)
