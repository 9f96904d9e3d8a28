"""Examples for published models, each with its prompts, sizes, LoRA and oracle."""

from __future__ import annotations

from typing import Any

from harness import Graph, Node
from workflow_file import Page

from . import weights
from .graph import group

SCENES = """a lighthouse on a cliff in a storm, oil painting
portrait of an old fisherman, soft window light, photograph
a glass teapot with blooming tea on a wooden table
a fox in fresh snow at dawn, wildlife photograph"""
AVOID = "blurry, deformed hands, watermark"
PULL = "The front end offers the files that are missing. The oracle comes by `apprentice models pull {}` as well."


class Real(Graph):
    """A graph of published models; ``group`` 1 is what it loads, 2 what it draws, 3 the method, 4 what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page("", "", ())

    def checkpoint(self, key: str, entry: weights.Entry) -> Node:
        """MODEL, CLIP and VAE of a file."""
        return self.add("CheckpointLoaderSimple", key, ckpt_name=entry["name"])

    def unet(self, key: str, entry: weights.Entry) -> Node:
        """A diffusion model alone."""
        return self.add("UNETLoader", key, unet_name=entry["name"], weight_dtype="default")

    def lora(self, key: str, model: Any, name: str, strength: float = 1.0) -> Node:
        """The model with a LoRA."""
        return self.add("LoraLoaderModelOnly", key, model=model, lora_name=name, strength_model=strength)

    def words(self, clip: Any, text: str = SCENES, avoid: str = AVOID) -> tuple[Node, Node]:
        """Prompts as node 20, and what to avoid as node 21."""
        return (
            self.add("ApprenticePrompts", "20", clip=clip, text=text),
            self.add("CLIPTextEncode", "21", clip=clip, text=avoid),
        )

    def blank(self, lines: Node, side: int, kind: str = "EmptyLatentImage") -> Node:
        """An empty square a prompt, as node 22."""
        return self.add(kind, "22", width=side, height=side, batch_size=lines[2])

    def method(
        self, student: Any, teacher: Any, vae: Any, oracle: weights.Entry, words: tuple[Node, Node], latent: Any, **more: Any
    ) -> Node:
        """Oracle, all-in-one node and what is saved, as nodes 30 to 33."""
        judge = self.add("ApprenticeLoadOracle", "30", name=oracle["name"])
        inputs = {
            "student": student, "teacher": teacher, "vae": vae, "oracle": judge[0], "positive": words[0][0],
            "negative": words[1][0], "prompt": words[0][1], "latent_image": latent, "seed": 12, "steps": 0, "cfg": 1.0,
            "denoise": 1.0, "threshold": "worst share", "value": 0.5, "strategy": "refine", "rollback": 0.6,
            "margin": 0.0, **more,
        }  # fmt: skip
        sampler = self.add("ApprenticeSampler", "31", **inputs)
        self.add("ApprenticeSaveImages", "32", images=sampler[1], verdict=sampler[2], filename_prefix="apprentice/picture")
        self.add("SaveImage", "33", images=sampler[3], filename_prefix="apprentice/contact_sheet")
        return sampler

    def on(self, title: str, note: str, loads: tuple[str, ...], draws: tuple[str, ...] = ("20 21 22",), shown: str = "") -> Real:
        """This, with its page."""
        rows = (
            (group("1  Models", *loads), group("2  What to draw", *draws), group("3  Draft, judge, improve", "30 31"),
             group("4  What came of it", "32", "33")),
        )  # fmt: skip
        widgets = (shown or "20.text") + " 31.seed 31.value 31.teacher_steps"
        self.page = Page(title, note, rows, tuple((e.split(".")[0], e.split(".")[1]) for e in widgets.split()), ("32", "33"))
        return self


SDXL_TEACHER = {"teacher_steps": 30, "teacher_cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}


def sdxl_with(lora: weights.Entry, preset: str, steps: int, title: str, note: str, oracle: weights.Entry) -> Real:
    """SDXL taught by itself: with a distilling LoRA it drafts, without it improves."""
    g = Real()
    base = g.checkpoint("1", weights.SDXL)
    student = g.lora("2", base[0], lora["name"])
    words = g.words(base[1])
    g.method(student[0], base[0], base[2], oracle, words, g.blank(words[0], 1024)[0], preset=preset, steps=steps, **SDXL_TEACHER)
    return g.on(title, note, ("1 2",))


def lcm() -> Real:
    """LCM-LoRA."""
    return sdxl_with(
        weights.LCM_SDXL, "lcm-lora-sd15-sdxl", 4, "SDXL with LCM-LoRA: four steps, and thirty where it pays",
        "One checkpoint is both models. With **lcm-lora-sdxl** it drafts in four steps at CFG 1; without it the same SDXL is the "
        "teacher, at 30 steps and CFG 6.\n\n**PickScore** judges, and the worse half of the four is refined. The better of draft "
        "and refinement is kept.\n\nThe LoRA's file is called pytorch_lora_weights.safetensors there: save it as "
        "lcm-lora-sdxl.safetensors, and PickScore's model.safetensors as PickScore_v1.safetensors. "
        + PULL.format("pickscore"),
        weights.PICKSCORE,
    )  # fmt: skip


def lightning() -> Real:
    """SDXL-Lightning."""
    return sdxl_with(
        weights.LIGHTNING, "sdxl-lightning", 4, "SDXL-Lightning drafts, SDXL improves",
        "The **Lightning** LoRA draws in exactly four steps; the preset has the noise levels it was trained "
        "on. Plain SDXL is the "
        "teacher.\n\n**HPSv2.1** judges. It compares pictures of one prompt better than pictures of "
        "different ones, so look at the "
        "scores before you set a number of your own.\n\n"
        "For the files of two or eight steps change `steps`, too. "
        + PULL.format("hpsv2.1"),
        weights.HPS,
    )  # fmt: skip


def dmd2() -> Real:
    """DMD2."""
    return sdxl_with(
        weights.DMD2, "dmd2", 4, "DMD2 drafts in four steps, SDXL improves",
        "The **DMD2** LoRA draws sharp pictures at 999, 749, 499 and 249: the preset sets them, with LCM's fresh noise.\n\n"
        "DMD2 drafts are strong, so a third is sent on at most when you set `value` to 0.3. The teacher refines from 60 % of the "
        "noise, which keeps the composition.\n\n**ImageReward** judges how well a picture fits its prompt. "
        + PULL.format("imagereward"),
        weights.IMAGEREWARD,
    )  # fmt: skip


def turbo() -> Real:
    """SDXL-Turbo beside a checkpoint."""
    g = Real()
    student, teacher = g.checkpoint("1", weights.SDXL_TURBO), g.checkpoint("2", weights.SDXL)
    words = g.words(student[1])
    improved = g.add("ApprenticePrompts", "23", clip=teacher[1], text=SCENES)
    avoided = g.add("CLIPTextEncode", "24", clip=teacher[1], text=AVOID)
    g.method(
        student[0], teacher[0], student[2], weights.PICKSCORE, words, g.blank(words[0], 768)[0],
        preset="sdxl-turbo/stability-first-n", steps=2, teacher_positive=improved[0], teacher_negative=avoided[0], **SDXL_TEACHER,
    )  # fmt: skip
    return g.on(
        "SDXL-Turbo drafts, a checkpoint of yours improves",
        "**SDXL-Turbo** drafts in two steps. Any SDXL checkpoint can be the teacher: put yours into the second loader.\n\n"
        "Each model reads the prompts with its own CLIP, so they stand there twice; keep both lists the same. 768 pixels is a "
        "compromise between Turbo's 512 and SDXL's 1024.\n\n**PickScore** judges. The teacher's checkpoint is loaded only when "
        "a draft is rejected. "
        + PULL.format("pickscore"),
        ("1 2",), ("20 21 22", "23 24"), "20.text 23.text",
    )  # fmt: skip


def flux() -> Real:
    """Schnell and dev."""
    g = Real()
    student, teacher = g.checkpoint("1", weights.SCHNELL), g.checkpoint("2", weights.DEV)
    words = g.words(student[1], avoid="")
    guided = g.add("FluxGuidance", "23", conditioning=words[0][0], guidance=3.5)
    g.method(
        student[0], teacher[0], student[2], weights.PICKSCORE, words, g.blank(words[0], 1024, "EmptySD3LatentImage")[0],
        preset="flux-schnell", steps=4, teacher_positive=guided[0], teacher_steps=20, teacher_cfg=1.0, sampler_name="euler",
        scheduler="simple",
    )  # fmt: skip
    return g.on(
        "Flux schnell drafts, Flux dev improves",
        "**FLUX.1 schnell** drafts in four steps, and **FLUX.1 dev** refines the rejected in twenty, guided by 3.5. Both read "
        "the same text encoders and share the autoencoder.\n\n"
        "CFG stays at 1 for both: Flux has no negative prompt, and dev's guidance goes over *Flux Guidance* into "
        "`teacher_positive`.\n\n**PickScore** judges. Mind dev's licence, which is not schnell's. "
        + PULL.format("pickscore"),
        ("1 2",), ("20 21 22", "23"),
    )  # fmt: skip


def _z_image(g: Real) -> tuple[Node, Node, Node, Node]:
    """Turbo, base, text encoder and autoencoder."""
    clip = g.add("CLIPLoader", "3", clip_name=weights.QWEN3["name"], type="lumina2", device="default")
    vae = g.add("VAELoader", "4", vae_name=weights.AE["name"])
    return g.unet("1", weights.Z_TURBO), g.unet("2", weights.Z_IMAGE), clip, vae


Z_TEACHER = {"teacher_steps": 25, "teacher_cfg": 4.0, "sampler_name": "res_multistep", "scheduler": "simple"}


def z_image() -> Real:
    """Z-Image-Turbo and Z-Image."""
    g = Real()
    turbo_model, base, clip, vae = _z_image(g)
    shifted = g.add("ModelSamplingAuraFlow", "5", model=base[0], shift=3.0)
    words = g.words(clip[0])
    g.method(
        turbo_model[0], shifted[0], vae[0], weights.HPS, words, g.blank(words[0], 1024, "EmptySD3LatentImage")[0],
        preset="z-image-turbo/res-multistep", steps=9, **Z_TEACHER,
    )  # fmt: skip
    return g.on(
        "Z-Image-Turbo drafts, Z-Image improves",
        "**Z-Image-Turbo** drafts in nine steps without guidance, and undistilled **Z-Image** refines the rejected at 25 steps "
        "and CFG 4. One text encoder and one autoencoder serve both.\n\n"
        "The preset sets shift 3 and res_multistep, as ComfyUI's own template does; *Model Sampling* sets the teacher's.\n\n"
        "**HPSv2.1** judges. The teacher stays on disk until the first rejection. "
        + PULL.format("hpsv2.1"),
        ("1 2 5", "3 4"),
    )  # fmt: skip


def own_lora() -> Real:
    """A LoRA that breaks Turbo's eight steps."""
    g = Real()
    turbo_model, base, clip, vae = _z_image(g)
    name = "my_lora.safetensors"
    weak, full = g.lora("5", turbo_model[0], name, 0.7), g.lora("6", base[0], name, 1.0)
    shifted = g.add("ModelSamplingAuraFlow", "7", model=full[0], shift=3.0)
    words = g.words(clip[0])
    g.method(
        weak[0], shifted[0], vae[0], weights.HPS, words, g.blank(words[0], 1024, "EmptySD3LatentImage")[0],
        preset="z-image-turbo/res-multistep", steps=9, **Z_TEACHER | {"rollback": 0.7},
    )  # fmt: skip
    return g.on(
        "My LoRA breaks the eight steps: draft weak, improve full",
        "A LoRA trained on the undistilled model pulls a Turbo off its short path: pictures wash out or fall apart. So the "
        "student carries **your LoRA at 0.7**, where Turbo still holds, and the base model carries it **at 1.0**.\n\n"
        "Drafts that hold are kept at Turbo's price. Those that broke score low, and are redrawn from 70 % of the noise by the "
        "base model, where the LoRA works as you trained it.\n\n"
        "Put your file's name into both LoRA loaders and its trigger words into the prompts. "
        + PULL.format("hpsv2.1"),
        ("1 2 5 6 7", "3 4"), shown="20.text 5.lora_name 5.strength_model 6.lora_name 6.strength_model",
    )  # fmt: skip


