"""Distillation: what a teacher says of a query's document and its mined negatives, learnt beside InfoNCE.

Two losses of a query, both over its own C = 1 + H candidates (the document and its mined negatives) only, so that no
process needs the scores of another:

- `kl`: the divergence KL(p || q) of the student's distribution q = softmax(s / t) from the teacher's
  p = softmax(r / t'), with s the student's cosines, t the temperature of the loss, r the teacher's scores and t' their
  own temperature. What counts is how the teacher ranks the candidates, and how far apart.
- `margin_mse` (Hofstaetter et al., 2020): the mean over the negatives of
  `((s_0 - s_h) - (r_0 - r_h)) ** 2`: the teacher's distances between document and negative themselves, so its scores
  have to be on the scale of cosines.

Axes: n queries of this process, H mined negatives of each, C = 1 + H candidates, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Distillation = Literal["kl", "margin_mse"]


def distillation_loss(
    kind: Distillation,
    queries_nD: Tensor,
    candidates_nCD: Tensor,
    teacher_nC: Tensor,
    temperature: float | Tensor,
    teacher_temperature: float,
) -> Tensor:
    """The sum over the queries, a scalar; in float32 or wider.

    Args:
        queries_nD, candidates_nCD: the student's vectors, which need not be normalised; the document comes first.
        teacher_nC: the teacher's scores.
        temperature: t of `kl`.
        teacher_temperature: t' of `kl`.
    """
    queries_nD, candidates_nCD = (
        normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1) for x in (queries_nD, candidates_nCD)
    )
    student_nC = torch.einsum("nd,ncd->nc", queries_nD, candidates_nCD)
    teacher_nC = teacher_nC.to(student_nC)
    if kind == "margin_mse":
        margins_nH = student_nC[:, :1] - student_nC[:, 1:]
        return (margins_nH - (teacher_nC[:, :1] - teacher_nC[:, 1:])).square().mean(dim=1).sum()
    log_p_nC = (teacher_nC / teacher_temperature).log_softmax(dim=1)
    log_q_nC = (student_nC / temperature).log_softmax(dim=1)
    return (log_p_nC.exp() * (log_p_nC - log_q_nC)).sum()
