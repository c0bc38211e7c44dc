"""text-embeddings-inference's API."""

import numpy as np
import pytest

from longspan.text.tasks import PREFIXES

TEXTS = ["the quick brown fox", "naïve café 東京"]


def test_embed_gives_the_embedders_bits(server, small_embedder):
    body = {"inputs": TEXTS, "prompt_name": "search_query", "dimensions": 16, "truncate": True}
    answer = server.call("/embed", body)
    assert answer.status == 200
    assert np.array_equal(np.float32(answer.json), small_embedder.embed(TEXTS, task="search_query", dim=16))
    assert answer.headers["x-longspan-truncated"] == "0"
    assert answer.headers["x-longspan-tokens"] == str(sum(small_embedder.num_tokens(TEXTS, task="search_query")))


def test_embed_takes_one_text_and_another_model(server, plain_embedder):
    answer = server.call("/embed", {"inputs": "fox", "model": "plain"})
    assert np.array_equal(np.float32(answer.json), plain_embedder.embed(["fox"]))


def test_vectors_need_not_be_normalised(server, plain_embedder):
    answer = server.call("/embed", {"inputs": "fox", "model": "plain", "normalize": False})
    expected_ND = plain_embedder.with_settings(normalize=False).embed(["fox"])
    assert np.array_equal(np.float32(answer.json), expected_ND)
    assert abs(np.linalg.norm(expected_ND) - 1) > 0.1


@pytest.mark.parametrize(
    ("body", "status", "kind", "part"),
    [
        ({"inputs": "fox"}, 422, "Tokenizer", "needs to know the task"),
        ({"inputs": "fox", "task": "clustering", "prompt_name": "search_query"}, 422, "Tokenizer", "several tasks"),
        ({"inputs": "fox " * 300, "task": "clustering"}, 422, "Tokenizer", "more than 128"),
        ({"inputs": ["fox"] * 300, "task": "clustering"}, 413, "Validation", "more than 256"),
        ({"inputs": "fox", "truncation_direction": "left"}, 400, "Validation", "truncation_direction"),
        ({"inputs": "fox", "model": "x"}, 404, "Validation", "there is no model"),
        (b"\xff", 400, "Validation", "not right"),
        (b"", 400, "Validation", "not right"),
    ],
)
def test_errors_have_teis_form(server, body, status, kind, part):
    answer = server.call("/embed", body)
    assert answer.status == status
    assert set(answer.json) == {"error", "error_type"}
    assert answer.json["error_type"] == kind
    assert part in answer.json["error"]


def test_tokenize_tells_where_each_token_is(server, plain_embedder):
    text = "the Naïve fox"
    (tokens,) = server.call("/tokenize", {"inputs": text}).json
    assert tokens[0] == {
        "id": plain_embedder.tokenizer.cls_id,
        "text": "[CLS]",
        "special": True,
        "start": None,
        "stop": None,
    }
    assert tokens[-1]["text"] == "[SEP]"
    assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens[1:-1])
    assert [token["id"] for token in tokens[1:-1]] == plain_embedder.tokenizer.encode([text])[0].tolist()


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_tokens_may_be_sent_back(server, small_embedder, add_special_tokens):
    rows = server.call("/tokenize", {"inputs": TEXTS, "add_special_tokens": add_special_tokens}).json
    ids = [[token["id"] for token in row] for row in rows]
    answer = server.call("/embed", {"inputs": ids, "task": "search_query"})
    assert np.array_equal(np.float32(answer.json), small_embedder.embed(TEXTS, task="search_query"))


def test_tokenize_with_a_task_is_what_the_model_reads(server, small_embedder):
    (tokens,) = server.call("/tokenize", {"inputs": "fox", "prompt_name": "clustering"}).json
    assert len(tokens) == small_embedder.num_tokens(["fox"], task="clustering")[0]
    assert server.call("/tokenize", {"inputs": "fox", "task": "search"}).status == 422
    assert server.call("/tokenize", {"inputs": ["fox"] * 257}).status == 413
    assert server.call("/tokenize", {"inputs": []}).json == []


def test_info_tells_limits_tasks_and_what_vectors_depend_on(server, small_embedder):
    info = server.call("/info").json
    assert info["model_id"] == "small"
    assert info["model_sha"] == small_embedder.fingerprint
    assert info["max_input_length"] == 128
    assert info["tasks"] == PREFIXES
    assert info["default_task"] is None
    assert info["dimensions"] == 64
    assert info["models"] == ["small", "plain"]
    assert info["auto_truncate"] is False
    assert server.call("/info?model=plain").json["tasks"] == {}
    assert server.call("/info?model=x").status == 404
