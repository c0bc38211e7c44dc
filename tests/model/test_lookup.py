"""Rows of a table: the gradient is the same whether or not there is one to be added to."""

import pytest
import torch
from torch.nn import functional

from longspan.model.lookup import rows_of

IDS = torch.tensor([3, 1, 3, 0, 3, 6])


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_add_up(tied):
    """Tied: the table is also a factor of something else, as the masked language model's is."""
    table = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = table.clone().requires_grad_(), table.clone().requires_grad_()
    for number in range(3):
        directions = torch.randn(len(IDS), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        for each, rows in ((found, rows_of(found, IDS)), (expected, functional.embedding(IDS, expected))):
            loss = (rows * directions).sum()
            if tied:
                loss = loss + (rows @ each.T).square().sum()
            loss.backward()
        assert found.grad is not None
        assert not found.grad.is_sparse
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-13, atol=1e-13)


def test_a_row_that_is_not_there():
    with pytest.raises(IndexError):
        rows_of(torch.zeros(7, 4, requires_grad=True), torch.tensor([7]))
