"""From files of pairs to files of pairs with negatives. Axes: M documents, D width."""

import json

import numpy as np
import pytest

from longspan.curate import mining
from longspan.curate.consistency import Teacher
from longspan.curate.mining import Pool, draw_source, mine_source, read_pool
from longspan.curate.negatives import Mining, Reranker
from longspan.data.source import PairSource
from longspan.errors import LongspanError
from longspan.files import write_json_lines


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pair_rows(num_pairs: int) -> list[dict]:
    """Each query has two answers, in two rows; some documents answer two queries."""
    rows = [{"query": f"what is {n}?", "document": f"{n} is this", "id": n} for n in range(num_pairs)]
    rows += [{"query": f"what is {n}?", "document": f"{n + 1} is this", "id": n} for n in range(0, num_pairs - 1, 2)]
    return rows


@pytest.fixture
def source_of(tmp_path):
    """Writes rows to a file and names it as a source."""

    def make(rows: list[dict], name: str = "pairs") -> PairSource:
        write_json_lines(tmp_path / f"{name}.jsonl", rows)
        return PairSource(name=name, files=(str(tmp_path / f"{name}.jsonl"),))

    return make


def expected_negatives(embedder, query, own, corpus, k, guard=None) -> list[str]:
    """By definition, in float64."""
    query_D = embedder.vector(query, "search_query").astype(np.float64)
    score = {text: float(embedder.vector(text, "search_document").astype(np.float64) @ query_D) for text in corpus}
    best = max(score[text] for text in own)
    limit = np.inf if guard is None else best * guard if best > 0 else best / guard
    fine = [text for text in corpus if text not in own and text != query and score[text] <= limit]
    return sorted(fine, key=lambda text: -score[text])[:k]


@pytest.mark.parametrize("guard", [None, 0.9])
def test_rows_get_their_negatives_and_no_answer_among_them(tmp_path, source_of, make_embedder, guard):
    rows, embedder, out = pair_rows(30), make_embedder(), tmp_path / "out"
    seen: dict[str, list[tuple[int, int]]] = {}
    report = mine_source(
        source_of(rows),
        Teacher(embedder),
        out,
        Mining(k=6, at_least=4, guard=guard),
        progress=lambda what, done, total: seen.setdefault(what, []).append((done, total)),
    )
    mined, dropped = read(out / "mined.jsonl"), read(out / "dropped.jsonl")
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["query"], set()).add(row["document"])
    corpus = list(dict.fromkeys(row["document"] for row in rows))
    for row in mined:
        assert 4 <= len(row["negatives"]) <= 6
        assert row["negatives"] == expected_negatives(embedder, row["query"], answers[row["query"]], corpus, 6, guard)
        query_D = embedder.vector(row["query"], "search_query")
        scores = [embedder.vector(text, "search_document") @ query_D for text in row["negatives"]]
        np.testing.assert_allclose(row["negative_scores"], scores, atol=6e-5)  # 4 digits
        own_D = embedder.vector(row["document"], "search_document")
        assert row["positive_score"] == pytest.approx(float(query_D @ own_D), abs=6e-5)
    whole = [{key: row[key] for key in rows[0]} for row in mined]
    assert whole == [row for row in rows if row in whole], "what a row had, it keeps, and the order"
    assert len(mined) + len(dropped) == len(rows)
    assert {what: steps[-1] for what, steps in seen.items()} == {
        "embedding": (60, 60),
        "searching": (30, 30),
        "writing": (len(rows), len(rows)),
    }
    assert len(embedder.embedded) == 60, "equal texts are embedded once"
    facts = report.facts
    assert (facts["pairs"], facts["mined"], facts["dropped"]) == (len(rows), len(mined), len(dropped))
    assert (facts["queries"], facts["documents"], facts["k"], facts["guard"]) == (30, len(corpus), 6, guard)
    assert facts["negatives_per_pair"] == pytest.approx(np.mean([len(row["negatives"]) for row in [*mined, *dropped]]))
    assert facts["search"]["exact"] is True
    assert (facts["teacher"], facts["teacher_fingerprint"]) == ("words", "words-1")
    assert json.loads((out / "report.json").read_text())["mined"] == len(mined)
    assert (out / "report.html").is_file()
    assert not (out / "mining").exists(), "what was only needed on the way is gone"
    shown = [example for examples in report.examples.values() for example in examples]
    assert all(rows[one.row - 1]["document"] == one.document and one.others for one in shown)
    assert len(shown) == 20


