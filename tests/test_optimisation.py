"""Muon and AdamW as one optimiser."""

import pytest
import torch

from bartleby.errors import UserError
from bartleby.muon import StackedMuon
from bartleby.optimisation import MuonAdamW, optimise


def _parts(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.nn.Parameter(torch.randn(16, 32, generator=generator))
    bias = torch.nn.Parameter(torch.randn(16, generator=generator))
    return matrix, bias, MuonAdamW([matrix], [bias], lr=1e-2, weight_decay=0.01)


def _step(matrix, bias, optimizer, step: int, rate: float = 1e-2):
    inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(100 + step))
    loss = (inputs @ matrix.T + bias).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimise(optimizer, loss, rate=rate, clip=1.0, step=step)
    return float(loss.detach())


def test_matrix_moves_equally_in_all_directions_and_as_far_as_under_adamw():
    matrix, bias, optimizer = _parts()
    before, bias_before = matrix.detach().clone(), bias.detach().clone()
    left, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    right, _ = torch.linalg.qr(torch.randn(32, 16, generator=torch.Generator().manual_seed(2)))
    matrix.grad = left @ torch.diag(torch.logspace(0, -1.5, 16)) @ right.T
    bias.grad = torch.ones_like(bias)
    optimizer.step()

    moved = (matrix - before * (1 - 1e-4)).detach()  # without weight decay
    singular = torch.linalg.svdvals(moved) / (0.2 * 32**0.5 * 1e-2)
    assert singular.min() > 0.5 and singular.max() < 1.3  # Newton-Schulz is rough
    torch.testing.assert_close(bias.detach(), bias_before * (1 - 1e-4) - 1e-2)


def test_resumed_from_its_state_it_goes_on_exactly():
    matrix, bias, optimizer = _parts()
    for step in range(3):
        _step(matrix, bias, optimizer, step)
    saved = optimizer.state_dict()["state"]
    assert sorted(saved) == [0, 1]
    saved = {i: {name: value.clone() for name, value in s.items()} for i, s in saved.items()}
    weights = matrix.detach().clone(), bias.detach().clone()
    for step in range(3, 6):
        _step(matrix, bias, optimizer, step)

    other_matrix, other_bias, other = _parts(seed=7)
    other.load_state_dict({"state": saved, "param_groups": []})
    with torch.no_grad():
        other_matrix.copy_(weights[0])
        other_bias.copy_(weights[1])
    for step in range(3, 6):
        _step(other_matrix, other_bias, other, step)
    assert torch.equal(other_matrix, matrix)
    assert torch.equal(other_bias, bias)


def test_it_learns():
    matrix, bias, optimizer = _parts()
    losses = [_step(matrix, bias, optimizer, step, rate=0.1) for step in range(60)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_stacked_it_does_what_torchs_muon_does_one_by_one():
    shapes = [(32, 16), (16, 32), (32, 16), (16, 32), (24, 24), (8, 8)]
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    trained = []
    for kind, more in ((torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}), (StackedMuon, {})):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        optimizer = kind(weights, **settings, **more)
        for _ in range(3):
            for weight in weights[:-1]:  # the last one takes no part
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        trained.append((weights, optimizer.state_dict()["state"]))
    (theirs, their_state), (ours, our_state) = trained
    for mine, other in zip(ours, theirs, strict=True):
        # Within what bfloat16 rounds of three updates of 0.2 x 32^0.5 x 1e-2 at most.
        torch.testing.assert_close(mine, other, atol=2e-4, rtol=0)
    assert our_state.keys() == their_state.keys()
    for index, state in our_state.items():
        torch.testing.assert_close(state, their_state[index])


def test_a_gradient_that_is_no_number_changes_nothing():
    matrix, bias, optimizer = _parts()
    before = matrix.detach().clone()
    matrix.grad, bias.grad = torch.full_like(matrix, float("inf")), torch.zeros_like(bias)
    with pytest.raises(UserError, match="the gradient's norm is inf at step 5; what was saved"):
        optimise(optimizer, torch.tensor(1.0), rate=1e-2, clip=1.0, step=4)
    assert torch.equal(matrix, before)
