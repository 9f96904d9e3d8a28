"""A LoRA that begins at a change of weights: against the exact decomposition, layer by layer."""

from __future__ import annotations

import pytest
import torch
from comfyui_apprentice.training.lora import Adapters, Lora, adaptable
from comfyui_apprentice.training.warm_start import begin_at, decomposed, learned, recompressed
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.out = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).tanh().mean((2, 3)))


def change_between(after: nn.Module, before: nn.Module) -> dict[str, Tensor]:
    ends = [adaptable(network) for network in (after, before)]
    return {name: (ends[0][name].weight - ends[1][name].weight).detach() for name in ends[0]}


def new_lora(net: nn.Module, rank: int) -> tuple[Adapters, Lora]:
    adapters = Adapters(net, ("generator",), rank, seed=4)
    return adapters, adapters.of["generator"]


def test_at_full_rank_the_adapted_network_is_the_other_one() -> None:
    net, other, x = Net(), Net(1), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        other.conv.bias.copy_(net.conv.bias)
        other.out.bias.copy_(net.out.bias)
    adapters, lora = new_lora(net, rank=100)
    assert begin_at(lora, change_between(other, net).get) == pytest.approx(1.0)
    with adapters.on("generator"):
        assert torch.allclose(net(x), other(x), atol=1e-6)


@pytest.mark.parametrize(("shape", "rank"), [((40, 30), 3), ((6, 3, 3, 3), 2), ((900, 700), 5)])
def test_at_a_lower_rank_it_is_the_best_approximation_of_that_rank(shape: tuple[int, ...], rank: int) -> None:
    """Eckart and Young: what is left is what lies beyond the rank's singular values; randomised for large matrices."""
    rng = torch.Generator().manual_seed(2)
    matrix = torch.randn(shape, generator=rng).flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s[0] * 0.6 ** torch.arange(len(s))
    change = ((u * s) @ vh).view(shape)
    tensors, held = recompressed(["layer"], lambda _name: change, rank)
    left = learned(tensors, ["layer"])("layer") - change
    assert float(left.norm()) == pytest.approx(float(s[rank:].norm()), rel=1e-3)
    assert held == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), rel=1e-4)


def test_directions_that_nothing_changes_stay_able_to_learn() -> None:
    """A gradient reaches B where A isn't 0."""
    net = Net()
    _adapters, lora = new_lora(net, rank=4)
    before = [down.detach().clone() for down in lora.down]
    column, row = torch.randn(5, 1), torch.randn(1, 6)
    begin_at(lora, lambda name: column @ row if name == "out" else None)
    place = lora.names.index("out")
    assert torch.allclose(lora.up[place] @ lora.down[place], column @ row, atol=1e-5)
    assert torch.equal(lora.down[place][1:], before[place][1:]) and not bool(lora.up[place][:, 1:].any())
    other = 1 - place
    assert torch.equal(lora.down[other], before[other]) and not bool(lora.up[other].any())


def test_the_randomised_decomposition_is_the_same_every_time_and_leaves_torch_s_own_source_alone() -> None:
    change = torch.randn(800, 600, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    first = decomposed(change, 4)[1]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(decomposed(change, 4)[1], first) and torch.equal(torch.rand(3), expected)


def test_a_long_start_can_be_cancelled_between_layers() -> None:
    asked: list[int] = []

    def cancel() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_at(new_lora(Net(), 2)[1], lambda _name: None, cancel)
