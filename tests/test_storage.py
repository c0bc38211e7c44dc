"""What is stored is what sentence-transformers would store, and what is read back is as near as the form allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from longspan.errors import LongspanError
from longspan.storage import FORMS, Ranges, Storage, Stored

finite = st.floats(-100, 100, width=32)
matrices = npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20), elements=finite)


@given(matrices)
def test_float32_is_bitwise_and_float16_is_the_nearest(vectors_ND):
    exact, half = Storage.of("float32", vectors_ND), Storage.of("float16", vectors_ND)
    np.testing.assert_array_equal(exact.decode(exact.encode(vectors_ND)), vectors_ND)
    np.testing.assert_array_equal(half.decode(half.encode(vectors_ND)), vectors_ND.astype(np.float16))


@given(matrices, matrices)
def test_int8_is_off_by_half_a_bin_at_most_and_what_is_outside_is_put_at_the_edge(sample_MD, vectors_ND):
    vectors_ND = np.resize(vectors_ND, (len(vectors_ND), sample_MD.shape[1]))
    storage = Storage.of("int8", sample_MD)
    nearest_ND = vectors_ND.clip(sample_MD.min(axis=0), sample_MD.max(axis=0))
    off_ND = np.abs(storage.decode(storage.encode(vectors_ND)).astype(np.float64) - nearest_ND)
    assert storage.ranges is not None
    # Half a bin, and what float32 arithmetic rounds at the size of the values: a few units of its last place.
    rounding = 8 * np.finfo(np.float32).eps * max(1.0, float(np.abs(sample_MD).max()))
    assert (off_ND <= storage.ranges.step_D / 2 + rounding).all()


@given(matrices)
def test_storing_what_was_read_back_changes_nothing(vectors_ND):
    for form in ("float32", "float16", "binary"):
        storage = Storage.of(form, vectors_ND)
        stored_NS = storage.encode(vectors_ND)
        np.testing.assert_array_equal(storage.encode(storage.decode(stored_NS)), stored_NS)


@given(matrices)
def test_binary_is_signs_of_length_one(vectors_ND):
    storage = Storage.of("binary", vectors_ND)
    signs_ND = storage.decode(storage.encode(vectors_ND))
    np.testing.assert_array_equal(signs_ND > 0, vectors_ND > 0)
    np.testing.assert_allclose(np.linalg.norm(signs_ND, axis=1), 1, rtol=1e-6)


@given(matrices)
def test_a_description_is_the_whole_description(vectors_ND):
    for form in FORMS:
        storage = Storage.of(form, vectors_ND)
        again = Storage.model_validate_json(storage.model_dump_json())
        assert again == storage
        stored_NS = storage.encode(vectors_ND)
        assert (stored_NS.dtype, stored_NS.shape) == (storage.dtype, (len(vectors_ND), storage.width))
        assert stored_NS.nbytes == storage.bytes_per_vector * len(vectors_ND)
        np.testing.assert_array_equal(again.decode(stored_NS), storage.decode(stored_NS))


@pytest.mark.parametrize("dim", [8, 12, 384])
def test_the_same_bytes_as_sentence_transformers(dim):
    quantization = pytest.importorskip("sentence_transformers.util.quantization", exc_type=ImportError)
    generator = np.random.default_rng(dim)
    sample_MD, vectors_ND = (generator.normal(size=(200, dim)).astype(np.float32) for _ in range(2))
    sample_MD[:, 3] = 0.25  # a dimension that has one value
    int8 = Storage.of("int8", sample_MD)
    assert int8.ranges is not None
    ranges_2D = np.array([int8.ranges.lowest, int8.ranges.highest])
    np.testing.assert_array_equal(
        int8.encode(vectors_ND), quantization.quantize_embeddings(vectors_ND, "int8", ranges=ranges_2D)
    )
    np.testing.assert_array_equal(
        int8.encode(vectors_ND), quantization.quantize_embeddings(vectors_ND, "int8", calibration_embeddings=sample_MD)
    )
    np.testing.assert_array_equal(
        Storage.of("binary", vectors_ND).encode(vectors_ND), quantization.quantize_embeddings(vectors_ND, "ubinary")
    )


def test_a_dimension_of_one_value_is_read_back_exactly():
    vectors_ND = np.array([[0.1, 1.0], [0.1, 2.0]], dtype=np.float32)
    storage = Storage.of("int8", vectors_ND)
    assert (storage.decode(storage.encode(vectors_ND))[:, 0] == np.float32(0.1)).all()


def test_parts_of_stored_vectors_are_read():
    vectors_ND = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    for form in FORMS:
        storage = Storage.of(form, vectors_ND)
        stored = Stored(storage, storage.encode(vectors_ND))
        assert (len(stored), stored.shape) == (9, (9, 5))
        np.testing.assert_array_equal(stored[2:4], storage.decode(storage.encode(vectors_ND[2:4])))
        np.testing.assert_array_equal(stored[np.array([7, 1])], storage.decode(storage.encode(vectors_ND[[7, 1]])))


def test_what_cannot_be_stored_is_refused():
    good = np.ones((2, 3), dtype=np.float32)
    for form in FORMS:
        with pytest.raises(LongspanError, match="finite"):
            Storage.of(form, good).encode(np.array([[1, np.nan, 0]]))
        with pytest.raises(LongspanError, match="2 dimensions where 3"):
            Storage.of(form, good).encode(good[:, :2])
        with pytest.raises(LongspanError, match="is no "):
            Storage.of(form, good).decode(np.ones((2, 2), dtype=np.int16))
    with pytest.raises(LongspanError, match="there are none"):
        Storage.of("int8", good[:0])
    with pytest.raises(LongspanError, match="beyond what float16"):
        Storage.of("float16", good).encode(good * 1e6)
    with pytest.raises(LongspanError, match="int8 has ranges"):
        Storage.parse({"form": "int8", "dim": 3}, where="x")
    with pytest.raises(LongspanError, match="2 dimensions, not of 3"):
        Storage.parse({"form": "int8", "dim": 3, "ranges": Ranges.of(good[:, :2]).model_dump()}, where="x")
    with pytest.raises(LongspanError, match="above its highest"):
        Ranges.parse({"lowest": [1.0], "highest": [0.0]}, where="x")
