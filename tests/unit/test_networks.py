"""The tiny world's networks."""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_apprentice.networks.preconditioning import karras_sigmas
from comfyui_apprentice.networks.tiny_autoencoder import TinyAutoencoder
from comfyui_apprentice.networks.tiny_text import END, MAX_TOKENS, START, UNKNOWN, Vocabulary
from comfyui_apprentice.networks.tiny_unet import Denoiser, TinyControlNet, TinyUNet, heun
from comfyui_apprentice.world.weights import FOLDER, load_autoencoder, load_oracle, load_text, load_unet, students


class Gaussian:
    """The exact denoiser of data N(m, s^2): D = m + s^2 / (s^2 + sigma^2) (x - m)."""

    mean, std = 0.3, 0.5

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s2 = self.std**2
        return self.mean + s2 / (s2 + sigma.view(-1, 1, 1, 1) ** 2) * (x - self.mean)


def exact_flow(noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Where the probability flow of that Gaussian ends: x = m + (x_T - m) s / sqrt(s^2 + sigma^2)."""
    g = Gaussian()
    return g.mean + (noise * sigma - g.mean) * g.std / math.sqrt(g.std**2 + sigma**2)


def test_karras_sigmas_are_edm_equation_5() -> None:
    sigmas = karras_sigmas(5, 0.002, 80.0)
    i = torch.arange(5, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigmas[:-1], expected.float())
    assert sigmas[-1] == 0


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_solvers_converge_to_the_closed_form_of_a_gaussian(solver: str) -> None:
    from comfyui_apprentice.world.recipe.sampling import dpmpp_2m

    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def error(steps: int) -> float:
        sigmas = karras_sigmas(steps, 0.002, 80.0)
        end = heun(Gaussian(), noise, sigmas) if solver == "heun" else dpmpp_2m(Gaussian(), noise * 80.0, sigmas)[0]
        return float((end - exact_flow(noise, 80.0)).abs().max())

    assert error(60) < 5e-3
    assert error(80) < error(20) / 3


def test_denoiser_is_edm_table_1() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            self.seen = x, timesteps
            return torch.full_like(x, 2.0)

    network, x, sigma = Constant(), torch.randn(2, 3, 2, 2), torch.tensor([0.7, 30.0])
    out = Denoiser(network, 0.5)(x, sigma, torch.zeros(2, 1, 1))
    s, d = sigma.view(-1, 1, 1, 1).double(), 0.5
    expected = d**2 / (s**2 + d**2) * x.double() + s * d / (s**2 + d**2).sqrt() * 2
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.seen[0].double(), x.double() / (s**2 + d**2).sqrt(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.seen[1], sigma.log() / 4)


def test_a_controlnet_that_starts_at_its_unet_changes_nothing() -> None:
    torch.manual_seed(0)
    unet, control = TinyUNet().eval(), TinyControlNet().eval()
    control.start_at(unet)
    text, words = load_text()
    x, t, context = torch.randn(2, 32, 8, 8), torch.zeros(2), text(words.encode(["red heart", "cat"]))
    residuals = control(x, torch.rand(2, 3, 64, 64), t, context)
    torch.testing.assert_close(unet(x, t, context, control=residuals), unet(x, t, context))


def test_vocabulary_ignores_case_and_punctuation_and_marks_the_unknown() -> None:
    words = Vocabulary(["red", "heart"])
    ids = words.encode(["Red, HEART!", "red zebra"])
    assert ids.shape == (2, MAX_TOKENS)
    first, second = words.word_ids("red heart")
    assert ids[0, :4].tolist() == [START, first, second, END]
    assert ids[1, 2] in (UNKNOWN, END)


def test_autoencoder_restores_a_picture() -> None:
    model = load_autoencoder()
    images = torch.full((1, 3, 64, 64), -0.5)
    images[:, 0, 16:48, 16:48] = 0.8
    with torch.no_grad():
        latents = model.encode(images)
        assert latents.shape == (1, 32, 8, 8)
        assert (model.decode(latents) - images).abs().mean() < 0.06
    assert isinstance(model, TinyAutoencoder)


def test_weights_are_small_and_all_there() -> None:
    names = {p.stem for p in FOLDER.glob("*.safetensors")}
    assert {"autoencoder", "teacher", "text", "student_consistency", "oracle", "judge", "control", "reference"} <= names
    assert sum(p.stat().st_size for p in FOLDER.glob("*.safetensors")) < 40 * 2**20
    assert students()[0] == "consistency"


def prompted(network: TinyUNet, sigma: float, prompts: list[str]) -> torch.Tensor:
    text, words = load_text()
    noise = torch.randn(len(prompts), 32, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        context = text(words.encode(prompts))
        latents = Denoiser(network)(noise * sigma, torch.full((len(prompts),), sigma), context)
        return ((load_autoencoder().decode(latents) + 1) / 2).clamp(0, 1).movedim(1, -1)


def test_student_draws_what_both_judges_recognise_in_one_step() -> None:
    """Each picture fits its own prompt better than every other one's, by the gate and by the judge that no gate saw."""
    prompts = ["red heart on yellow", "panda face on blue", "purple square on orange", "strawberry on green", "globe on pink"]
    pictures = prompted(load_unet("student_consistency"), 80.0, prompts)
    for name in ("oracle", "judge"):
        oracle = load_oracle(name)
        scores = torch.stack([oracle.score(pictures, [p] * len(prompts)) for p in prompts])
        assert (scores.argmax(0) == torch.arange(len(prompts))).sum() >= 4, name


def test_oracle_scores_do_not_depend_on_the_batch_and_nan_pictures_score_nan() -> None:
    oracle = load_oracle("oracle")
    images = torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    images[3, 0, 0, 0] = float("nan")
    together = oracle.score(images, ["red heart"])
    alone = torch.cat([oracle.score(images[i : i + 1], ["red heart"]) for i in range(5)])
    torch.testing.assert_close(together, alone, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert together.isnan().tolist() == [False, False, False, True, False]
    assert oracle.fingerprint() != load_oracle("judge").fingerprint()


def test_oracle_passes_gradients_to_the_picture() -> None:
    images = torch.rand(1, 64, 64, 3, requires_grad=True)
    load_oracle("oracle").reward(images, ["red heart"]).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