def test_rows_with_too_few_negatives_are_written_elsewhere(tmp_path, source_of, make_embedder):
    # One query is answered by all documents but two.
    rows = [{"query": "what is 0?", "document": f"{n} is this"} for n in range(8)]
    rows += [{"query": f"what is {n}?", "document": f"{n} is this"} for n in range(8, 10)]
    report = mine_source(source_of(rows), Teacher(make_embedder()), tmp_path, Mining(k=5, at_least=3))
    assert (report.facts["mined"], report.facts["dropped"]) == (2, 8)
    assert [row["query"] for row in read(tmp_path / "mined.jsonl")] == ["what is 8?", "what is 9?"]
    assert all(len(row["negatives"]) == 2 for row in read(tmp_path / "dropped.jsonl"))


def test_a_corpus_that_is_given_is_searched_beside_the_pairs_documents(tmp_path, source_of, make_embedder):
    rows, embedder = pair_rows(4), make_embedder()
    others = [{"text": f"{n} is that"} for n in range(6)] + [{"text": "0 is this"}, {"text": "what is 1?"}]
    write_json_lines(tmp_path / "corpus.jsonl", others)
    pool = read_pool(source_of(rows), (str(tmp_path / "corpus.jsonl"),), "text")
    assert pool.corpus == [*(row["text"] for row in others), "1 is this", "2 is this", "3 is this"]
    mine_source(source_of(rows), Teacher(embedder), tmp_path / "out", Mining(k=5, at_least=5), pool=pool)
    for row in read(tmp_path / "out" / "mined.jsonl"):
        own = {other["document"] for other in rows if other["query"] == row["query"]}
        assert row["negatives"] == expected_negatives(embedder, row["query"], own, pool.corpus, 5)
        assert row["query"] not in row["negatives"], "its own text is in the corpus"


def test_a_retrieval_set_is_mined_in_its_own_corpus(tmp_path, make_embedder):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_json_lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": f"{n}", "text": "is this"} for n in range(9)])
    write_json_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"what is {n}?"} for n in range(3)])
    judgements = ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q0\td5\t2", "q1\td1\t1", "q2\td2\t0"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(judgements) + "\n")
    embedder = make_embedder()
    report = mine_source(
        PairSource(name="beir", files=(str(folder),)), Teacher(embedder), tmp_path / "out", Mining(k=4, at_least=4)
    )
    assert (report.facts["pairs"], report.facts["queries"], report.facts["documents"]) == (3, 2, 9)
    corpus = [f"{n} is this" for n in range(9)]
    for row in read(tmp_path / "out" / "mined.jsonl"):
        own = {"what is 0?": {corpus[0], corpus[5]}, "what is 1?": {corpus[1]}}[row["query"]]
        assert row["negatives"] == expected_negatives(embedder, row["query"], own, corpus, 4)


