"""Oracles score as their authors do: weights of the true layout, real photos at odd sizes, two ways of computing."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import blip_by_hand
import golden_weights
import numpy as np
import open_clip
import pytest
import torch
from comfyui_apprentice import oracles
from comfyui_apprentice.benchmarks.layouts import image_reward_shapes, random_weights
from comfyui_apprentice.oracles.base import Oracle
from comfyui_apprentice.oracles.preprocess import CLIP_MEAN, CLIP_STD, floor_offset, resize_and_crop, resize_and_pad, short_side
from comfyui_apprentice.oracles.registry import KINDS, detect, find_kind
from comfyui_apprentice.oracles.tokenizers import CLIP_END, bert_tokens, clip_tokens
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import functional as TF

DATA = Path(__file__).parents[1] / "data" / "oracles"
KEYS = json.loads((DATA / "keys.json").read_text())
GOLDENS = json.loads((DATA / "goldens.json").read_text())
PHOTOS = {name: Image.open(DATA / f"{name}.png").convert("RGB") for name in ("astronaut", "coffee")}
PROMPTS = GOLDENS["prompts"]
# Portrait, landscape, odd by one, smaller than the networks' own size, extreme.
CROPS = [(0, 0, 301, 400), (10, 5, 410, 302), (3, 3, 228, 230), (50, 50, 170, 151), (0, 100, 400, 160)]


def as_image(picture: Image.Image) -> Tensor:
    """ComfyUI's IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


def photos() -> list[Image.Image]:
    return [*PHOTOS.values(), *(p.crop(box) for p in PHOTOS.values() for box in CROPS)]


