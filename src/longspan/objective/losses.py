"""InfoNCE, equations (1) and (2) of the paper.

Axes: N queries, M candidate documents of the whole batch, H own negatives of each query, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(
    queries_ND: Tensor,
    documents_MD: Tensor,
    labels_N: Tensor,
    temperature: float,
    negatives_NHD: Tensor | None = None,
    masked_NC: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over queries of the cross-entropy of the right document among all candidates.

    `-log(exp(s(q_i, d_i) / t) / (sum_j exp(s(q_i, d_j) / t) + sum_m exp(s(q_i, h_im) / t)))` with s the cosine. Without
    `negatives_NHD` this is equation (1); with them, equation (2), where each query meets its own H hard negatives only.
    To let every query meet every negative, as the released code does, append them to `documents_MD`.

    The direction is query to document only, as in the paper. Vectors need not be normalised.

    Args:
        labels_N: which of the M documents belongs to each query (int64).
        masked_NC: candidates (the M documents, then the H own negatives) that are left out of a query's sum because
            they are right answers too; never the query's own document.

    Returns:
        The sum of losses (not the mean: the caller knows how many queries the global batch has), and the number of
        queries whose own document scores strictly highest.
    """
    queries_ND = normalize(queries_ND, dim=-1)
    scores_NM = queries_ND @ normalize(documents_MD, dim=-1).T / temperature
    if negatives_NHD is not None:
        own_NH = torch.einsum("nd,nhd->nh", queries_ND, normalize(negatives_NHD, dim=-1)) / temperature
        scores_NM = torch.cat([scores_NM, own_NH], dim=1)
    if masked_NC is not None:
        scores_NM = scores_NM.masked_fill(masked_NC, float("-inf"))
    loss = cross_entropy(scores_NM, labels_N, reduction="sum")
    # Not argmax, which lets the first of equals win: a model that maps everything to one vector is right about nothing.
    rivals_N = (scores_NM >= scores_NM.gather(1, labels_N[:, None])).sum(dim=1)
    return loss, (rivals_N == 1).sum()