@pytest.mark.shared_data
def test_scifact_is_mined_as_brute_force_mines_it(tmp_path, shared_data, bag_of_words):
    source = PairSource(name="scifact", files=(str(shared_data / "mteb" / "scifact"),), split="train")
    mine_source(source, Teacher(bag_of_words), tmp_path, Mining(k=20, at_least=20))
    pool = read_pool(source)
    queries_QD, corpus_MD = (bag_of_words.embed(texts).astype(np.float64) for texts in (pool.queries, pool.corpus))
    scores_QM = queries_QD @ corpus_MD.T
    assert scores_QM.shape == (807, 5183)
    expected = {}
    for query, scores_M in zip(pool.queries, scores_QM.astype(np.float32), strict=True):
        number = pool.queries.index(query)
        own = set(pool.positives.indices[pool.positives.offsets[number] : pool.positives.offsets[number + 1]].tolist())
        ranked = [m for m in np.argsort(-scores_M, kind="stable").tolist() if m not in own][:20]
        expected[query] = [pool.corpus[m] for m in ranked]
    mined = read(tmp_path / "mined.jsonl")
    assert len(mined) == 919
    assert all(row["negatives"] == expected[row["query"]] for row in mined)


def test_a_reranker_is_asked_about_what_the_teacher_found(tmp_path, source_of, make_embedder):
    asked: list[tuple[str, str]] = []

    def score(pairs):
        asked.extend(pairs)
        return [float(document.startswith("7")) for _, document in pairs]

    rows = [{"query": f"what is {n}?", "document": f"{n} is this"} for n in range(10)]
    mine_source(source_of(rows), Teacher(make_embedder()), tmp_path, Mining(k=7), reranker=Reranker("sevens", score))
    found = {row["query"]: row["negatives"] for row in read(tmp_path / "mined.jsonl")}
    assert all("7 is this" not in negatives for query, negatives in found.items() if query != "what is 7?")
    assert {(row["query"], row["document"]) for row in rows} <= set(asked)


