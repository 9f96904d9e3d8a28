"""Explore with what users have: every kind of latent, masks, edits, hints, stochastic samplers, texts of several lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.benchmarks.families import SEED, Case
from comfyui_apprentice.benchmarks.tiny_vaes import vae
from torch import Tensor

tiny.start()

from comfyui_apprentice.bridge import sources  # noqa: E402
from comfyui_apprentice.bridge.drafts import draw_drafts  # noqa: E402
from comfyui_apprentice.bridge.explore import Explored, Explorer, Terms  # noqa: E402
from comfyui_apprentice.bridge.prompts import join  # noqa: E402
from comfyui_apprentice.bridge.sources import ModelSource, PictureSource, draft_seed  # noqa: E402
from comfyui_apprentice.samplers.explore import Teacher  # noqa: E402
from comfyui_apprentice.samplers.presets import CUSTOM  # noqa: E402
from families.judges import Brightness  # noqa: E402

PROMPTS = ["a", "b", "c"]


def source(case: Case, sampler: str = "euler", positive: Any = None, name: str = "") -> ModelSource:
    return ModelSource(
        case.student, positive or case.positive, case.negative, CUSTOM, case.drawing(1.0, sampler), None, name
    )  # fmt: skip


def explored(case: Case, sources: Any, latent: Any = None, prompts: list[str] = PROMPTS, **terms: Any) -> Explored:
    given = Terms(**{"seed": SEED, "budget": 12.0, **terms})
    with torch.inference_mode():
        chosen = dict(enumerate(sources))
        return Explorer(chosen, Brightness(), vae(case.family), prompts, latent or case.latent, given).run()


def drawn_again(case: Case, found: Explored, row: int, sampler: str, positive: Any = None, latent: Any = None) -> Tensor:
    """The kept picture by Student Sampler, from its seed, in its batch."""
    drawing = replace(case.drawing(1.0, sampler), seed=found.seeds[row])
    with torch.inference_mode():
        return draw_drafts(
            case.student, positive or case.positive, case.negative, latent or case.latent, CUSTOM, drawing
        )["samples"][row]  # fmt: skip


@pytest.mark.parametrize("family", ["sdxl", "flux", "qwen", "wan21"])
def test_one_draft_is_the_student_samplers_and_more_are_drawn_again_from_their_seeds(family: str) -> None:
    case = Case(family)
    cost = source(case).plan(case.latent, SEED, 1.0).evaluations()
    one = explored(case, [source(case)], budget=cost)
    assert torch.equal(one.latent["samples"], case.drafts["samples"])
    more = explored(case, [source(case)], budget=4 * cost)
    assert len(more.search.tries) == 12
    for row in range(3):
        again = drawn_again(case, more, row, "euler")
        torch.testing.assert_close(more.latent["samples"][row], again, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde", "lcm"])
def test_noise_between_the_steps_is_each_drafts_own(sampler: str) -> None:
    case = Case("sdxl")
    cost = source(case, sampler).plan(case.latent, SEED, 1.0).evaluations()
    found = explored(case, [source(case, sampler)], budget=4 * cost)
    assert any(found.search.tries[i].number for i in found.search.held)
    for row in range(3):
        again = drawn_again(case, found, row, sampler)
        torch.testing.assert_close(found.latent["samples"][row], again, atol=2e-3, rtol=1e-3)  # to rounding: noise differs by 1


def test_an_edit_under_a_mask_keeps_what_the_mask_keeps() -> None:
    case = Case("sdxl")
    samples = torch.randn(case.drafts["samples"].shape, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(3, 1, *[8 * side for side in samples.shape[-2:]])
    mask[..., : mask.shape[-1] // 2] = 1
    latent = {"samples": samples, "noise_mask": mask}
    found = explored(case, [source(case)], latent, denoise=0.6)
    kept = found.latent["samples"][..., samples.shape[-1] // 2 + 1 :]
    torch.testing.assert_close(kept, samples[..., samples.shape[-1] // 2 + 1 :], atol=1e-4, rtol=1e-3)
    assert "noise_mask" in found.latent and not torch.equal(found.latent["samples"], samples)


def test_pictures_of_one_prompt_share_their_drafts_only_where_nothing_else_differs() -> None:
    case = Case("sdxl")
    same = tiny.text("sdxl", 1)
    assert explored(case, [source(case, positive=same)], prompts=["a", "a", "b"]).search.groups.tolist() == [0, 0, 1]
    # Three texts of three pictures: what a picture is told is its own.
    assert explored(case, [source(case)], prompts=["a", "a", "b"]).search.groups.tolist() == [0, 1, 2]
    latent = {"samples": torch.randn(case.drafts["samples"].shape, generator=torch.Generator().manual_seed(6))}
    edits = explored(case, [source(case, positive=same)], latent, prompts=["a", "a", "a"], denoise=0.5)
    assert edits.search.groups.tolist() == [0, 1, 2]


def test_texts_of_several_lengths_are_drawn_each_with_its_own() -> None:
    case = Case("qwen")
    joined = join([tiny.text("qwen", 1, tokens=5 + row, seed=row) for row in range(3)])
    cost = source(case, positive=joined).plan(case.latent, SEED, 1.0).evaluations()
    found = explored(case, [source(case, positive=joined)], budget=3 * cost)
    for row in range(3):
        again = drawn_again(case, found, row, "euler", joined)
        torch.testing.assert_close(found.latent["samples"][row], again, atol=1e-5, rtol=1e-4)


def test_what_was_drawn_for_the_same_batch_and_seed_is_not_drawn_again() -> None:
    case = Case("flux")
    one, latent = source(case), case.latent
    first = explored(case, [one], latent, budget=6.0)
    drawn: list[int] = []
    stock = sources.Easel._draw

    def counted(self: Any, tries: Any, callback: Any) -> None:
        drawn.extend(t.number for t in tries)
        stock(self, tries, callback)

    sources.Easel._draw = counted  # type: ignore[method-assign]
    try:
        second = explored(case, [one], latent, budget=12.0)
        assert len(drawn) == len(second.search.tries) - len(first.search.tries)
        drawn.clear()
        explored(case, [one], latent, budget=12.0, seed=SEED + 1)
        assert len(drawn) == len(second.search.tries)
    finally:
        sources.Easel._draw = stock  # type: ignore[method-assign]


def test_finished_pictures_of_another_size_win_where_they_are_better_and_become_latents() -> None:
    case = Case("sdxl")
    finished = PictureSource(torch.ones(3, 40, 64, 3), 0.0, "white")
    found = explored(case, [source(case), finished], budget=4.0)
    assert all(found.search.tries[i].source == 1 for i in found.search.held)
    assert found.images.shape[1:3] == tuple(8 * side for side in case.latent["samples"].shape[-2:])
    assert found.images.min() > 0.99
    assert found.latent["samples"].shape == case.drafts["samples"].shape


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (lambda: [source(Case("sdxl")), source(Case("flux"))], "draw in different latent spaces"),
        (lambda: [source(Case("sdxl")), PictureSource(torch.ones(4, 8, 8, 3), 0.0)], "4 finished pictures for a batch of 3"),
        (lambda: [replace(source(Case("sdxl")), drawing=replace(Case("sdxl").drawing(), sampler="nobody's"))], "nobody's"),
    ],
)  # fmt: skip
def test_what_cannot_be_one_batch_is_said(asked: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        explored(Case("sdxl"), asked())


def test_variety_falls_back_to_latents_where_the_oracle_shows_no_features() -> None:
    case = Case("sdxl")
    same, latent = tiny.text("sdxl", 1), case.latent
    plain, varied = (
        explored(case, [source(case, positive=same)], latent, ["a"] * 3, budget=8.0, variety=v) for v in (0.0, 100.0)
    )  # fmt: skip

    def spread(found: Explored) -> float:
        flat = torch.nn.functional.normalize(found.latent["samples"].flatten(1), dim=1)
        return float(3 - (flat @ flat.T).triu(1).sum())

    assert spread(varied) > spread(plain)
    assert varied.search.in_hand.sum() <= plain.search.in_hand.sum()


def test_the_seeds_of_drafts_differ_and_fit_into_a_browsers_numbers() -> None:
    seeds = [draft_seed(seed, s, n) for seed in (0, 1, 2**63) for s in range(4) for n in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert draft_seed(2**63, 0, 0) == 2**63 and all(seed < 2**48 for seed in seeds if seed != 2**63)


def test_a_teacher_in_reach_costs_nothing_until_it_is_worth_it() -> None:
    case = Case("sdxl")
    with torch.inference_mode():
        explorer = Explorer(
            {0: source(case)}, Brightness(), vae("sdxl"), PROMPTS, case.latent, Terms(SEED, budget=30.0), Teacher(20.0)
        )  # fmt: skip
        found = explorer.run()
    assert found.search.for_teacher() == [int(found.search.in_hand.argmin())]
    assert found.search.spent.sum() + 20 <= 90


def test_a_videos_latents_are_refused_before_anything_is_drawn() -> None:
    case = Case("wan21")
    frames = torch.zeros(3, case.latent["samples"].shape[1], 2, *case.latent["samples"].shape[3:])
    with pytest.raises(ValueError, match="these latents are videos"):
        explored(case, [source(case)], {"samples": frames})


def test_finished_pictures_alone_need_no_latent_of_their_family() -> None:
    images = torch.rand(6, 40, 64, 4, generator=torch.Generator().manual_seed(1))
    found = explored(Case("flux"), [PictureSource(images, 0.0)], {"samples": torch.zeros(3, 4, 8, 8)}, budget=0.0)
    assert found.images.shape == (3, 40, 64, 3) and found.latent["samples"].shape == (3, 16, 5, 8)


def test_a_word_by_hand_is_about_one_picture_and_not_another_in_its_place() -> None:
    case, given = Case("sdxl"), torch.rand(3, 40, 64, 3, generator=torch.Generator().manual_seed(1))
    keys = [explored(case, [PictureSource(each, 0.0)], budget=0.0).keys for each in (given, given, given.flip(1))]
    assert keys[0] == keys[1] and not set(keys[0]) & set(keys[2])
    over = [{"samples": torch.full_like(case.drafts["samples"], value)} for value in (0.5, 0.5, 0.6)]
    keys = [explored(case, [source(case)], each, denoise=0.5, budget=4.0).keys for each in over]
    assert keys[0] == keys[1] and not set(keys[0]) & set(keys[2])


def _own_noise(model: Any, x: Tensor, sigmas: Tensor, noise_sampler: Any = None, **given: Any) -> Tensor:
    """Another pack's sampler, which draws noise of its own."""
    from comfy.k_diffusion.sampling import sample_euler_ancestral

    given = {key: given[key] for key in ("extra_args", "callback", "disable")}
    return sample_euler_ancestral(model, x, sigmas, **given)


