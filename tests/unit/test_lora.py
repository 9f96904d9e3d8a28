"""Adapters that share one network, their file, recomputed activations, and the chart of losses."""

from __future__ import annotations

import pytest
import torch
from comfyui_apprentice.charts.losses import loss_chart
from comfyui_apprentice.training.lora import Adapters, adaptable, checkpoint_blocks, lora_state_dict
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.runs = nn.Conv2d(4, 4, 3, padding=1), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x + torch.tanh(self.conv(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.blocks = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ModuleList([Block(), nn.Sequential(Block())])
        self.grouped, self.out = nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        x = self.blocks[1](self.blocks[0](x))
        return self.out(self.grouped(x).mean((2, 3)))


def trained(adapters: Adapters, name: str) -> None:
    torch.manual_seed(3)
    for parameter in adapters.of[name].up:
        parameter.data.normal_(0, 0.1)


def test_a_new_adapter_changes_nothing_and_each_is_on_alone() -> None:
    net, x = Net(), torch.randn(2, 3, 8, 8)
    before = net(x).detach()
    adapters = Adapters(net, ("generator", "fake"), rank=2)
    assert set(adapters.of["fake"].names) == {"down", "blocks.0.conv", "blocks.1.0.conv", "out"} == set(adaptable(net))
    with adapters.on("generator"):
        assert torch.equal(net(x), before)
    trained(adapters, "fake")
    with adapters.on("fake"):
        assert not torch.allclose(net(x), before, atol=1e-3)
        with adapters.on(None):
            assert torch.equal(net(x), before)
        assert not torch.allclose(net(x), before, atol=1e-3)
    with adapters.on("generator"):
        assert torch.equal(net(x), before)
    assert not any(p.requires_grad for p in net.parameters())


def test_the_file_says_what_the_adapter_does() -> None:
    """W + up down, at the names of the layers, is the network with the adapter on."""
    net, x = Net(), torch.randn(2, 3, 8, 8)
    adapters = Adapters(net, ("generator",), rank=2)
    trained(adapters, "generator")
    with adapters.on("generator"):
        wanted = net(x)
    lora = adapters.of["generator"]
    tensors = lora_state_dict(lora.state_dict(), lora.names)
    merged = Net()
    for name, layer in adaptable(merged).items():
        down, up = (tensors[f"diffusion_model.{name}.lora_{side}.weight"] for side in ("down", "up"))
        assert tensors[f"diffusion_model.{name}.alpha"].item() == down.shape[0]
        layer.weight.data += (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
    assert torch.allclose(merged(x), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["generator", None])
def test_recomputed_blocks_give_the_same_gradients_with_the_adapter_that_was_on(name: str | None) -> None:
    found = []
    for recompute in (False, True):
        net, x = Net(), torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8).requires_grad_()
        adapters = Adapters(net, ("generator", "fake"), rank=2)
        for one in ("generator", "fake"):
            trained(adapters, one)
        if recompute:
            assert checkpoint_blocks(net, adapters) == 2
        with adapters.on(name):
            y = net(x)
        with adapters.on("fake"):  # the switch has moved on before the backward pass
            y.square().sum().backward()
        found.append([x.grad, *(p.grad for p in adapters.of["generator"].parameters() if p.grad is not None)])
        assert net.blocks[0].runs == (2 if recompute else 1)
    assert len(found[0]) == (9 if name else 1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_network_without_layers_to_adapt_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="distil a full copy"):
        Adapters(nn.Sequential(nn.ReLU()), ("generator",), rank=2)


def test_the_chart_draws_every_loss_and_copes_with_few_points() -> None:
    entries = [{"pictures": 10 * i, "fake": 1.0 / i, "generator": float(i)} for i in range(1, 40)]
    titles = {"fake": "fake", "generator": "generator"}
    full, short = loss_chart(entries, titles), loss_chart(entries[:1], titles)
    assert full.shape == short.shape and full.shape[0] == 1 and full.shape[-1] == 3
    blue = (full[0, ..., 2] - full[0, ..., 0]) > 0.3
    halves = blue.chunk(2)
    assert all(half.sum() > 200 for half in halves) and ((short[0, ..., 2] - short[0, ..., 0]) > 0.3).sum() == 0