# --- after a kill -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("blocks_before", [0, 1, 3])
def test_a_killed_run_goes_on_after_its_last_block(
    tmp_path, source_of, make_embedder, monkeypatch, approximate, blocks_before
):
    if approximate:
        pytest.importorskip("faiss")
    monkeypatch.setattr(mining, "QUERIES_PER_BLOCK", 25)
    source, config = source_of(pair_rows(90)), Mining(k=5, at_least=0, search="approximate" if approximate else "exact")
    mine_source(source, Teacher(make_embedder()), tmp_path / "straight", config)
    searched: list[int] = []
    search = mining.mine_negatives

    def breaking(queries_RD, *given, **named):
        if len(searched) == blocks_before:
            raise KeyboardInterrupt
        searched.append(len(queries_RD))
        return search(queries_RD, *given, **named)

    embedder = make_embedder()
    with monkeypatch.context() as patch:
        patch.setattr(mining, "mine_negatives", breaking)
        with pytest.raises(KeyboardInterrupt):
            mine_source(source, Teacher(embedder), tmp_path / "killed", config)
    assert not (tmp_path / "killed" / "mined.jsonl").exists()
    num_embedded = len(embedder.embedded)
    steps: list[int] = []
    mine_source(
        source,
        Teacher(embedder),
        tmp_path / "killed",
        config,
        progress=lambda what, done, total: steps.append(done) if what == "searching" else None,
    )
    assert steps[0] == 25 * blocks_before, "finished blocks are not searched again"
    assert len(embedder.embedded) == num_embedded
    for name in ("mined.jsonl", "dropped.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.mark.parametrize("change", ["teacher", "config", "pairs", "task"])
def test_what_another_run_left_is_not_used(tmp_path, source_of, make_embedder, monkeypatch, change):
    monkeypatch.setattr(mining, "QUERIES_PER_BLOCK", 10)
    rows, config = pair_rows(30), Mining(k=8, at_least=0)
    with monkeypatch.context() as patch:
        patch.setattr(mining, "_write", _killed)
        with pytest.raises(KeyboardInterrupt):
            mine_source(source_of(rows), Teacher(make_embedder()), tmp_path / "out", config)
    embedder = make_embedder("words-2") if change == "teacher" else make_embedder()
    if change == "config":
        config = Mining(k=8, at_least=0, guard=0.5)
    if change == "pairs":
        rows = rows[3:]
    teacher = Teacher(embedder, query_task="clustering") if change == "task" else Teacher(embedder)
    for out in ("out", "fresh"):
        mine_source(source_of(rows), teacher, tmp_path / out, config)
    assert (tmp_path / "out" / "mined.jsonl").read_bytes() == (tmp_path / "fresh" / "mined.jsonl").read_bytes()


def _killed(*_):
    raise KeyboardInterrupt


# --- random negatives -------------------------------------------------------------------------------------------------


def test_random_negatives_need_no_teacher(tmp_path, source_of):
    rows = pair_rows(20)
    report = draw_source(source_of(rows), tmp_path / "out", 7, seed=3)
    mined = read(tmp_path / "out" / "mined.jsonl")
    assert [{key: row[key] for key in rows[0]} for row in mined] == rows
    for row in mined:
        own = {other["document"] for other in rows if other["query"] == row["query"]}
        assert len(set(row["negatives"])) == len(row["negatives"]) == 7
        assert not own & set(row["negatives"])
        assert not {"positive_score", "negative_scores"} & row.keys()
    draw_source(source_of(rows), tmp_path / "again", 7, seed=3)
    assert read(tmp_path / "again" / "mined.jsonl") == mined
    draw_source(source_of(rows), tmp_path / "other", 7, seed=4)
    assert read(tmp_path / "other" / "mined.jsonl") != mined
    assert (report.facts["random"], report.facts["mined"], report.facts["dropped"]) == (7, 30, 0)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_too_small_a_corpus_is_refused_before_the_work(tmp_path, source_of, make_embedder):
    embedder, out = make_embedder(), tmp_path / "out"
    rows = [{"query": f"q {n}", "document": f"d {n % 7}"} for n in range(50)]
    with pytest.raises(LongspanError) as caught:
        mine_source(source_of(rows), Teacher(embedder), out, Mining(at_least=7))
    assert caught.value.what == "7 distinct documents cannot give 7 negatives to each query"
    assert caught.value.where == str(out)
    assert "larger corpus" in caught.value.remedy
    with pytest.raises(LongspanError, match="7 distinct documents cannot give 9"):
        draw_source(source_of(rows), out, 9)
    with pytest.raises(LongspanError, match="0 negatives are none"):
        draw_source(source_of(rows), out, 0)
    with pytest.raises(LongspanError, match="no pairs to mine"):
        mine_source(source_of([]), Teacher(embedder), out)
    assert embedder.embedded == []
    assert not out.exists()


def test_a_file_that_is_read_is_not_written_over(tmp_path, source_of, make_embedder):
    with pytest.raises(LongspanError, match="would be overwritten"):
        mine_source(source_of(pair_rows(30), "mined"), Teacher(make_embedder()), tmp_path)


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path, source_of, make_embedder):
    pool = Pool.of((row["query"], row["document"]) for row in pair_rows(30))
    with pytest.raises(LongspanError, match="has changed"):
        mine_source(source_of(pair_rows(30)[1:]), Teacher(make_embedder()), tmp_path / "out", pool=pool)


def test_a_corpus_without_the_column_is_refused(tmp_path, source_of):
    write_json_lines(tmp_path / "corpus.jsonl", [{"text": "a"}])
    with pytest.raises(LongspanError, match="'document' is missing"):
        read_pool(source_of(pair_rows(3)), (str(tmp_path / "corpus.jsonl"),))


def test_mined_rows_are_prepared_and_drawn(tmp_path, source_of, make_embedder, small_tokenizer):
    """The way from mining to a batch: the columns have the names that `prepare` reads."""
    from longspan.data.prepare import prepare
    from longspan.data.shards import PreparedSource

    mine_source(source_of(pair_rows(20)), Teacher(make_embedder()), tmp_path, Mining(k=8))
    source = PairSource(name="mined", files=(str(tmp_path / "mined.jsonl"),), negatives="negatives")
    prepare([source], tmp_path / "data", small_tokenizer)
    opened = PreparedSource(tmp_path / "data" / "mined")
    assert opened.negatives().counts(np.arange(30)).tolist() == [8] * 30
