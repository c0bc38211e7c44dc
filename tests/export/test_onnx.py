"""The ONNX graphs give our vectors in ONNX Runtime, each text by itself, whatever is beside it in its batch."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export import onnx_graph
from longspan.export.onnx import ONNX_PRECISIONS, write_onnx
from longspan.model.config import EmbeddingConfig
from longspan.text.packed import Packed

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

LENGTHS = (1, 5, 31, 32, 33, 64, 128)  # trained to 32, reading 128
LEAST = {"float32": 0.9999999, "float16": 0.99999, "int8": 0.99}
FAMILIES = {
    "nomic": {},
    "nomic, no scaling": {"rope_scaling": "none"},
    "nomic, linear": {"rope_scaling": "linear"},
    "nomic, NTK": {"rope_scaling": "ntk"},
    "bert": {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 128},
    "bert, tanh": {"positions": "learned", "activation": "gelu_tanh", "bias": True, "trained_length": 128},
    "bert, relu": {"positions": "learned", "activation": "relu", "bias": True, "trained_length": 128},
    "modernbert": {"prenorm": True, "activation": "geglu", "num_token_types": 0},
}


def sequences(vocab_size=150, lengths=LENGTHS):
    rng = np.random.default_rng(3)
    return [rng.integers(5, vocab_size, length) for length in lengths]


def padded(sequences, *, left=False):
    longest = max(map(len, sequences))
    ids, mask = np.zeros((2, len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, place], mask[row, place] = sequence, 1
    return {"input_ids": ids, "attention_mask": mask}


def opened(embedder, folder, **form):
    write_onnx(embedder, folder / "graph.onnx", **form)
    return onnxruntime.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])


def ours(embedder, sequences):
    """Each by itself."""
    return np.concatenate([embedder.finished(embedder.pooled([sequence])) for sequence in sequences])


def cosines(a_ND, b_ND):
    return (a_ND * b_ND).sum(1) / np.linalg.norm(a_ND, axis=1) / np.linalg.norm(b_ND, axis=1)


@pytest.fixture(scope="module")
def sessions(small_embedder, tmp_path_factory):
    return {
        precision: opened(small_embedder, tmp_path_factory.mktemp("onnx"), precision=precision)
        for precision in ONNX_PRECISIONS
    }


@pytest.mark.parametrize("precision", ONNX_PRECISIONS)
@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_a_mixed_batch_gives_our_vectors(sessions, small_embedder, precision, left):
    (found_ND,) = sessions[precision].run(["sentence_embedding"], padded(sequences(), left=left))
    assert found_ND.dtype == np.float32
    # Measured: float16 0.999998, int8 0.9976.
    assert cosines(found_ND, ours(small_embedder, sequences())).min() >= LEAST[precision]


@pytest.mark.parametrize("precision", ONNX_PRECISIONS)
@settings(max_examples=10)
@given(data=st.data())
def test_a_vector_does_not_depend_on_its_batch(sessions, data, precision):
    every = sequences()
    order = data.draw(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=6))
    (together_ND,) = sessions[precision].run(None, padded([every[i] for i in order]))
    alone_ND = np.concatenate([sessions[precision].run(None, padded([every[i]]))[0] for i in order])
    # Under int8 a rounding in attention may fall on the other side of a step.
    tolerance = {"float32": 2e-6, "float16": 3e-3, "int8": 2e-2}[precision]
    np.testing.assert_allclose(together_ND, alone_ND, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(small_encoder, small_tokenizer, tmp_path, family):
    embedder = Embedder(
        small_encoder(**FAMILIES[family]), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu"
    )
    (found_ND,) = opened(embedder, tmp_path).run(None, padded(sequences()))
    np.testing.assert_allclose(found_ND, ours(embedder, sequences()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize(("layer_norm", "normalize"), [(True, True), (False, False)])
@pytest.mark.parametrize("left", [False, True])
def test_every_way_to_a_vector(small_encoder, small_tokenizer, tmp_path, pooling, layer_norm, normalize, left):
    config = EmbeddingConfig(pooling=pooling, layer_norm=layer_norm, normalize=normalize, max_length=128)
    embedder = Embedder(small_encoder(), small_tokenizer, config, device="cpu")
    (found_ND,) = opened(embedder, tmp_path).run(None, padded(sequences(), left=left))
    np.testing.assert_allclose(found_ND, ours(embedder, sequences()), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["nomic", "bert", "modernbert"])
def test_the_plain_graph_gives_token_states(small_encoder, small_tokenizer, tmp_path, family):
    encoder = small_encoder(**FAMILIES[family])
    embedder = Embedder(encoder, small_tokenizer, EmbeddingConfig(max_length=128), device="cpu")
    session = opened(embedder, tmp_path, form="tokens")
    inputs = padded(sequences())
    if family != "modernbert":
        rng = np.random.default_rng(0)
        inputs["token_type_ids"] = rng.integers(0, 2, inputs["input_ids"].shape)
    assert {node.name for node in session.get_inputs()} == inputs.keys()
    (found_BSD,) = session.run(["last_hidden_state"], inputs)
    for row, sequence in enumerate(sequences()):
        packed = Packed.of([sequence])
        if "token_type_ids" in inputs:
            types_T = torch.from_numpy(inputs["token_type_ids"][row, : len(sequence)])
            packed = Packed(packed.ids_T, packed.cu_seqlens, packed.lengths, types_T)
        with torch.no_grad():
            expected_TD = encoder(packed).numpy()
        np.testing.assert_allclose(found_BSD[row, : len(sequence)], expected_TD, rtol=0, atol=5e-5)


def test_the_file_is_small_standard_and_says_what_it_is(small_embedder, tmp_path):
    sizes = {}
    for precision in ONNX_PRECISIONS:
        path = tmp_path / f"{precision}.onnx"
        write_onnx(small_embedder, path, precision=precision)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnx_graph.OPSET)]
        sizes[precision] = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(properties["prefixes"]) == small_embedder.config.prefixes
        assert properties["longspan_fingerprint"] == small_embedder.fingerprint
    assert sizes["float16"] < 0.51 * sizes["float32"]
    assert sizes["int8"] < 0.30 * sizes["float32"]


def test_a_model_that_is_too_large_is_refused(small_embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_LIMIT", 1000)
    with pytest.raises(LongspanError, match="an ONNX file holds less than 2") as caught:
        write_onnx(small_embedder, tmp_path / "graph.onnx")
    assert "float16 or int8" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_rounded_weights_are_not_exported(small_encoder, small_tokenizer, tmp_path):
    embedder = Embedder(
        small_encoder(), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu", precision="int8"
    )
    with pytest.raises(LongspanError, match="a model loaded in int8 is not published"):
        write_onnx(embedder, tmp_path / "graph.onnx")
