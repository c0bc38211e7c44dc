"""A published folder holds what was asked for, whole or not at all, and other libraries load the whole of it."""

import pytest

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.publish import Forms, publish
from longspan.files import read_json, write_text
from longspan.model.config import EmbeddingConfig
from longspan.text.tokenizer import Tokenizer

ALWAYS = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
}
BERT = {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 128}


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_plain_folder_has_both_families_of_keys_the_verbose_pooling_and_old_module_paths(small_embedder, tmp_path):
    assert publish(small_embedder, tmp_path / "model") == ()
    assert files(tmp_path / "model") == ALWAYS
    config = read_json(tmp_path / "model" / "config.json", remedy="")
    original = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128, "max_trained_positions": 32}
    native = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    assert (original | native).items() <= config.items()
    pooling = read_json(tmp_path / "model" / "1_Pooling" / "config.json", remedy="")
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    modules = read_json(tmp_path / "model" / "modules.json", remedy="")
    assert {module["type"].rpartition(".")[0] for module in modules} == {"sentence_transformers.models"}


def test_the_nomic_layout_adds_what_readers_of_the_release_look_for(small_embedder, tmp_path):
    publish(small_embedder, tmp_path / "model", forms=Forms(formats=("nomic",)))
    assert files(tmp_path / "model") == ALWAYS | {"vocab.txt", "special_tokens_map.json"}
    code = read_json(tmp_path / "model" / "config.json", remedy="")["auto_map"]["AutoModel"]
    assert code == "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"
    texts = ["the quick fox", "naïve 東京 [MASK]"]
    from_file = Tokenizer.load(tmp_path / "model" / "vocab.txt").encode(texts)
    assert [ids.tolist() for ids in from_file] == [ids.tolist() for ids in small_embedder.tokenizer.encode(texts)]
    loaded = Embedder.load(tmp_path / "model", device="cpu")
    assert loaded.fingerprint == small_embedder.fingerprint


def test_transformers_takes_its_own_class_for_the_nomic_layout(small_embedder, tmp_path):
    transformers = pytest.importorskip("transformers")
    publish(small_embedder, tmp_path / "model", forms=Forms(formats=("nomic",)))
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(model) is transformers.NomicBertModel
    assert not any(info.values())


def test_only_nomic_models_have_a_nomic_layout(small_encoder, small_tokenizer, tmp_path):
    embedder = Embedder(small_encoder(**BERT), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu")
    with pytest.raises(LongspanError, match="only nomic_bert models were released in the nomic layout"):
        publish(embedder, tmp_path / "model", forms=Forms(formats=("nomic",)))
    assert not list(tmp_path.iterdir())


def test_all_forms_lie_beside_each_other_and_are_replaced_together(small_embedder, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("gguf")
    forms = Forms(formats=("onnx", "gguf"), onnx=("float32", "float16", "int8"), gguf=("f32", "q8_0"))
    told = []
    notes = publish(small_embedder, tmp_path / "model", forms=forms, tell=told.append)
    onnx = {f"onnx/{form}{suffix}.onnx" for form in ("model", "embed") for suffix in ("", "_fp16", "_quantized")}
    gguf = {"model-f32.gguf", "model-q8_0.gguf"}
    assert files(tmp_path / "model") == ALWAYS | {"special_tokens_map.json"} | onnx | gguf
    assert set(told) == {"model.safetensors"} | onnx | gguf
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert any("--rope-freq-base" in note for note in notes)
    assert all(note in card for note in notes)
    publish(small_embedder, tmp_path / "model")
    assert files(tmp_path / "model") == ALWAYS


def test_anything_but_a_model_is_not_replaced(small_embedder, tmp_path):
    write_text(tmp_path / "model" / ".git" / "HEAD", "ref: refs/heads/main")
    with pytest.raises(LongspanError, match=r"something else than a published model: \.git"):
        publish(small_embedder, tmp_path / "model")
    assert (tmp_path / "model" / ".git" / "HEAD").is_file()


def test_a_model_that_others_do_not_know_is_not_published(small_encoder, small_tokenizer, tmp_path):
    embedder = Embedder(small_encoder(bias=True), small_tokenizer, EmbeddingConfig(max_length=128), device="cpu")
    with pytest.raises(LongspanError, match="no published model type computes this encoder"):
        publish(embedder, tmp_path / "model")
    assert not list(tmp_path.iterdir())