def test_where_the_whole_batch_must_be_drawn_its_other_pictures_are_kept_for_later() -> None:
    import comfy.samplers

    case = Case("sdxl")
    own = replace(source(case), drawing=replace(case.drawing(1.0), sampler=comfy.samplers.KSAMPLER(_own_noise)))
    cost = own.plan(case.latent, SEED, 1.0).evaluations()
    found = explored(case, [own], budget=5 * cost)
    spent = found.latent["apprentice"].nfe
    assert len(found.search.tries) == 15 and sum(spent) == pytest.approx(15 * cost)
    row = next(row for row, i in enumerate(found.search.held) if found.search.tries[i].number)
    drawing = replace(own.drawing, seed=found.seeds[row])
    with torch.inference_mode():
        again = draw_drafts(case.student, case.positive, case.negative, case.latent, CUSTOM, drawing)["samples"][row]
    torch.testing.assert_close(found.latent["samples"][row], again, atol=1e-5, rtol=1e-4)


def test_what_a_guider_tells_the_pictures_decides_who_may_be_exchanged() -> None:
    from comfyui_apprentice.bridge.guiders import stock_guider

    case, same = Case("sdxl"), tiny.text("sdxl", 1)
    for told, groups in ((case.positive, [0, 1, 2]), (same, [0, 0, 0])):
        guided = replace(case.drawing(1.0), guider=stock_guider(case.student, told, case.negative, 1.0))
        found = explored(case, [replace(source(case, positive=same), drawing=guided)], prompts=["a"] * 3, budget=4.0)
        assert found.search.groups.tolist() == groups


def test_after_many_rounds_the_board_still_shows_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_apprentice.bridge import board
    from comfyui_apprentice.nodes.explore import ApprenticeExplore

    monkeypatch.setattr(board, "_FILES", 4)
    case = Case("sdxl")
    given = {
        "oracle": [Brightness()], "vae": [vae("sdxl")], "source_1": [source(case)], "prompt": PROMPTS,
        "latent_image": [case.latent], "seed": [SEED], "spend": ["budget"], "value": [15.0], "most": [0.0],
        "variety": [0.0], "denoise": [1.0],
    }  # fmt: skip
    with torch.inference_mode():
        shown = ApprenticeExplore.execute(**given).ui["apprentice_board"][0]["pictures"]
        assert len(shown) == 3 and all(picture["draft"] for picture in shown)
        with pytest.raises(ValueError, match="source_1 is a list of 2"):
            ApprenticeExplore.execute(**{**given, "source_1": given["source_1"] * 2})
