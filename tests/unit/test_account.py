"""Memory without computing: what is counted, what a run is said to hold, and what is turned down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks.control_memory import Held
from comfyui_apprentice.benchmarks.memory_targets import CARDS, steps_table, table
from comfyui_apprentice.cli.plan import _steps
from comfyui_apprentice.training.account import (
    CONTEXT,
    GIB,
    REWARD,
    SID_FULL,
    Account,
    Job,
    account,
    plan,
    sid_activations,
    turned_down,
    verdict,
)
from comfyui_apprentice.training.lora import checkpoint_blocks
from comfyui_apprentice.training.metering import Live, OnCard, Pass, measured
from comfyui_apprentice.training.recompute import apart
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 1024 * 256 * 4  # bytes of x below


def chain(device: str, layers: int = 8) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(layers)]).to(device).requires_grad_(False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_frozen_layers_in_a_row_hold_two_tensors_at_a_time(device: str) -> None:
    """Of a frozen linear layer nothing is kept but its weight, so a result and the next one are there, and back as many."""
    found = measured(chain(device), torch.zeros(1024, 256, device=device))
    assert found.kept == SIDE and 2 * SIDE <= found.peak <= 4 * SIDE


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_kept_for_the_way_back_is_counted_and_computed_again_it_is_not(device: str) -> None:
    """GELU keeps what goes in."""
    layers = [nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.GELU()) for _ in range(6)]
    blocks = nn.ModuleList([Block(layer) for layer in layers]).to(device).requires_grad_(False)

    def work(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    x = torch.zeros(1024, 256, device=device)
    whole = measured(work, x)
    assert whole.kept == (2 * 6 + 1) * SIDE
    assert checkpoint_blocks(nn.ModuleDict({"blocks": blocks})) == 6
    blocked = measured(work, x)
    assert blocked.kept == 6 * SIDE and blocked.peak < whole.peak


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_live_forgets_what_is_gone() -> None:
    with Live() as live:
        first = torch.ones(1000)
        second = first * 2
        assert (live.now, live.peak) == (8000, 8000)
        view = second[:10]
        del first
        assert live.now == 4000
        del second
        assert live.now == 4000 and view is not None, "a view holds all of it"
        del view
    assert (live.now, live.peak) == (0, 8000)


def test_gradients_of_what_learns_are_not_counted_twice_and_not_left() -> None:
    layer = nn.Linear(2048, 2048, bias=False, device="meta")
    found = measured(layer, torch.zeros(1, 2048, device="meta"), list(layer.parameters()))
    assert layer.weight.grad is None and found.peak < 1.1 * 2048 * 2048 * 4  # the one that is added; the sum was there


def test_attention_on_a_card_writes_no_matrix() -> None:
    q = torch.zeros(1, 4, 2048, 32, device="meta")

    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    written = measured(attend, q).kept
    with OnCard():
        fused = measured(attend, q).kept
    assert written > 4 * 2048 * 2048 * 4 and fused == 4 * 2048 * (32 + 1) * 4


def test_autocast_on_a_card_halves_layers_and_norms_stay_whole() -> None:
    x, layer = torch.zeros(8, 64, device="meta"), nn.Linear(64, 64, device="meta")
    with OnCard(torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16 and (x @ x.T).dtype == torch.bfloat16
        assert F.layer_norm(y, (64,)).dtype == torch.float32 and F.gelu(y).dtype == torch.bfloat16
        assert (x.double() @ x.double().T).dtype == torch.float64


def test_passes_apart_have_the_gradients_of_passes_together_and_hold_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(6)])

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return network(x + sigma + labels.view(-1, 1, 1))

    x, sigma, labels = torch.randn(4, 64, 32), torch.rand(4, 1, 1), torch.arange(4)
    results, peaks = [], []
    for way in (denoise, apart(denoise)):
        start = x.clone().requires_grad_()
        network.zero_grad()

        def both(way=way, start=start) -> None:
            (way(start, sigma, labels) * way(start * 2, sigma, labels)).sum().backward()

        peaks.append(Held().measure(both))
        results.append([start.grad, *(p.grad.clone() for p in network.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))
    assert peaks[1] < peaks[0] / 2
    with torch.no_grad():
        assert torch.allclose(apart(denoise)(x, sigma, labels), denoise(x, sigma, labels), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ accounts


class Sketch:
    """10 GiB in bf16, a LoRA of 1 MiB numbers a rank, activations of 1 GiB a picture."""

    def weights(self, job: Job) -> int:
        return 5 * GIB if job.fp8 else 10 * GIB

    def learned(self, job: Job) -> list[tuple[int, int]]:
        return [(job.rank * 1024, 1024)] if job.method != SID_FULL else [(5 * 1024, 1024 * 1024)]

    def passed(self, job: Job, rows: int, learns: bool) -> Pass:
        one = GIB * job.width * job.height // 2**20
        return Pass(one * rows // (4 if job.checkpointing else 1), one * rows)

    def judged(self, job: Job) -> tuple[int, Pass]:
        return 2 * GIB, Pass(GIB, 3 * GIB)


def test_the_account_is_the_sum_of_its_parts() -> None:
    parts = list(account(Sketch(), Job(rank=64)).parts.values())
    lora = 4 * 64 * 2**20
    # base, two LoRAs, the average, two Adams, one's gradients, nothing of the encoders, activations, CUDA
    assert parts == [10 * GIB, 2 * lora, lora, 4 * lora, lora, 0, (2 + 2 + 1) * GIB // 4 + 2 * GIB - 2 * GIB // 4, CONTEXT]
    assert account(Sketch(), Job()).total == sum(parts)


def test_passes_that_are_there_together_are_added() -> None:
    plain = Job(checkpointing=False, guided=(False, False, False))
    assert sid_activations(Sketch(), plain) == 3 * GIB  # generator, fake score, teacher
    assert sid_activations(Sketch(), replace(plain, guided=(True, True, True))) == 5 * GIB
    assert sid_activations(Sketch(), replace(plain, guided=(True, True, True), part=2)) == 10 * GIB
    assert sid_activations(Sketch(), replace(plain, varied=True)) == 4 * GIB
    assert sid_activations(Sketch(), Job(guided=(False, False, False))) == GIB // 4 + GIB // 4 + GIB
    one = sid_activations(Sketch(), Job(apart=True, part=4))
    assert GIB < one < 1.1 * GIB, "one picture's, and latents"


def test_other_methods() -> None:
    reward = account(Sketch(), Job(REWARD, rank=16))
    assert reward.parts["VAE and oracle"] == 2 * GIB and reward.parts["activations (blocks computed again)"] == 3 * GIB
    full = account(Sketch(), Job(SID_FULL)).parts
    assert full["student and fake score (fp32)"] == 2 * 4 * 5 * 2**30 and "text encoders, VAE (put away)" in full


def test_an_oracle_beside_sid_counts_with_its_vae_and_its_way_back() -> None:
    plain, pleased = (account(Sketch(), Job(pleased=p)) for p in (False, True))
    assert pleased.total - plain.total == 5 * GIB and pleased.parts["VAE and oracle"] == 2 * GIB


def test_what_is_turned_down_comes_in_order_each_on_top_of_the_last() -> None:
    job = Job(part=8, checkpointing=False, rank=32)
    changes = list(turned_down(job))
    assert [change.partition(" (")[0] for change, _ in changes] == [
        "at_once 1", "gradient_checkpointing on", "pass by pass", "rank 16", "rank 8", "base in fp8", "optimiser adam8bit",
        "optimiser adafactor", "768 x 768", "576 x 576", "512 x 512",
    ]  # fmt: skip
    assert changes[-1][1] == replace(
        job, part=1, checkpointing=True, apart=True, rank=8, fp8=True, optimiser="adafactor", width=512, height=512
    )
    totals = [account(Sketch(), turned).total for _, turned in changes]
    assert totals == sorted(totals, reverse=True)


def test_what_is_turned_down_already_is_not_named() -> None:
    lean = Job(rank=8, apart=True, fp8=True, optimiser="adafactor", width=512, height=512)
    assert list(turned_down(lean)) == []
    assert [change for change, _ in turned_down(replace(lean, method=REWARD, apart=False))] == []


def test_a_plan_stops_where_it_fits_and_says_so() -> None:
    accounted = lambda job: account(Sketch(), job)  # noqa: E731
    steps = plan(Job(part=4), accounted, 14 * GIB)
    assert [step.change.partition(" (")[0] for step in steps] == ["as asked", "at_once 1", "pass by pass"]
    assert steps[-1].account.total <= 14 * GIB < steps[-2].account.total
    said = verdict(steps, 14 * GIB)
    assert "14.0 GiB are free" in said and "at_once 1, pass by pass" in said and said.endswith("GiB.")
    assert verdict(plan(Job(), accounted, 80 * GIB), 80 * GIB).endswith("it fits.")
    assert "smaller model" in verdict(plan(Job(), accounted, GIB), GIB)
    assert steps[-1].as_json()["bytes"] == steps[-1].account.total and steps[0].as_json()["job"]["part"] == 4


def test_an_account_in_words_leaves_out_what_is_next_to_nothing() -> None:
    assert str(Account({"base": 2 * GIB, "crumbs": 1000})) == "2.0 GiB (base 2.0)"


def test_the_page_on_memory_has_the_accounted_tables_and_each_fits_its_card() -> None:
    root = Path(__file__).parents[2]
    results = json.loads((root / "benchmarks" / "results" / "memory-targets.json").read_text(encoding="utf-8"))
    text = (root / "docs" / "memory.md").read_text(encoding="utf-8")
    assert table(results["findings"]) in text and steps_table(results["findings"]) in text
    for name, card in CARDS.items():
        last = results["findings"][name][-1]
        assert last["bytes"] <= card * GIB and last["job"]["width"] == last["job"]["height"] == 1024
    assert CARDS == {"SDXL": 12, "Z-Image": 16, "Flux dev": 24, "Qwen-Image": 24}


@pytest.mark.parametrize("error", [RuntimeError, ZeroDivisionError, AssertionError, KeyError])
@pytest.mark.parametrize(("kind", "said"), [
    ("HiDream", "it can be trained all the same"), ("StableCascade_C", "it can be trained all the same"),
    ("StableCascade_B", "give stage C"), ("SVD_img2vid", "the node says so at once"),
])  # fmt: skip
def test_a_network_that_can_t_be_accounted_is_told_in_words(error: type[Exception], kind: str, said: str) -> None:
    """They take texts that no header tells of, or look at values; the library's own words are left out."""

    class Broken:
        def __getattr__(self, _name: str) -> Any:
            raise error("two sizes")

    with pytest.raises(ValueError, match=rf"^model\.safetensors.*{said}\.$") as told:
        _steps(Broken(), Job(), 0.0, "model.safetensors", kind)
    assert "two sizes" not in str(told.value)


def test_a_packed_base_is_named_and_not_turned_down_to_more() -> None:
    packed = Job(packed=True)
    assert "base (GGUF, frozen)" in account(Sketch(), packed).parts
    assert not any("fp8" in change for change, _ in turned_down(packed))