QWEN_TEACHER = {"teacher_steps": 20, "teacher_cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}


def qwen() -> Real:
    """Qwen-Image with Lightning."""
    g = Real()
    base = g.unet("1", weights.QWEN)
    student = g.lora("2", base[0], weights.QWEN_8["name"])
    teacher = g.add("ModelSamplingAuraFlow", "3", model=base[0], shift=3.1)
    clip = g.add("CLIPLoader", "4", clip_name=weights.QWEN_TEXT["name"], type="qwen_image", device="default")
    vae = g.add("VAELoader", "5", vae_name=weights.QWEN_VAE["name"])
    words = g.words(clip[0], 'a neon sign that says "OPEN LATE" in the rain\n' + SCENES)
    g.method(
        student[0], teacher[0], vae[0], weights.HPS, words, g.blank(words[0], 1328, "EmptySD3LatentImage")[0],
        preset="qwen-image-lightning/shift3", steps=8, **QWEN_TEACHER,
    )  # fmt: skip
    return g.on(
        "Qwen-Image-Lightning drafts, Qwen-Image improves",
        "The eight-step **Lightning** LoRA drafts, and the same Qwen-Image without it refines at 20 steps and CFG 2.5. The big "
        "file is loaded once.\n\n"
        "The student's preset is the authors' shift of 3; the teacher keeps the template's 3.1.\n\n"
        "**HPSv2.1** judges. For a card of 24 GB keep the fp8 file, and lower the batch by deleting prompts. "
        + PULL.format("hpsv2.1"),
        ("1 2 3", "4 5"),
    )  # fmt: skip


def _sd15(g: Real) -> tuple[Node, Node]:
    """The checkpoint, and it with LCM-LoRA."""
    base = g.checkpoint("1", weights.SD15)
    return base, g.lora("2", base[0], weights.LCM_SD15["name"])


def sd15_to_sdxl() -> Real:
    """A small student, a teacher of another family."""
    g = Real()
    base, student = _sd15(g)
    teacher = g.checkpoint("3", weights.SDXL)
    words = g.words(base[1])
    improved = g.add("ApprenticePrompts", "23", clip=teacher[1], text=SCENES)
    avoided = g.add("CLIPTextEncode", "24", clip=teacher[1], text=AVOID)
    g.method(
        student[0], teacher[0], base[2], weights.PICKSCORE, words, g.blank(words[0], 768)[0],
        preset="lcm-lora-sd15-sdxl", steps=6, teacher_positive=improved[0], teacher_negative=avoided[0], teacher_vae=teacher[2],
        **SDXL_TEACHER,
    )  # fmt: skip
    return g.on(
        "SD1.5 drafts, SDXL improves: two families",
        "A small model drafts where a big one is too slow: **SD1.5 with LCM-LoRA** in six steps. Rejected drafts go to **SDXL** "
        "through pixels, with each model's own VAE and CLIP.\n\n"
        "SDXL keeps SD1.5's composition and redraws the rest from 60 % of the noise. So pictures on a card of 6 GB come out in "
        "SDXL's quality where it matters.\n\n**PickScore** judges. Keep both prompt lists the same. "
        + PULL.format("pickscore"),
        ("1 2 3",), ("20 21 22", "23 24"), "20.text 23.text",
    )  # fmt: skip


def inpainting() -> Real:
    """A masked picture, redrawn by both."""
    g = Real()
    base = g.checkpoint("1", weights.SDXL)
    student = g.lora("2", base[0], weights.LCM_SDXL["name"])
    words = g.words(base[1], "a bronze statue of a lion in a park, photograph")
    picture = g.add("LoadImage", "25", image="example.png")
    scaled = g.add("ImageScaleToTotalPixels", "26", image=picture[0], upscale_method="lanczos", megapixels=1.0)
    grown = g.add("GrowMask", "27", mask=picture[1], expand=12, tapered_corners=True)
    encoded = g.add("VAEEncode", "28", pixels=scaled[0], vae=base[2])
    masked = g.add("SetLatentNoiseMask", "29", samples=encoded[0], mask=grown[0])
    repeated = g.add("RepeatLatentBatch", "22", samples=masked[0], amount=4)
    g.method(
        student[0], base[0], base[2], weights.PICKSCORE, words, repeated[0], preset="lcm-lora-sd15-sdxl", steps=6, denoise=0.9,
        prompt="a bronze statue of a lion in a park, photograph", **SDXL_TEACHER,
    )  # fmt: skip
    return g.on(
        "Inpaint four times, improve the weak ones",
        "Open your picture in *Load Image* and paint the mask (right click, *Open in MaskEditor*). **SDXL "
        "with LCM-LoRA** fills it "
        "four times in six steps.\n\n"
        "**PickScore** judges whole pictures against the prompt, which therefore describes all of the picture. The worse two are "
        "redrawn by SDXL under the same mask.\n\n"
        "Outside of the mask nothing changes. `denoise` below 1 keeps something of what was there. "
        + PULL.format("pickscore"),
        ("1 2",), ("25 26 27", "28 29 22", "20 21"),
    )  # fmt: skip


def controlnet() -> Real:
    """Edges hold both models."""
    g = Real()
    base, student = _sd15(g)
    net = g.add("ControlNetLoader", "3", control_net_name=weights.CANNY["name"])
    words = g.words(
        base[1], "\n".join(f"a mountain village {w}" for w in ("in winter", "in autumn", "at night", "as a watercolour"))
    )
    picture = g.add("LoadImage", "25", image="example.png")
    scaled = g.add("ImageScale", "28", image=picture[0], upscale_method="lanczos", width=512, height=512, crop="center")
    edges = g.add("Canny", "26", image=scaled[0], low_threshold=0.2, high_threshold=0.5)
    control = g.add(
        "ControlNetApplyAdvanced", "27", positive=words[0][0], negative=words[1][0], control_net=net[0], image=edges[0],
        strength=0.8, start_percent=0.0, end_percent=0.8,
    )  # fmt: skip
    g.method(
        student[0], base[0], base[2], weights.PICKSCORE, words, g.blank(words[0], 512)[0], preset="lcm-lora-sd15-sdxl", steps=6,
        positive=control[0], negative=control[1], teacher_steps=25, teacher_cfg=7.0, sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    return g.on(
        "One drawing, four moods: a ControlNet holds both models",
        "The edges of your picture hold student and teacher alike, so an improved picture keeps the composition of its draft. "
        "**SD1.5 with LCM-LoRA** drafts in six steps.\n\n"
        "Every line of the prompts is a picture, judged by its own line. **PickScore** sends the worse half on to SD1.5 without "
        "the LoRA, at 25 steps and CFG 7.\n\n"
        "For SDXL put an SDXL ControlNet and checkpoint in their places. "
        + PULL.format("pickscore"),
        ("1 2 3",), ("25 28 26 27", "20 21 22"),
    )  # fmt: skip


def edit() -> Real:
    """Qwen-Image-Edit with a reference."""
    g = Real()
    base = g.unet("1", weights.QWEN_EDIT)
    student = g.lora("2", base[0], weights.QWEN_EDIT_4["name"])
    teacher = g.add("ModelSamplingAuraFlow", "3", model=base[0], shift=3.0)
    clip = g.add("CLIPLoader", "4", clip_name=weights.QWEN_TEXT["name"], type="qwen_image", device="default")
    vae = g.add("VAELoader", "5", vae_name=weights.QWEN_VAE["name"])
    picture = g.add("LoadImage", "25", image="example.png")
    scaled = g.add("FluxKontextImageScale", "26", image=picture[0])
    shared = {"clip": clip[0], "vae": vae[0], "image1": scaled[0]}
    change = g.add("TextEncodeQwenImageEditPlus", "20", prompt="Change the time to night, keep everything else", **shared)
    nothing = g.add("TextEncodeQwenImageEditPlus", "21", prompt="", **shared)
    encoded = g.add("VAEEncode", "27", pixels=scaled[0], vae=vae[0])
    repeated = g.add("RepeatLatentBatch", "22", samples=encoded[0], amount=2)
    g.method(
        student[0], teacher[0], vae[0], weights.IMAGEREWARD, (change, nothing), repeated[0], preset="qwen-image-lightning/shift3",
        steps=4, prompt="the scene of the picture at night", **QWEN_TEACHER | {"strategy": "regenerate"},
    )  # fmt: skip
    return g.on(
        "Edit with a reference: Qwen-Image-Edit, twice",
        "*Text Encode* shows the model your picture and tells it what to change. The four-step **Lightning** LoRA tries twice, "
        "and the weaker try is done anew by **Qwen-Image-Edit 2509** in twenty steps.\n\n"
        "The oracle can't read an instruction: `prompt` on the method's node describes the **result** instead. ImageReward then "
        "says which try looks most like it.\n\n"
        "More pictures can be given as image 2 and 3 of both Text Encode nodes. "
        + PULL.format("imagereward"),
        ("1 2 3", "4 5"), ("25 26 27 22", "20 21"), "20.prompt 31.prompt",
    )  # fmt: skip


EXAMPLES = {
    "sdxl-lcm-lora": lcm, "sdxl-lightning": lightning, "sdxl-turbo": turbo, "sdxl-dmd2": dmd2, "flux-schnell-to-dev": flux,
    "z-image-turbo": z_image, "my-lora-on-turbo": own_lora, "qwen-image-lightning": qwen, "sd15-to-sdxl": sd15_to_sdxl,
    "sdxl-inpainting": inpainting, "sd15-controlnet": controlnet, "qwen-image-edit": edit,
}  # fmt: skip
