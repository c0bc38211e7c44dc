"""`longspan curate cluster`: pairs in clusters, for batches that come from one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from longspan.cli.common import at_least_1, declare, load_embedder
from longspan.cli.engine import add_engine, open_engine, say_throughput, show_with


def add(steps: Any) -> None:
    parser = declare(
        steps,
        "cluster",
        _cluster,
        "give every pair the number of a cluster, for batches that come from one",
        "  longspan curate cluster pairs.jsonl --teacher gte-base/ --clusters 100 --at-least 16384 --out clustered\n"
        "  longspan prepare clustered/clustered.jsonl --cluster cluster --out data\n"
        "  longspan train contrastive --data data --out runs/con --set objective.batches_of=cluster",
    )
    parser.add_argument("files", nargs="+", help="files of pairs of one source")
    parser.add_argument("--query", default="query", help="column of the query (%(default)s)")
    parser.add_argument("--document", default="document", help="column of the document (%(default)s)")
    parser.add_argument("--teacher", required=True, help="model whose vectors are clustered: folder or hub id")
    parser.add_argument("--clusters", type=at_least_1, required=True, metavar="COUNT", help="how many to look for")
    parser.add_argument(
        "--at-least",
        type=at_least_1,
        default=1,
        metavar="PAIRS",
        help="give up smaller clusters; the batch size of the training to come, or more (%(default)s)",
    )
    parser.add_argument(
        "--side", choices=("query", "document"), default="document", help="the text that is looked at (%(default)s)"
    )
    parser.add_argument("--task", help="its task (search_query or search_document)")
    parser.add_argument("--max-length", type=int, help="the teacher reads at most this many tokens of a text")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the first centres (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result and its report")
    add_engine(parser)


def _cluster(parsed: argparse.Namespace) -> None:
    from longspan.curate.clustering import CLUSTERED, Clustering, cluster_source
    from longspan.curate.consistency import Teacher
    from longspan.data.source import PairSource
    from longspan.progress import Bars

    values = {"num_clusters": parsed.clusters, "at_least": parsed.at_least, "side": parsed.side, "seed": parsed.seed}
    config = Clustering.parse(values, where="the command line")
    name = Path(parsed.files[0]).name.split(".")[0].replace("*", "files")
    columns = {"query": parsed.query, "document": parsed.document}
    source = PairSource.parse({"name": name, "files": tuple(parsed.files), **columns}, where="the command line (FILES)")
    embedder = load_embedder(parsed.teacher)
    task = parsed.task or f"search_{parsed.side}"
    with Bars("cluster") as bars, open_engine(parsed, embedder, "curate cluster") as engine:
        report = cluster_source(
            source,
            Teacher(embedder, task, task, parsed.max_length),
            parsed.out,
            config,
            engine=engine,
            device=str(embedder.device),
            progress=show_with(bars, engine),
        )
        say_throughput(engine)
    facts = report.facts
    print(
        f"{facts['pairs']:,} pairs in {facts['clusters']:,} clusters of {facts['smallest']:,} to "
        f"{facts['largest']:,}: {parsed.out / CLUSTERED}"
    )
