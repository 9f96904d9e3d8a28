"""One prompt a picture: picture i is drawn as from line i alone, in every family, whatever the lengths of the texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_apprentice.benchmarks import families
from comfyui_apprentice.benchmarks import tiny_families as tiny
from comfyui_apprentice.bridge.drafts import draw_drafts
from comfyui_apprentice.bridge.drawing import Drawing
from comfyui_apprentice.bridge.prompts import KEY, groups, join
from comfyui_apprentice.bridge.teacher import improve
from comfyui_apprentice.samplers.presets import CUSTOM
from torch import Tensor

TOKENS = (7, 12, 7, 5)
EULER = Drawing(2, 2.0, "euler", "simple", 3)
ROUNDING = 1e-4  # of the largest value of the latents


def lines(name: str, tokens: tuple[int, ...] = TOKENS) -> list[Any]:
    """A conditioning a line, as a CLIP gives them."""
    return [tiny.text(name, 1, length, seed=i) for i, length in enumerate(tokens)]


def alone(name: str, row: int, positive: Any, negative: Any = None) -> Tensor:
    """Picture ``row`` by the stock sampler from a conditioning of its own, with its noise."""
    latent = {**tiny.empty(name, 1), "batch_index": [row]}
    return tiny.stock(tiny.model(name), latent, positive, negative or tiny.text(name, seed=9), seed=3)[0]


def drafts(name: str, positive: Any, negative: Any = None, model: Any = None) -> dict[str, Any]:
    with torch.inference_mode():
        return draw_drafts(
            model or tiny.model(name), positive, negative or tiny.text(name, seed=9), tiny.empty(name, len(TOKENS)), CUSTOM, EULER
        )


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) <= ROUNDING * float(expected.abs().max())


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_picture_is_drawn_as_from_its_own_line_alone(name: str) -> None:
    own, count = lines(name), tiny.Count()
    drawn = drafts(name, join(own), model=count.on(tiny.model(name)))
    assert count.rows == 2 * 2 * len(TOKENS), "guidance and two steps a picture, and nothing for the passes"
    for row, line in enumerate(own):
        assert_close(drawn["samples"][row], alone(name, row, line))


@pytest.mark.parametrize("name", ["sdxl", "flux", "zimage", "qwen"])
def test_part_of_a_batch_and_prompts_for_both_sides(name: str) -> None:
    own, against = lines(name), lines(name, (6, 6, 9, 9))
    batch = drafts(name, join(own))
    with torch.inference_mode():
        found = improve(tiny.model(name), join(own), join(against), batch, [3, 1], "regenerate", 1.0, EULER)["samples"]
    for row in (1, 3):
        assert_close(found[row], alone(name, row, own[row], against[row]))
    assert torch.equal(found[0], batch["samples"][0])


@pytest.mark.parametrize("name", ["sd3", "chroma", "lumina2", "wan21"])
def test_the_joined_text_is_no_longer_than_the_longest(name: str) -> None:
    joined = join(lines(name, (7, 11, 13, 17, 19, 23)))
    assert joined[0][0].shape[:2] == (6, 23)


@pytest.mark.parametrize("name", ["sdxl", "flux", "zimage"])
def test_texts_of_one_length_are_one_tensor_as_ever(name: str) -> None:
    own = lines(name, (7, 7, 7))
    ((text, options),) = join(own)
    assert KEY not in options and torch.equal(text, torch.cat([line[0][0] for line in own]))
    assert groups((join(own),), [2, 0]) == [[2, 0]]
    for key, value in options.items():
        assert value is None or torch.equal(value, torch.cat([line[0][1][key] for line in own]))


def test_another_sampler_is_told_instead_of_drawing_other_pictures() -> None:
    for name in ("sdxl", "flux", "zimage", "qwen"):
        with pytest.raises(ValueError, match=r"texts of different lengths.*use Student Sampler"):
            tiny.stock(tiny.model(name), tiny.empty(name, 4), join(lines(name)), tiny.text(name))


def test_pieces_of_clip_are_repeated_for_other_samplers_and_drawn_exactly_by_ours() -> None:
    rng = torch.Generator().manual_seed(0)
    pieces = [[[torch.randn(1, 77 * n, 768, generator=rng), {"pooled_output": None}]] for n in (1, 2, 3)]
    ((text, options),) = join(pieces)
    assert text.shape == (3, 77 * 6, 768) and "model_conds" not in options
    assert torch.equal(text[1], pieces[1][0][0][0].repeat(3, 1))
    far = [*pieces, [[torch.randn(1, 77 * 7, 768), {}]]]
    assert join(far)[0][0].shape[1] == 77 * 7, "no common length in reach"


def test_several_entries_of_a_prompt_stay_several() -> None:
    """Two halves of the way, as hooks that are scheduled make them."""
    own = []
    for seed, tokens in ((0, 7), (1, 7), (2, 12), (3, 7)):
        first, second = (tiny.text("sd15", 1, tokens, seed=10 * seed + half)[0] for half in (1, 2))
        own.append([[first[0], {**first[1], "start_percent": 0.0, "end_percent": 0.5}],
                    [second[0], {**second[1], "start_percent": 0.5, "end_percent": 1.0}]])  # fmt: skip
    drawn = drafts("sd15", join(own))["samples"]
    for row, line in enumerate(own):
        assert_close(drawn[row], alone("sd15", row, line))
        assert not torch.allclose(drawn[row], alone("sd15", row, line[:1]), atol=1e-3)
    assert len(join(own[:2])) == 2 and KEY not in join(own[:2])[0][1]


def test_what_nodes_add_to_joined_prompts_goes_to_every_picture() -> None:
    from comfy_extras.nodes_flux import FluxGuidance

    import nodes as core

    own = lines("flux")
    guided = FluxGuidance.execute(join(own), 1.5).args[0]
    drawn = drafts("flux", guided)["samples"]
    for row, line in enumerate(own):
        assert_close(drawn[row], alone("flux", row, [[line[0][0], {**line[0][1], "guidance": 1.5}]]))
    own, mask = lines("sd15"), torch.zeros(4, 8, 8)
    for row in range(4):
        mask[row, : 2 * row + 1] = 1
    (masked,) = core.ConditioningSetMask().append(join(own), mask, "default", 0.7)
    both = masked + join(lines("sd15", (5, 5, 6, 6)))  # Conditioning (Combine)
    drawn = drafts("sd15", both)["samples"]
    for row in range(4):
        ((text, options),) = own[row]
        first = [[text, {**options, "mask": mask[row : row + 1], "set_area_to_bounds": False, "mask_strength": 0.7}]]
        assert_close(drawn[row], alone("sd15", row, first + lines("sd15", (5, 5, 6, 6))[row]))


def test_texts_that_a_node_has_changed_are_zeros_or_a_sentence() -> None:
    import nodes as core

    joined = join(lines("sd15"))
    (zeroed,) = core.ConditioningZeroOut().zero_out(joined)
    assert drafts("sd15", tiny.text("sd15", 4), zeroed)["samples"].isfinite().all()
    (mixed,) = core.ConditioningAverage().addWeighted(joined, tiny.text("sd15"), 0.5)
    with pytest.raises(ValueError, match="changes texts of different lengths"):
        drafts("sd15", mixed)


def test_omnigen2_draws_texts_of_one_length_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI counts its tokens over the whole batch, so that several texts are an error in the stock sampler."""
    network = {
        "image_model": "omnigen2", "in_channels": 16, "hidden_size": 96, "num_layers": 1, "num_refiner_layers": 1,
        "num_attention_heads": 2, "num_kv_heads": 2, "multiple_of": 32, "axes_dim_rope": (16, 16, 16), "text_feat_dim": 32,
        "timestep_scale": 1000.0,
    }  # fmt: skip
    monkeypatch.setitem(tiny.FAMILIES, "omnigen2", tiny.Family(("Omnigen2",), network, channels=16, masked=True))
    case = families.Case("omnigen2")
    lines = [tiny.text("omnigen2", 1, 7, seed=row) for row in range(3)]
    with torch.inference_mode():
        drawn = draw_drafts(case.student, join(lines), case.negative, case.latent, CUSTOM, case.drawing())["samples"]
    for row, line in enumerate(lines):
        alone = {**tiny.empty("omnigen2", 1), "batch_index": [row]}
        expected = tiny.stock(case.student, alone, line, case.negative, seed=families.SEED, steps=families.STEPS)
        assert families.close(drawn[row], expected[0]) == ""