def golden(salt: str, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return golden_weights.weights(f"{salt}/", shapes)


# --------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("photo", photos(), ids=lambda p: f"{p.width}x{p.height}")
def test_openai_preprocessing_is_open_clips_transform_to_the_bit(photo: Image.Image) -> None:
    theirs = open_clip.image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)(photo)
    torch.testing.assert_close(resize_and_crop(as_image(photo))[0], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("photo", photos(), ids=lambda p: f"{p.width}x{p.height}")
def test_transformers_preprocessing_is_its_own_processors(photo: Image.Image) -> None:
    from transformers import CLIPImageProcessor

    theirs = torch.from_numpy(np.asarray(CLIPImageProcessor(use_fast=False)(photo, return_tensors="np")["pixel_values"][0]))
    ours = resize_and_crop(as_image(photo), 224, floor_offset)[0]
    # Newer processors resize on tensors; they agree with PIL, whose form the authors used, to a level or two of 255.
    assert (ours - theirs).abs().max() < 0.06


@pytest.mark.parametrize("photo", photos(), ids=lambda p: f"{p.width}x{p.height}")
def test_hps_preprocessing_keeps_the_whole_picture_on_black(photo: Image.Image) -> None:
    x = transforms.ToTensor()(photo)
    height, width = x.shape[1:]
    scale = 224 / max(height, width)
    h, w = round(height * scale), round(width * scale)
    x = TF.resize(x, [h, w], transforms.InterpolationMode.BICUBIC, antialias=True) if (h, w) != (height, width) else x
    x = TF.pad(x, [(224 - w) // 2, (224 - h) // 2, 224 - w - (224 - w) // 2, 224 - h - (224 - h) // 2])
    torch.testing.assert_close(resize_and_pad(as_image(photo))[0], TF.normalize(x, CLIP_MEAN, CLIP_STD), rtol=0, atol=1e-5)


def test_pickscore_pixels_are_the_published_ones() -> None:
    for name, expected in GOLDENS["pickscore_pixels"].items():
        pixels = resize_and_crop(as_image(PHOTOS[name]), 224, floor_offset)[0]
        torch.testing.assert_close(pixels.flatten()[expected["idx"]], torch.tensor(expected["values"]), rtol=0, atol=1e-6)


def test_the_long_side_is_cut_off_to_a_whole_number() -> None:
    assert short_side(301, 400, 224) == (224, 297) and short_side(400, 301, 224) == (297, 224)
    assert short_side(9, 9, 224) == (224, 224)


def test_gradient_of_a_resize_is_that_of_its_smooth_form() -> None:
    image = as_image(PHOTOS["coffee"].crop((0, 0, 90, 70))).requires_grad_()
    direction = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (resize_and_crop(image) * direction).sum().backward()
    exact, image.grad = image.grad.clone(), None
    smooth = F.interpolate(image.movedim(-1, 1), (224, 288), mode="bicubic", antialias=True).clamp(0, 1)[..., 32:256]
    (smooth / torch.tensor(CLIP_STD).view(1, 3, 1, 1) * direction).sum().backward()
    torch.testing.assert_close(exact, image.grad)


# ----------------------------------------------------------------------------------------------------- tokens


def test_clip_tokens_are_transformers_and_keep_the_end_when_cut() -> None:
    given = load_file(DATA / "pickscore_tiny.safetensors")
    prompts = [p for name in ("astronaut", "coffee", "chelsea", "rocket") for p in PROMPTS[name]]
    ids = clip_tokens(prompts)
    for ours, theirs, mask in zip(ids, given["input_ids"], given["attention_mask"], strict=True):
        length = int(mask.sum())
        assert torch.equal(ours[:length], theirs[:length]) and (ours[length:] == CLIP_END).all()
    assert clip_tokens(["word " * 200])[0, -1] == CLIP_END


def test_bert_tokens_end_with_sep_also_when_cut() -> None:
    ids, mask = bert_tokens(["A café, naïve!", "very " * 60, ""], 35)
    assert ids[0, :9].tolist() == [101, 1037, 7668, 1010, 15743, 999, 102, 0, 0] and mask[0].sum() == 7
    assert ids[1, -1] == 102 and ids[1, 0] == 101 and mask[1].sum() == 35
    assert ids[2, :3].tolist() == [101, 102, 0]


# ------------------------------------------------------------------------------------------------------ parity


def scores(oracle: Oracle, name: str, prompts: list[str]) -> Tensor:
    return oracle.score(as_image(PHOTOS[name]).expand(len(prompts), -1, -1, -1), prompts)


def test_pickscore_is_the_authors_on_their_own_preprocessing() -> None:
    given = load_file(DATA / "pickscore_tiny.safetensors")
    oracle = oracles.load("pickscore", golden("pickscore_tiny", KEYS["pickscore_tiny"]))
    prompts = [p for name in ("astronaut", "coffee", "chelsea", "rocket") for p in PROMPTS[name]]
    for row, name in enumerate(("astronaut", "coffee")):
        torch.testing.assert_close(scores(oracle, name, prompts).double(), given["f64.score"][row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(128, 2, 128, 2), (192, 3, 64, 2)])
def test_image_reward_is_its_formula_written_out(size: tuple[int, int, int, int]) -> None:
    weights = golden("imagereward", image_reward_shapes(*size))
    oracle, prompts = oracles.load("ImageReward v1.0", weights), PROMPTS["coffee"]
    ids, mask = bert_tokens(prompts, 35)
    for photo in (PHOTOS["coffee"], PHOTOS["astronaut"].crop(CROPS[0])):
        pixels = resize_and_crop(as_image(photo)).expand(len(prompts), -1, -1, -1)
        expected = blip_by_hand.score(weights, pixels, ids, mask)
        assert expected.std() > 1e-3, "the prompts must matter"
        ours = oracle.score(as_image(photo).expand(len(prompts), -1, -1, -1), prompts)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_image_reward_of_full_width_is_its_formula_written_out() -> None:
    """The published one is as wide, and as many layers deeper."""
    assert sum(math.prod(s) for s in image_reward_shapes(1024, 24, 768, 12).values()) > 440e6
    weights = random_weights(image_reward_shapes(1024, 2, 768, 2))
    oracle, prompts = oracles.load("imagereward", weights), PROMPTS["astronaut"][:1]
    pixels = resize_and_crop(as_image(PHOTOS["astronaut"]))
    expected = blip_by_hand.score(weights, pixels, *bert_tokens(prompts, 35))
    torch.testing.assert_close(scores(oracle, "astronaut", prompts), expected, rtol=0, atol=1e-4)


def reference_open_clip(weights: dict[str, Tensor], config: dict, pixels: Tensor, prompts: list[str]) -> Tensor:
    """Cosines [B] by open_clip itself."""
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict(weights, strict=False)
    ids = open_clip.get_tokenizer("ViT-B-32")(prompts)
    with torch.no_grad():
        image = F.normalize(model.encode_image(pixels), dim=-1)
        return (image * F.normalize(model.encode_text(ids), dim=-1)).sum(-1)


HPS_TINY = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 224, "layers": 0, "width": 80, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 0},
}


def hps_config(weights: dict[str, Tensor]) -> dict:
    config = json.loads(json.dumps(HPS_TINY))
    config["vision_cfg"]["layers"] = len({k.split(".")[3] for k in weights if k.startswith("visual.transformer.resblocks")})
    config["text_cfg"]["layers"] = len({k.split(".")[2] for k in weights if k.startswith("transformer.resblocks")})
    return config


@pytest.mark.parametrize("version", ["hpsv2", "hpsv2.1"])
def test_hpsv2_is_open_clips_cosine_on_the_padded_picture(version: str) -> None:
    weights, prompts = golden("hpsv2_tiny", KEYS["hpsv2_tiny"]), PROMPTS["coffee"]
    oracle = oracles.load(version, weights)
    pixels = resize_and_pad(as_image(PHOTOS["coffee"])).expand(len(prompts), -1, -1, -1)
    expected = reference_open_clip(weights, hps_config(weights), pixels, prompts)
    torch.testing.assert_close(scores(oracle, "coffee", prompts), expected, rtol=0, atol=1e-5)


def test_clip_score_is_a_hundred_cosines_on_the_middle_square_and_never_negative() -> None:
    weights = golden("hpsv2_tiny", KEYS["hpsv2_tiny"])
    oracle = oracles.load("clip-score", weights, config=hps_config(weights))
    prompts = [p for name in PROMPTS for p in PROMPTS[name]]
    pixels = open_clip.image_transform(224, is_train=False)(PHOTOS["astronaut"])[None].expand(len(prompts), -1, -1, -1)
    expected = 100 * reference_open_clip(weights, hps_config(weights), pixels, prompts)
    assert (expected < 0).any() and (expected > 0).any()
    torch.testing.assert_close(scores(oracle, "astronaut", prompts), expected.clamp(min=0), rtol=0, atol=1e-4)


def test_clip_score_of_transformers_weights_is_transformers_own() -> None:
    """Its tokens, with the end token kept when a prompt is cut; its middle square; OpenAI's activation."""
    from transformers import CLIPConfig, CLIPModel

    weights = golden("clip_tiny", KEYS["clip_tiny"])
    oracle = oracles.load("clip-score", weights)
    sizes = {"hidden_act": "quick_gelu", "num_hidden_layers": 0, "projection_dim": 48}
    encoders = {part: [k for k in weights if k.startswith(f"{part}_model.encoder")] for part in ("text", "vision")}
    layers = {part: len({key.split(".")[3] for key in keys}) for part, keys in encoders.items()}
    config = CLIPConfig(
        text_config={**sizes, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "eos_token_id": 49407,
                     "num_hidden_layers": layers["text"]},
        vision_config={**sizes, "hidden_size": 80, "intermediate_size": 320, "num_attention_heads": 5, "patch_size": 16,
                       "num_hidden_layers": layers["vision"]},
        projection_dim=48,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    model.load_state_dict(weights, strict=False)
    prompts = [*PROMPTS["coffee"], "word " * 200]
    pixels = resize_and_crop(as_image(PHOTOS["coffee"]), 224, floor_offset)
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        text = model.text_projection(model.text_model(input_ids=clip_tokens(prompts)).pooler_output)
        expected = 100 * (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(-1)
    torch.testing.assert_close(scores(oracle, "coffee", prompts), expected.clamp(min=0), rtol=0, atol=1e-4)
    assert (expected > 0).any()


def test_a_clip_by_name_is_open_clips_own() -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    oracle = oracles.load("clip score", model.state_dict(), model="RN50-quickgelu")
    pixels = open_clip.image_transform(224, is_train=False)(PHOTOS["coffee"])[None]
    with torch.no_grad():
        image = F.normalize(model.encode_image(pixels), dim=-1)
        text = F.normalize(model.encode_text(open_clip.get_tokenizer("RN50")(PROMPTS["coffee"])), dim=-1)
    expected = (100 * image @ text.T)[0].clamp(min=0)
    torch.testing.assert_close(scores(oracle, "coffee", PROMPTS["coffee"]), expected, rtol=0, atol=1e-4)


def test_aesthetic_heads_are_the_published_affine_maps() -> None:
    """v2's MLP has no activations, so it is affine; its product was computed in float64 from the real weights' layout."""
    from comfyui_apprentice.oracles.aesthetic import build_head

    given = load_file(DATA / "aesthetic.safetensors")
    linear = build_head({"weight": given["real.v1.weight"].float(), "bias": given["real.v1.bias"].float()}, "v1")
    features = given["real.embeddings"].float()
    with torch.no_grad():
        ours = linear(F.normalize(features, dim=-1))[:, 0].double()
    torch.testing.assert_close(ours, given["f64.real.v1"], rtol=0, atol=1e-4)


def test_aesthetic_is_head_on_the_normalised_features_of_openais_vit() -> None:
    shapes = KEYS["clip_l14_tiny_visual"]
    visual = golden("clip_l14_tiny", shapes)
    for name, head_keys in (("aesthetic-v1", KEYS["aesthetic_v1_head"]), ("aesthetic-v2", KEYS["aesthetic_v2_head"])):
        head = golden(name, head_keys)
        oracle = oracles.load(name, head, clip=visual)
        model = open_clip.transformer.VisionTransformer(
            224, 14, 128, 3, 2, 4.0, output_dim=768, act_layer=open_clip.transformer.QuickGELU
        ).eval()  # fmt: skip
        model.load_state_dict({k.removeprefix("visual."): v for k, v in visual.items()})
        for photo in (PHOTOS["coffee"], PHOTOS["astronaut"].crop(CROPS[1])):
            with torch.no_grad():
                x = F.normalize(model(open_clip.image_transform(224, is_train=False)(photo)[None]), dim=-1)
            if name == "aesthetic-v1":
                x = x @ head["weight"].T + head["bias"]
            else:
                for i in (0, 2, 4, 6, 7):
                    x = x @ head[f"layers.{i}.weight"].T + head[f"layers.{i}.bias"]
            torch.testing.assert_close(oracle.score(as_image(photo), ["never read"]), x[:, 0], rtol=0, atol=1e-4)


def test_aesthetic_takes_transformers_layout_of_the_same_tower() -> None:
    shapes = {k: v for k, v in KEYS["pickscore_tiny"].items() if not k.startswith("text")}
    hf = golden("tower", shapes)
    head = {"weight": torch.randn(1, 48, generator=torch.Generator().manual_seed(1)), "bias": torch.zeros(1)}
    oracle = oracles.load("aesthetic-v1", head, clip=hf, config={"heads": 5})
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=80, intermediate_size=320, projection_dim=48, num_hidden_layers=4, num_attention_heads=5, patch_size=14,
        hidden_act="quick_gelu",
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.load_state_dict({k: v for k, v in hf.items() if k.startswith("vis")}, strict=False)
    with torch.no_grad():
        features = F.normalize(model(resize_and_crop(as_image(PHOTOS["coffee"]))).image_embeds, dim=-1)
    expected = (features @ head["weight"].T)[:, 0]
    torch.testing.assert_close(oracle.score(as_image(PHOTOS["coffee"]), [""]), expected, rtol=0, atol=1e-4)


def test_clip_iqa_is_piqs_on_pictures_of_any_size() -> None:
    """piq holds the authors' network; its weights come from a server, so both get random ones."""
    clip = pytest.importorskip("piq.feature_extractors.clip")
    torch.manual_seed(3)
    theirs = clip.CLIP(64, 64, (1, 1, 1, 1), 32, None, 77, 49408, 128, 2, 2).float().eval()
    for parameter in theirs.parameters():  # the zero-initialised ones would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    weights = {k: v for k, v in theirs.state_dict().items() if k not in ("input_resolution", "context_length", "vocab_size")}
    oracle = oracles.load("clip-iqa", weights)
    anchors = F.normalize(theirs.encode_text(open_clip.get_tokenizer("RN50")(["Good photo.", "Bad photo."])).float(), dim=-1)
    for photo in (PHOTOS["coffee"].crop(CROPS[1]), PHOTOS["astronaut"].crop(CROPS[0])):
        x = TF.normalize(transforms.ToTensor()(photo), CLIP_MEAN, CLIP_STD)[None]
        with torch.no_grad():
            features = F.normalize(theirs.encode_image(x, pos_embedding=False).float(), dim=-1)
            expected = (theirs.logit_scale.exp() * features @ anchors.T).softmax(-1)[:, 0]
        torch.testing.assert_close(oracle.score(as_image(photo), ["never read"]), expected, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------- every oracle's promises


def every_oracle() -> dict[str, Oracle]:
    hps = golden("hpsv2_tiny", KEYS["hpsv2_tiny"])
    return {
        "imagereward": oracles.load("imagereward", golden("imagereward", image_reward_shapes(128, 1, 64, 1))),
        "pickscore": oracles.load("pickscore", golden("pickscore_tiny", KEYS["pickscore_tiny"])),
        "hpsv2": oracles.load("hpsv2", hps),
        "clip-iqa": oracles.load("clip-iqa", hps, quick_gelu=False),
        "aesthetic-v2": oracles.load(
            "aesthetic-v2", golden("aesthetic", KEYS["aesthetic_v2_head"]),
            clip=golden("clip_l14_tiny", KEYS["clip_l14_tiny_visual"]),
        ),
    }  # fmt: skip


EVERY = every_oracle()


@pytest.mark.parametrize("name", EVERY)
def test_a_score_does_not_depend_on_the_batch(name: str) -> None:
    oracle = EVERY[name]
    torch.manual_seed(0)
    images, prompts = torch.rand(oracle.batch + 3, 40, 48, 3), [f"thing {i % 3}" for i in range(oracle.batch + 3)]
    together = oracle.score(images, prompts)
    alone = torch.cat([oracle.score(images[i : i + 1], prompts[i : i + 1]) for i in range(len(images))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-5)
    assert together.std() > 0


@pytest.mark.parametrize("name", EVERY)
def test_a_reward_has_gradients_into_the_picture_and_the_scores_value(name: str) -> None:
    oracle = EVERY[name]
    torch.manual_seed(1)
    images = (torch.rand(2, 230, 225, 3) * 255).round().div(255).requires_grad_()
    reward = oracle.reward(images, ["a cat", "a dog"])
    reward.sum().backward()
    torch.testing.assert_close(reward.detach().float(), oracle.score(images.detach(), ["a cat", "a dog"]), rtol=0, atol=2e-5)
    assert images.grad.isfinite().all() and (images.grad.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_nothing_and_not_a_number_have_defined_scores(name: str) -> None:
    oracle = EVERY[name]
    assert oracle.score(torch.zeros(0, 32, 32, 3), []).shape == (0,)
    images = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    images[1, 4, 4, 0] = math.nan
    found = oracle.score(images, ["a cat"])
    assert found[0].isfinite() and found[1].isnan()


def test_a_prompt_is_encoded_once() -> None:
    oracle = oracles.load("hpsv2", golden("hpsv2_tiny", KEYS["hpsv2_tiny"]))
    seen: list[str] = []
    inner = oracle.encode_prompts
    oracle.encode_prompts = lambda prompts: (seen.extend(prompts), inner(prompts))[1]
    oracle.score(torch.rand(40, 16, 16, 3), ["a", "b"] * 20)
    oracle.score(torch.rand(2, 16, 16, 3), ["b", "c"])
    assert sorted(seen) == ["a", "b", "c"]


# ------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("key", KINDS)
def test_an_oracle_is_found_by_any_spelling(key: str) -> None:
    assert find_kind(KINDS[key].title) == find_kind(key.upper()) == find_kind(key.replace("-", "_")) == key


def test_weights_tell_which_oracle_they_are_for() -> None:
    assert detect(image_reward_shapes(64, 1, 64, 1)) == "imagereward"
    assert detect(KEYS["pickscore_tiny"]) == "pickscore" and detect(KEYS["aesthetic_v2_head"]) == "aesthetic-v2"
    assert detect(KEYS["clip_tiny"], "clip-vit-large-patch14.safetensors") == "clip-score"
    assert detect(KEYS["hpsv2_tiny"], "HPS_v2.1_compressed.pt") == "hpsv2.1"
    assert detect(KEYS["hpsv2_tiny"], "HPS_v2_compressed.pt") == "hpsv2"
    assert detect(KEYS["clip_rn50"], "RN50.safetensors") == "clip-score" and detect(["weight", "bias"]) == "aesthetic-v1"
    with pytest.raises(ValueError, match="not the weights of an oracle"):
        detect(["conv.weight"], "unet.safetensors")


def test_missing_and_foreign_weights_are_one_sentence() -> None:
    weights = golden("hpsv2_tiny", KEYS["hpsv2_tiny"])
    with pytest.raises(ValueError, match=r"not the weights of HPSv2: they lack 'visual\.proj'"):
        oracles.load("hpsv2", {k: v for k, v in weights.items() if k != "visual.proj"}, config=hps_config(weights))
    with pytest.raises(ValueError, match="not the weights of ImageReward"):
        oracles.load("imagereward", weights)
    with pytest.raises(ValueError, match="without a place for it, 'stranger'"):
        oracles.load("hpsv2", {**weights, "stranger": torch.zeros(1)})
    with pytest.raises(ValueError, match="needs CLIP ViT-L/14 beside its head"):
        oracles.load("aesthetic-v2", golden("aesthetic", KEYS["aesthetic_v2_head"]))
    with pytest.raises(ValueError, match="There is no oracle 'beauty'; choose one of: imagereward"):
        oracles.load("beauty", weights)


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="HPSv2 needs the library 'open_clip', which is not installed"):
        oracles.load("hpsv2", golden("hpsv2_tiny", KEYS["hpsv2_tiny"]))


def test_oracles_load_from_files_as_well(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = golden("hpsv2_tiny", KEYS["hpsv2_tiny"])
    save_file(weights, tmp_path / "hps.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "hps.pt")
    one, two = (oracles.load("hpsv2", tmp_path / f"hps.{end}") for end in ("safetensors", "pt"))
    assert one.fingerprint() == two.fingerprint() == oracles.load("hpsv2", weights).fingerprint()
    assert one.fingerprint() != oracles.load("hpsv2.1", weights).fingerprint(), "the name is part of it"


def test_the_shipped_vocabulary_is_berts() -> None:
    from comfyui_apprentice.oracles.tokenizers import BERT_VOCABULARY

    digest = hashlib.sha256(BERT_VOCABULARY.read_bytes()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


# ------------------------------------------------------------------------------------------------------- HPSv3


def tiny_hpsv3(folder: Path) -> tuple[dict[str, Tensor], dict, Path]:
    """Random weights under the checkpoint's own (older) names, a config, and a byte-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Qwen2VLConfig, Qwen2VLModel

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"), "video_token_id": 400, "vision_start_token_id": 258,
        "text_config": {
            "vocab_size": 262, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        "vision_config": {"hidden_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    }  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLModel(Qwen2VLConfig(**json.loads(json.dumps(config))))
    weights = {k.replace("language_model.", "model.", 1): v.clone() for k, v in model.state_dict().items()}
    for i, (into, out) in zip((0, 3, 5), ((64, 24), (24, 16), (16, 2)), strict=True):
        weights[f"rm_head.{i}.weight"], weights[f"rm_head.{i}.bias"] = torch.randn(out, into), torch.randn(out)
    return weights, config, folder / "tokenizer.json"


def test_hpsv3_patches_are_the_processors_own() -> None:
    from comfyui_apprentice.oracles.hpsv3 import patches, smart_size
    from transformers import Qwen2VLImageProcessor

    for photo in photos():
        height, width = smart_size(photo.height, photo.width)
        assert height % 28 == 0 and width % 28 == 0 and abs(height * width / (256 * 28 * 28) - 1) < 0.15
        theirs = Qwen2VLImageProcessor(do_resize=False)(images=[photo.resize((width, height))], return_tensors="pt")
        ours, grid = patches(as_image(photo))
        assert torch.equal(grid, theirs["image_grid_thw"])
        torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-5)


def test_hpsv3_is_the_head_at_the_reward_token_with_counted_positions(tmp_path: Path) -> None:
    from comfyui_apprentice.oracles.hpsv3 import patches
    from transformers import Qwen2VLConfig, Qwen2VLModel

    weights, config, tokenizer = tiny_hpsv3(tmp_path)
    oracle = oracles.load("hpsv3", weights, tokenizer=tokenizer, config=config)
    model = Qwen2VLModel(Qwen2VLConfig(**json.loads(json.dumps(config)))).eval()
    model.load_state_dict({k.replace("model.", "language_model.", 1): v for k, v in weights.items() if "rm_head" not in k})
    image, prompt = as_image(PHOTOS["coffee"].crop(CROPS[0])), "a {cup} of coffee"
    pixels, grid = patches(image)
    ids = oracle.question(prompt, len(pixels) // 4)
    assert (ids == config["image_token_id"]).sum() == len(pixels) // 4 and (ids == 261).sum() == 1
    with torch.no_grad():
        seen = model.visual(pixels, grid_thw=grid)
        seen = getattr(seen, "pooler_output", seen)
        words = model.language_model.embed_tokens(ids)
        words[ids == config["image_token_id"]] = seen
        x = model.language_model(inputs_embeds=words).last_hidden_state[ids == 261][0]
        for i in (0, 3, 5):
            x = x @ weights[f"rm_head.{i}.weight"].T + weights[f"rm_head.{i}.bias"]
            x = x.relu() if i < 5 else x
    torch.testing.assert_close(oracle.score(image, [prompt])[0], x[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(oracle.uncertainty(image, [prompt])[0], x[1], rtol=0, atol=1e-4)
    image.requires_grad_()
    oracle.reward(image, [prompt]).sum().backward()
    assert image.grad.abs().sum() > 0


def test_hpsv3_without_the_memory_or_the_tokenizer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    weights, config, tokenizer = tiny_hpsv3(tmp_path)
    with pytest.raises(ValueError, match=r"HPSv3 needs Qwen2-VL's tokenizer\.json"):
        oracles.load("hpsv3", weights)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(ValueError, match=r"needs .* GB of memory and this machine has 0 GB free; choose a smaller oracle"):
        oracles.load("hpsv3", weights, tokenizer=tokenizer, config=config)


# --------------------------------------------------------------------------------------------------- ensembles


class Scripted(Oracle):
    """Says what it is told; pictures hold the score in their first pixel."""

    def __init__(self, name: str, factor: float = 1.0) -> None:
        self.name, self.network, self.factor = name, torch.nn.Linear(1, 1), factor
        torch.nn.init.zeros_(self.network.weight), torch.nn.init.zeros_(self.network.bias)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0, 0, 0] * self.factor


def ensemble(combination: str, weights: tuple[float, float] = (3.0, 1.0)) -> Oracle:
    from comfyui_apprentice.oracles.ensemble import Ensemble, Member

    a, b = Scripted("a"), Scripted("b", -2.0)
    members = [
        Member.calibrated(a, weights[0], (0.0, 0.5, 1.0)),
        Member.calibrated(b, weights[1], (-2.0, -1.0, 0.0, math.nan)),
    ]
    return Ensemble(members, combination)


def pixels_of(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 4, 4, 3)


def test_weighted_ensemble_is_the_mean_of_z_scores() -> None:
    # a: mean 0.5, deviation 0.5; b = -2 a: mean -1, deviation 1.
    found = ensemble("weighted").score(pixels_of(1.0, 0.5, 0.0), ["p"])
    torch.testing.assert_close(found, torch.tensor([(3 * 1 - 1 * 1) / 4, 0.0, (3 * -1 + 1 * 1) / 4]))


def test_vote_is_the_weighted_share_that_reaches_its_median_and_nan_stays() -> None:
    found = ensemble("vote").score(pixels_of(0.9, 0.5, 0.1), ["p"])
    torch.testing.assert_close(found, torch.tensor([0.75, 1.0, 0.25]))
    assert ensemble("vote").score(pixels_of(math.nan), ["p"]).isnan().all()


def test_disagreement_is_the_spread_of_z_scores() -> None:
    found = ensemble("weighted", (1.0, 1.0)).uncertainty(pixels_of(1.0, 0.5), ["p", "p"])
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]))


def test_an_ensembles_fingerprint_follows_its_weights_and_combination() -> None:
    prints = {e.fingerprint() for e in (ensemble("vote"), ensemble("weighted"), ensemble("weighted", (1.0, 1.0)))}
    assert len(prints) == 3 and ensemble("vote").fingerprint() in prints


def test_wrong_ensembles_are_one_sentence() -> None:
    from comfyui_apprentice.oracles.ensemble import Ensemble, Member

    oracle = Scripted("a")
    with pytest.raises(ValueError, match="calibrate with more prompts"):
        Member.calibrated(oracle, 1.0, (1.0, 1.0))
    member = Member(oracle, 1.0, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="needs two oracles or more"):
        Ensemble([member])
    with pytest.raises(ValueError, match="needs a weight above 0"):
        Ensemble([member, Member(oracle, 0.0, 0.0, 1.0, 0.0)])
