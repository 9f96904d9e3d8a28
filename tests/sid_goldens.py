"""The recorded networks and randomness of SiD's goldens, and an iteration from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_apprentice.networks.edm import EDMPrecond, build_edm
from comfyui_apprentice.training.sid_iteration import Draws, Iteration, Objective, Players, edm_players, iterate
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

DATA = Path(__file__).parent / "data" / "sid"
RECORDED = json.loads((DATA / "losses.json").read_text())
GENERATOR, FAKE = "loss_generator_alpha1.0_tmax800.safetensors", "loss_fake_noaug.safetensors"


def networks() -> dict[str, EDMPrecond]:
    weights = load_file(DATA / "loss_weights.safetensors")
    edms = {}
    for name in ("teacher", "fake", "gen"):
        edms[name] = build_edm(RECORDED["loss_weights.safetensors"]["config"])
        edms[name].load_state_dict({k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")})
    return edms


def largest(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def assert_gradients(network: EDMPrecond, recorded: dict[str, Tensor], prefix: str, order: list[str], scale: float) -> None:
    """The recorded gradients of single weights, and the norm of every one but those of key biases (zero but for rounding)."""
    gradients = {name: p.grad for name, p in network.named_parameters()}
    norms = recorded[f"f64.grad_{prefix}_norms"]
    for name, norm in zip(order, norms, strict=True):
        if not name.endswith("qkv.bias"):
            length = 0.0 if gradients[name] is None else gradients[name].norm().item()
            assert length == pytest.approx(norm.item(), rel=2e-5, abs=1e-6 * scale), name
    singles = [key for key in recorded if key.startswith(f"f64.grad_{prefix}.")]
    assert len(singles) >= 5
    for key in singles:
        assert largest(gradients[key.removeprefix(f"f64.grad_{prefix}.")], recorded[key]) < 4e-6 * scale, key


def recorded_players() -> tuple[dict[str, EDMPrecond], Players]:
    nets = networks()
    return nets, edm_players(nets["teacher"], nets["fake"], nets["gen"])


def optimisers(players: Players) -> tuple[Optimizer, Optimizer]:
    return tuple(
        torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.999)) for p in (players.fake_parameters, players.generator_parameters)
    )


def recorded_randomness() -> dict[str, Tensor]:
    recorded, other = load_file(DATA / GENERATOR), load_file(DATA / FAKE)
    return {
        "z": recorded["z"], "u": recorded["u"], "noise": recorded["n"], "labels": recorded["labels"],
        "z_fake": other["z"], "noise_fake": other["n"], "labels_fake": other["labels"], "rnd_normal": other["rnd_normal"],
    }  # fmt: skip


def train_step(
    players: Players, draws: dict[str, Any], objective: Objective, used: tuple[Optimizer, Optimizer] | None = None
) -> Iteration:
    """One iteration from named randomness; that of the fake score's half is the generator's where it isn't there."""
    of = lambda name: draws.get(f"{name}_fake", draws.get(name))  # noqa: E731
    return iterate(
        players, *(used or optimisers(players)), objective, Draws(of("z"), of("noise"), draws["rnd_normal"], of("labels")),
        Draws(draws["z"], draws["noise"], draws["u"], draws.get("labels")),
    )  # fmt: skip
