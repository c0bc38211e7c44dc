"""OpenAI's API: its own client, and the clients built on it, work as they are."""

import base64

import numpy as np
import pytest

TEXTS = ["the quick brown fox", "naïve café 東京", "lazy dogs " * 12]


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def rows(response):
    assert [item.index for item in response.data] == list(range(len(response.data)))
    return np.array([item.embedding for item in response.data], dtype=np.float32)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
def test_the_official_client_gets_the_embedders_bits(client, small_embedder, encoding):
    """Without a format the client asks for base64 and decodes it."""
    response = client.embeddings.create(model="small", input=TEXTS, extra_body={"task": "search_document"}, **encoding)
    assert np.array_equal(rows(response), small_embedder.embed(TEXTS, task="search_document"))
    assert response.model == "small"
    expected = sum(small_embedder.num_tokens(TEXTS, task="search_document"))
    assert response.usage.prompt_tokens == response.usage.total_tokens == expected


def test_base64_is_little_endian_float32(server, plain_embedder):
    answer = server.call("/v1/embeddings", {"model": "plain", "input": "fox", "encoding_format": "base64"})
    vector_D = np.frombuffer(base64.b64decode(answer.json["data"][0]["embedding"]), dtype="<f4")
    assert np.array_equal(vector_D, plain_embedder.embed(["fox"])[0])


@pytest.mark.parametrize("dim", [1, 16, 64])
def test_dimensions_are_cut_and_normalised(client, plain_embedder, dim):
    response = client.embeddings.create(model="plain", input="fox", dimensions=dim)
    assert np.array_equal(rows(response), plain_embedder.embed(["fox"], dim=dim))


def test_token_ids_with_and_without_special_tokens(client, plain_embedder):
    tokenizer = plain_embedder.tokenizer
    bare = [ids.tolist() for ids in tokenizer.encode(TEXTS)]
    wrapped = [[tokenizer.cls_id, *ids, tokenizer.sep_id] for ids in bare]
    expected_ND = plain_embedder.embed(TEXTS)
    for ids in (bare, wrapped):
        assert np.array_equal(rows(client.embeddings.create(model="plain", input=ids)), expected_ND)
        assert np.array_equal(rows(client.embeddings.create(model="plain", input=ids[0])), expected_ND[:1])


def test_a_task_may_be_part_of_the_name(client, small_embedder):
    """For clients that can say nothing else."""
    response = client.embeddings.create(model="small:clustering", input="fox")
    assert np.array_equal(rows(response), small_embedder.embed(["fox"], task="clustering"))
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["small", "small:search_query"]
    assert names[-1] == "plain"
    for name in set(names) - {"small"}:
        assert client.embeddings.create(model=name, input="fox").model == name


def test_truncation_only_if_asked_and_said(client, server):
    import openai

    with pytest.raises(openai.UnprocessableEntityError, match="has 202 tokens, more than 128"):
        client.embeddings.create(model="plain", input=["fox", "fox " * 200])
    body = {"model": "plain", "input": ["fox", "fox " * 200], "truncate": True}
    answer = server.call("/v1/embeddings", body)
    assert answer.json["truncated"] == [1]
    assert answer.headers["x-longspan-truncated"] == "1"
    assert answer.json["usage"]["prompt_tokens"] == 3 + 128


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ({"model": "other", "input": "fox"}, 404, "there is no model 'other'; there are: small, plain"),
        ({"model": "plain:", "input": "fox", "dimensions": 65}, 422, "dim 65 is not between 1 and 64"),
        ({"model": "small", "input": "fox"}, 422, "pass task= one of: classification, clustering"),
        ({"model": "small:search", "input": "fox"}, 422, "no task 'search'"),
        ({"model": "plain", "input": ""}, 422, "text number 0 is empty"),
        ({"model": "plain", "input": []}, 400, "input: must be"),
        ({"model": "plain", "input": [9999]}, 422, "token id 9999"),
        ({"model": "plain", "input": ["fox"] * 257}, 413, "257 texts in one request are more than 256"),
        ({"model": "small:clustering", "input": "fox", "extra_body": {"task": "search_query"}}, 422, "several tasks"),
    ],
)
def test_errors_have_openais_form(client, arguments, status, part):
    import openai

    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**arguments)
    assert caught.value.status_code == status
    error = caught.value.response.json()["error"]
    assert part in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["code"] == "model_not_found") == (status == 404)


def test_langchains_embeddings_work(server, small_embedder):
    langchain = pytest.importorskip("langchain_openai")

    def make(model):
        return langchain.OpenAIEmbeddings(
            model=model, base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
        )

    documents = make("small:search_document").embed_documents(TEXTS)
    query = make("small:search_query").embed_query("fox")
    assert np.array_equal(np.float32(documents), small_embedder.embed(TEXTS, task="search_document"))
    assert np.array_equal(np.float32(query), small_embedder.embed(["fox"], task="search_query")[0])
