"""Who sees whom in RecGPT, and its loss against plain cross-entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from catalex.models.recgpt import GridTable, RecGPTModel
from catalex.quantize.fsq import Grid

L, S, V, W = 4, 6, 30, 5
GRID = (7, 2, 2)  # 28 codes: tokens 1 to 28; 0 and 29 are none

both_tables = pytest.mark.parametrize("grid", [None, GRID], ids=["rows", "grid"])


def model(**options: Any) -> RecGPTModel:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "dropout": 0.1, **options}
    made = RecGPTModel(V, L, S, W, **sizes).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, V, (batch, S, L), generator=generator), torch.randn(
        batch, S, L, W, generator=generator
    )


@both_tables
def test_states_do_not_see_later_items(grid: tuple[int, ...] | None) -> None:
    made, (tokens, slices) = model(grid=grid), inputs()
    before = made(tokens, slices)
    for item in range(1, S):
        other, content = tokens.clone(), slices.clone()
        other[:, item:] = 1 + other[:, item:] % (V - 1)
        content[:, item:] += 1
        after = made(other, content)
        torch.testing.assert_close(after[:, :item], before[:, :item])
        assert not torch.allclose(after[:, item], before[:, item])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_last_token_of_an_item_reaches_the_first(bidirectional: bool) -> None:
    made, (tokens, slices) = model(bidirectional=bidirectional), inputs()
    before = made(tokens, slices)
    tokens[:, 2, 3] = 1 + tokens[:, 2, 3] % (V - 1)
    after = made(tokens, slices)
    assert torch.allclose(after[:, 2, 0], before[:, 2, 0]) != bidirectional
    torch.testing.assert_close(after[:, :2], before[:, :2])


@both_tables
def test_padding_changes_nothing(grid: tuple[int, ...] | None) -> None:
    made, (tokens, slices) = model(grid=grid), inputs()
    lengths = torch.tensor([2, 6, 3])
    padded, blank = tokens.clone(), slices.clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:], blank[row, length:] = 0, 0
    found = made.last(padded, blank, lengths)
    assert found.shape == (3, L, V)
    for row, length in enumerate(lengths.tolist()):
        alone = made.last(
            tokens[row : row + 1, :length], slices[row : row + 1, :length], lengths[row : row + 1]
        )
        torch.testing.assert_close(found[row], alone[0], rtol=1e-4, atol=1e-5)


def test_the_auxiliary_stream_can_be_left_out() -> None:
    tokens, slices = inputs()
    without, plain = model(auxiliary=False), model()
    torch.testing.assert_close(without(tokens, slices), without(tokens, slices + 1))
    assert not torch.allclose(plain(tokens, slices), plain(tokens, slices + torch.randn_like(slices)))


@both_tables
def test_the_loss_is_the_cross_entropy_of_the_next_items_tokens_and_ignores_pads(
    grid: tuple[int, ...] | None,
) -> None:
    made, (tokens, slices) = model(grid=grid), inputs()
    positions = torch.tensor([0, 1, 7, 0])  # row 0: items 0 and 1; row 1: item 1; the last is filling
    targets = torch.randint(1, V, (4, L))
    keep = torch.tensor([True, True, True, False])
    total, count = made.loss(tokens, slices, positions, targets, keep)
    assert int(count) == 3 * L
    logits = F.linear(made(tokens, slices), made.head())
    slow = [
        F.cross_entropy(logits[row, item], target)
        for (row, item), target in zip(((0, 0), (0, 1), (1, 1)), targets[:3], strict=True)
    ]
    torch.testing.assert_close(total / count, torch.stack(slow).mean())
    targets[3] = 1
    torch.testing.assert_close(made.loss(tokens, slices, positions, targets, keep)[0], total)


def test_rows_of_a_grid_are_those_of_the_numbers_of_its_codes() -> None:
    torch.manual_seed(0)
    table, first = GridTable(V, 16, GRID, 1), 1
    values = Grid(GRID).values(torch.arange(28))  # (28, 3), another way to the numbers of a code
    digits = ((values + 1) * torch.tensor([n // 2 for n in GRID])).round().long()
    x = sum(table.values.weight[offset + digits[:, j]] for j, offset in enumerate((0, 7, 9)))
    rows = table()
    assert rows.shape == (V, 16)
    torch.testing.assert_close(rows[first : first + 28], x + table.narrow(F.gelu(table.widen(table.norm(x)))))
    torch.testing.assert_close(rows[[0, 29]], table.others)


def test_with_a_grid_a_code_that_was_never_a_target_is_likelier_beside_one_that_was() -> None:
    """Token 2 alone is trained. Token 3 shares two of its three numbers, token 25 none."""

    def logits(grid: tuple[int, ...] | None) -> torch.Tensor:
        made, (tokens, slices) = model(grid=grid), inputs()
        optimizer = torch.optim.Adam(made.parameters(), 0.01)
        for _ in range(30):
            total, count = made.loss(
                tokens, slices, torch.arange(18), torch.full((18, L), 2), torch.ones(18, dtype=torch.bool)
            )
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.step()
        return made.last(tokens, slices, torch.full((3,), S)).detach().mean((0, 1))

    digits = GridTable(V, 8, GRID, 1).digits
    assert [int((digits[token - 1] == digits[1]).sum()) for token in (3, 25)] == [2, 0]
    shared, rows = logits(GRID), logits(None)
    assert shared[3] > shared[25] + 2
    assert abs(rows[3] - rows[25]) < 2


def test_a_tied_head_is_the_table() -> None:
    for grid in (None, GRID):
        tied, apart = model(grid=grid, tied=True), model(grid=grid)
        assert tied.head is tied.table
        assert apart.head is not apart.table
        tokens, slices = inputs()
        logits = tied.last(tokens, slices, torch.full((3,), S))
        torch.testing.assert_close(logits, tied(tokens, slices)[:, -1] @ tied.table().T)
