"""The graphs of the example workflows, and where their nodes stand; ``make_examples.py`` makes files of them."""

from __future__ import annotations

from typing import Any

from harness import Graph, Node

PROMPTS = """glossy red heart on blue
panda face on yellow
purple square on orange
strawberry on pink
crescent moon on black
rainbow on white
burger on green
red angry face on gray"""
SETTINGS: dict[str, Any] = {
    "seed": 12, "preset": "tiny-world", "steps": 2, "cfg": 1.0, "denoise": 1.0, "threshold": "worst share", "value": 0.5,
    "strategy": "refine", "rollback": 0.7, "teacher_steps": 16, "teacher_cfg": 2.0, "sampler_name": "dpmpp_2m",
    "scheduler": "karras", "margin": 0.0,
}  # fmt: skip
# id: (x, y, width, height), in the canvas's units
Layout = dict[str, tuple[int, int, int, int]]
START: Layout = {"1": (40, 60, 300, 180), "2": (40, 310, 300, 300), "3": (40, 680, 300, 130), "4": (40, 880, 300, 130)}


class Example(Graph):
    """A graph that begins with the tiny world, prompts, an empty negative, and an empty batch."""

    def __init__(self, text: str = PROMPTS) -> None:
        super().__init__()
        self.world = self.add("ApprenticeTinyWorld", "1", student="consistency")
        self.lines = self.add("ApprenticePrompts", "2", clip=self.world[2], text=text)
        self.negative = self.add("CLIPTextEncode", "3", clip=self.world[2], text="")
        self.latent = self.add("EmptyLatentImage", "4", width=64, height=64, batch_size=self.lines[2])
        self.layout: Layout = {}

    def at(self, places: Layout) -> Example:
        """This, with its further nodes at ``places``."""
        self.layout = {key: place for key, place in START.items() if key in self.nodes} | places
        return self

    def draft(self, key: str, model: Any, seed: int, steps: int, preset: str = "tiny-world") -> Node:
        """A student's drafts of the batch."""
        return self.add(
            "ApprenticeStudentSampler", key, model=model, positive=self.lines[0], negative=self.negative[0],
            latent_image=self.latent[0], seed=seed, preset=preset, steps=steps, cfg=1.0, denoise=1.0, sampler_name="lcm",
            scheduler="normal",
        )  # fmt: skip

    def artist(self, key: str, oracle: Any, **changes: Any) -> Node:
        """The all-in-one node, with other or further inputs."""
        world = self.world
        inputs = {
            "student": world[1], "teacher": world[0], "vae": world[3], "oracle": oracle, "positive": self.lines[0],
            "negative": self.negative[0], "prompt": self.lines[1], "latent_image": self.latent[0], **SETTINGS, **changes,
        }  # fmt: skip
        return self.add("ApprenticeSampler", key, **inputs)

    def decode(self, key: str, samples: Any) -> Node:
        """Pictures of the world's latents."""
        return self.add("VAEDecode", key, samples=samples, vae=self.world[3])

    def calibrate(self, key: str, oracle: Any) -> Node:
        """The student's scores on some of the bundled prompts."""
        return self.add(
            "ApprenticeCalibrate", key, model=self.world[1], clip=self.world[2], vae=self.world[3], oracle=oracle,
            prompts="bundled", text="", name="tiny world example", max_prompts=24, drafts_per_prompt=2, batch_size=8, width=64,
            height=64, first_seed=0, preset="tiny-world", steps=2, cfg=1.0, sampler_name="dpmpp_2m", scheduler="karras",
        )  # fmt: skip

    def distil(self, key: str, model: Any, name: str, **inputs: Any) -> Node:
        """A one-step student of ``model``."""
        return self.add(
            "ApprenticeSiDDistill", key, model=model, clip=self.world[2], prompts="bundled", text="", name=name, batch_size=16,
            at_once=0, width=64, height=64, steps=1, alpha=1.0, kappa1=1.0, kappa2=1.0, kappa4=1.5, precision="auto",
            gradient_checkpointing=False, first_seed=0, save_every=50, **inputs, vae=self.world[3],
        )  # fmt: skip

    def one_step(self, key: str, model: Any) -> Node:
        """What a one-step student draws of the batch."""
        return self.add(
            "ApprenticeSiDSampler", key, model=model, positive=self.lines[0], latent_image=self.latent[0], seed=7, steps=1,
            vae=self.world[3], columns=4,
        )  # fmt: skip

    def prompt_teacher(self, key: str) -> Node:
        """A large CLIP as PromptKD's teacher."""
        return self.add(
            "ApprenticePromptKDTeacher", key, clip="tiny world large.safetensors", tokens="none", labelled="none",
            name="my teacher", shots=16, epochs=20, batch_size=4, learning_rate=0.0025, precision="auto", first_seed=0,
            templates="",
        )  # fmt: skip


def adaptive() -> Example:
    """The all-in-one node."""
    g = Example()
    sampler = g.artist("5", g.world[4])
    g.add("ApprenticeSaveImages", "6", images=sampler[1], verdict=sampler[2], filename_prefix="apprentice/picture")
    g.add("SaveImage", "7", images=sampler[3], filename_prefix="apprentice/contact_sheet")
    report = g.add("ApprenticeReport", "8", verdict=sampler[2], images=sampler[1])
    g.add("PreviewAny", "9", source=report[1])
    return g.at({
        "5": (400, 60, 380, 950), "7": (840, 60, 640, 560), "6": (1540, 60, 400, 560), "8": (840, 690, 300, 100),
        "9": (1190, 690, 750, 320),
    })  # fmt: skip


def modular() -> Example:
    """The same from single nodes, with a budget for the gate."""
    g = Example()
    drafts = g.draft("5", g.world[1], seed=12, steps=2)
    draft_images = g.decode("6", drafts[0])
    cost = g.add(
        "ApprenticeTeacherCost", "14", model=g.world[1], strategy="regenerate", rollback=0.7, steps=16, cfg=2.0,
        sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    judge = g.add(
        "ApprenticeJudge", "7", oracle=g.world[4], images=draft_images[0], prompt=g.lines[1], threshold="budget", value=18.0,
        drafts=drafts[0], teacher_nfe=cost[0],
    )  # fmt: skip
    teacher = g.add(
        "ApprenticeTeacher", "8", verdict=judge[0], drafts=drafts[0], model=g.world[0], positive=g.lines[0],
        negative=g.negative[0], strategy="regenerate", rollback=0.7, steps=16, cfg=2.0, sampler_name="dpmpp_2m",
        scheduler="karras", seed=12, max_batch=0,
    )  # fmt: skip
    improved = g.decode("9", teacher[0])
    better = g.add(
        "ApprenticeKeepBetter", "10", oracle=g.world[4], verdict=judge[0], drafts=drafts[0], improved=teacher[0],
        draft_images=draft_images[0], improved_images=improved[0], margin=0.0,
    )  # fmt: skip
    report = g.add("ApprenticeReport", "11", verdict=better[2], images=better[1], draft_images=draft_images[0])
    g.add("SaveImage", "12", images=report[0], filename_prefix="apprentice/contact_sheet")
    g.add("PreviewAny", "13", source=judge[1])
    return g.at({
        "5": (400, 60, 320, 520), "6": (400, 660, 200, 60), "14": (400, 790, 320, 250), "7": (780, 900, 330, 340),
        "8": (780, 60, 330, 640), "9": (780, 770, 200, 60), "10": (1170, 60, 330, 220), "11": (1560, 60, 300, 90),
        "12": (1170, 350, 760, 500), "13": (1170, 920, 760, 260),
    })  # fmt: skip


def editing() -> Example:
    """Inpainting and control: the right half of a picture is redrawn along its own edges, by student and teacher."""
    g = Example("panda face on yellow\nburger on green\ntomato on blue\nglobe on red")
    first = g.draft("5", g.world[1], seed=3, steps=4)
    picture = g.decode("6", first[0])
    new = g.add(
        "ApprenticePrompts", "7", clip=g.world[2], text="panda face on pink\nburger on purple\ntomato on orange\nglobe on gray"
    )
    edges = g.add("Canny", "8", image=picture[0], low_threshold=0.2, high_threshold=0.4)
    control = g.add(
        "ControlNetApplyAdvanced", "9", positive=new[0], negative=g.negative[0], control_net=g.world[5], image=edges[0],
        strength=0.8, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    black = g.add("SolidMask", "10", value=0.0, width=64, height=64)
    white = g.add("SolidMask", "11", value=1.0, width=32, height=64)
    mask = g.add("MaskComposite", "12", destination=black[0], source=white[0], x=32, y=0, operation="add")
    encoded = g.add("VAEEncode", "13", pixels=picture[0], vae=g.world[3])
    masked = g.add("SetLatentNoiseMask", "14", samples=encoded[0], mask=mask[0])
    sampler = g.artist("15", g.world[4], positive=control[0], negative=control[1], prompt=new[1], latent_image=masked[0])
    g.add("PreviewImage", "16", images=picture[0])
    g.add("SaveImage", "17", images=sampler[3], filename_prefix="apprentice/editing")
    return g.at({
        "5": (400, 60, 320, 520), "6": (400, 660, 200, 60), "16": (400, 790, 320, 270), "7": (780, 60, 300, 220),
        "8": (780, 350, 300, 90), "9": (780, 510, 300, 200), "10": (780, 780, 140, 110), "11": (940, 780, 140, 110),
        "12": (780, 960, 300, 130), "13": (1140, 60, 200, 60), "14": (1140, 180, 200, 60), "15": (1400, 60, 360, 950),
        "17": (1820, 60, 640, 560),
    })  # fmt: skip


def calibrated() -> Example:
    """Calibrate, then gate by the student's own 40th percentile; judged by the fast look at first, then by the full one."""
    g = Example()
    calibration = g.calibrate("5", g.world[4])
    sampler = g.artist("6", g.world[4], calibration=calibration[0], threshold="percentile", value=40.0)
    g.add("SaveImage", "7", images=calibration[2], filename_prefix="apprentice/calibration")
    g.add("PreviewAny", "8", source=calibration[1])
    g.add("SaveImage", "9", images=sampler[3], filename_prefix="apprentice/contact_sheet")
    shipped = g.add("ApprenticeLoadCalibration", "10", name="lcm-sdxl-imagereward")
    g.add("PreviewAny", "11", source=shipped[1])
    return g.at({
        "5": (400, 60, 360, 1000), "6": (1420, 60, 380, 1000), "7": (810, 60, 560, 300), "8": (810, 430, 560, 250),
        "9": (1850, 60, 640, 560), "10": (400, 1150, 360, 110), "11": (810, 750, 560, 310),
    })  # fmt: skip


def oracles() -> Example:
    """What oracles are good for besides gating. Both loaders hold the built-in one: put another file into the second."""
    g = Example()
    drafts = g.draft("5", g.world[1], seed=5, steps=2)
    pictures = g.decode("6", drafts[0])
    one, two = (g.add("ApprenticeLoadOracle", key, name="tiny world") for key in ("7", "8"))
    calibration = g.calibrate("9", one[0])
    both = g.add(
        "ApprenticeCombineOracles", "10", oracle_a=one[0], calibration_a=calibration[0], oracle_b=two[0],
        calibration_b=calibration[0], weight_a=1.0, weight_b=1.0, combination="vote",
    )  # fmt: skip
    quick = g.add("ApprenticeFastDecode", "11", model=g.world[1], samples=drafts[0])
    compared = g.add("ApprenticeOracleCompare", "12", oracle_a=one[0], oracle_b=both[0], images=pictures[0], prompt=g.lines[1])
    best = g.add(
        "ApprenticeBestOf", "13", oracle=one[0], images=pictures[0], prompt=g.lines[1], count=3, per_prompt=False,
        order="best first", latents=drafts[0],
    )  # fmt: skip
    scored = g.add("ApprenticeScore", "14", oracle=one[0], images=quick[0], prompt=g.lines[1])
    g.add("SaveImage", "15", images=compared[0], filename_prefix="apprentice/oracles")
    g.add("PreviewImage", "16", images=best[0])
    g.add("PreviewAny", "17", source=scored[1])
    g.add("PreviewImage", "18", images=quick[0])
    return g.at({
        "5": (400, 60, 300, 600), "6": (400, 740, 200, 60), "7": (400, 870, 300, 200), "8": (400, 1140, 300, 200),
        "9": (760, 60, 320, 960), "10": (760, 1110, 320, 220), "11": (1140, 60, 240, 60), "14": (1140, 190, 300, 170),
        "12": (1140, 430, 300, 170), "13": (1140, 670, 300, 320), "18": (1500, 60, 300, 260), "16": (1500, 390, 300, 400),
        "17": (1500, 860, 620, 270), "15": (1860, 60, 600, 480),
    })  # fmt: skip


def distil() -> Example:
    """A one-step LoRA for the tiny world's teacher, made in the graph, then drawn with; beside it one step of the teacher."""
    g = Example()
    student = g.distil(
        "5", g.world[0], "tiny world one step", method="LoRA", rank=32, pictures=4800, generator_rate=0.0005, fake_rate=0.001,
        ema_half_life=1000.0,
    )  # fmt: skip
    for key, model in (("6", student[0]), ("9", g.world[0])):
        drawn = g.one_step(key, model)
        g.add("SaveImage" if key == "6" else "PreviewImage", str(int(key) + 1), images=drawn[1],
              **({"filename_prefix": "apprentice/distilled"} if key == "6" else {}))  # fmt: skip
    g.add("PreviewImage", "11", images=student[1])
    g.add("PreviewAny", "12", source=student[3])
    del g.nodes["3"]
    return g.at({
        "5": (400, 60, 380, 1130), "6": (840, 60, 320, 480), "7": (1220, 60, 480, 420), "9": (840, 610, 320, 480),
        "10": (1220, 610, 480, 420), "11": (1760, 60, 620, 560), "12": (1760, 690, 620, 160),
    })  # fmt: skip


def students() -> Example:
    """Students from files: the tiny world's in one step, and a pixel-space EDM network with its one-step student."""
    g = Example()
    loaded = g.add("ApprenticeLoadStudent", "5", student="tiny world sid (bundled)", guidance=8.0, weight_dtype="default")
    drafts = g.draft("6", loaded[0], seed=7, steps=1, preset="auto")
    g.add("SaveImage", "8", images=g.decode("7", drafts[0])[0], filename_prefix="apprentice/student")
    student = g.add(
        "ApprenticeLoadEDM", "9", network="coloured digits SiD student.safetensors", label="each in turn", class_number=0,
        label_seed=0, batch_size=40,
    )  # fmt: skip
    one = g.add(
        "ApprenticeSiDSampler", "10", model=student[0], positive=student[1], latent_image=student[4], seed=3, steps=1, columns=10
    )
    big = g.add("ImageScaleBy", "11", image=one[1], upscale_method="nearest-exact", scale_by=8.0)
    g.add("PreviewImage", "12", images=big[0])
    teacher = g.add(
        "ApprenticeLoadEDM", "13", network="coloured digits teacher.safetensors", label="each in turn", class_number=0,
        label_seed=0, batch_size=10,
    )  # fmt: skip
    slow = g.add(
        "KSampler", "14", model=teacher[0], positive=teacher[1], negative=teacher[2], latent_image=teacher[4], seed=3, steps=20,
        cfg=1.0, sampler_name="heun", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    pixels = g.add("ImageScaleBy", "16", image=g.add("VAEDecode", "15", samples=slow[0], vae=teacher[3])[0],
                   upscale_method="nearest-exact", scale_by=8.0)  # fmt: skip
    g.add("PreviewImage", "17", images=pixels[0])
    return g.at({
        "5": (400, 60, 320, 200), "6": (400, 330, 320, 580), "7": (400, 990, 200, 60), "8": (780, 60, 300, 640),
        "13": (780, 780, 320, 320), "9": (1160, 60, 340, 300), "10": (1160, 440, 340, 560), "11": (1160, 1080, 340, 110),
        "12": (1560, 60, 720, 340), "14": (1560, 480, 340, 560), "15": (1960, 480, 200, 60), "16": (1960, 610, 320, 110),
        "17": (1960, 800, 320, 300),
    })  # fmt: skip


def critic() -> Example:
    """Folder to critic to gate: a critic from pictures without labels and a list of words, which then judges drafts."""
    g = Example(PROMPTS.replace("purple square", "blue diamond"))  # the icons have no such square
    teacher = g.prompt_teacher("5")
    critic = g.add(
        "ApprenticePromptKDDistill", "6", teacher=teacher[0], clip="tiny world small.safetensors", pictures="built-in icons",
        classes="", name="icons", epochs=20, batch_size=8, learning_rate=0.005, weight=1000.0, temperature=1.0, augment=False,
        depth=9, precision="auto", first_seed=0,
    )  # fmt: skip
    oracle = g.add("ApprenticePromptKDOracle", "7", critic=critic[0], measure="probability", class_name="")
    sampler = g.artist("8", oracle[0])
    g.add("PreviewImage", "9", images=critic[1])
    g.add("PreviewAny", "10", source=critic[2])
    g.add("SaveImage", "11", images=sampler[3], filename_prefix="apprentice/critic")
    return g.at({
        "5": (400, 60, 360, 560), "6": (820, 60, 380, 800), "9": (820, 930, 380, 290), "10": (400, 690, 360, 110),
        "7": (400, 870, 360, 190), "8": (1260, 60, 380, 950), "11": (1700, 60, 640, 560),
    })  # fmt: skip


def sorting() -> Example:
    """A critic from a file names a batch and sorts it into one batch a class; with new words it knows what it was never shown."""
    g = Example("red heart on blue\npanda on yellow\nrose on gray\nred heart\npanda on green\nrose")
    drafts = g.draft("5", g.world[1], seed=5, steps=4)
    pictures = g.decode("6", drafts[0])
    loaded = g.add("ApprenticeLoadPromptKD", "7", file="tiny world critic.safetensors", clip="auto", classes="")
    named = g.add("ApprenticeClassify", "8", critic=loaded[0], images=pictures[0], top=3)
    parts = g.add("ApprenticeSort", "9", critic=loaded[0], images=pictures[0], classes="", min_probability=0.0, latents=drafts[0])
    g.add("SaveImage", "10", images=parts[0], filename_prefix=parts[2])
    g.add("PreviewAny", "11", source=named[0])
    teacher = g.prompt_teacher("12")
    more = g.add("ApprenticeDomainText", "13", critic=loaded[0], teacher=teacher[0], classes="love\nbear\nflower", keep=False)
    renamed = g.add("ApprenticeClassify", "14", critic=more[0], images=pictures[0], top=2)
    g.add("PreviewAny", "15", source=renamed[0])
    g.add("PreviewImage", "16", images=pictures[0])
    return g.at({
        "5": (400, 60, 320, 520), "6": (400, 660, 200, 60), "16": (400, 790, 320, 300), "7": (780, 60, 340, 250),
        "12": (780, 390, 340, 560), "13": (780, 1020, 340, 260), "8": (1180, 60, 320, 160), "11": (1560, 60, 520, 250),
        "9": (1180, 300, 320, 360), "10": (1560, 390, 520, 480), "14": (1180, 740, 320, 160), "15": (1560, 950, 520, 230),
    })  # fmt: skip


def promising() -> Example:
    """The teacher from the noise that the student finds promising, beside the teacher from any."""
    g = Example()
    chosen = g.add(
        "ApprenticeTiltedStart", "5", model=g.world[1], positive=g.lines[0], negative=g.negative[0], latent_image=g.latent[0],
        vae=g.world[3], oracle=g.world[4], prompt=g.lines[1], candidates=8, alpha=0.3, seed=12, preset="tiny-world", steps=1,
        cfg=1.0, sampler_name="lcm", scheduler="normal",
    )  # fmt: skip
    plain = g.add("RandomNoise", "6", noise_seed=12)
    guider = g.add("CFGGuider", "7", model=g.world[0], positive=g.lines[0], negative=g.negative[0], cfg=2.0)
    sampler = g.add("KSamplerSelect", "8", sampler_name="dpmpp_2m")
    sigmas = g.add("BasicScheduler", "9", model=g.world[0], scheduler="karras", steps=16, denoise=1.0)
    for key, noise, prefix in ((10, chosen, "promising"), (14, plain, "any")):
        drawn = g.add(
            "SamplerCustomAdvanced", str(key), noise=noise[0], guider=guider[0], sampler=sampler[0], sigmas=sigmas[0],
            latent_image=g.latent[0],
        )  # fmt: skip
        picture = g.decode(str(key + 1), drawn[0])
        g.add("SaveImage", str(key + 2), images=picture[0], filename_prefix=f"apprentice/{prefix}_noise")
        score = g.add("ApprenticeScore", str(key + 3), oracle=g.world[4], images=picture[0], prompt=g.lines[1])
        g.add("PreviewAny", str(key + 8), source=score[1])
    g.add("PreviewAny", "20", source=chosen[1])
    return g.at({
        "5": (400, 60, 330, 720), "6": (400, 890, 330, 110), "7": (790, 60, 240, 120), "8": (790, 260, 240, 60),
        "9": (790, 400, 240, 110), "13": (790, 600, 240, 130), "17": (790, 820, 240, 130), "10": (1090, 60, 260, 330),
        "11": (1090, 470, 260, 60), "14": (1090, 610, 260, 330), "15": (1090, 1020, 260, 60), "12": (1410, 60, 420, 480),
        "16": (1410, 610, 420, 480), "18": (1890, 60, 500, 300), "20": (1890, 430, 500, 350), "22": (1890, 850, 500, 300),
    })  # fmt: skip


def teaches() -> Example:
    """A critic teaches the teacher, and the tuned teacher a student: reward at a price, then Score identity Distillation."""
    g = Example()
    critic = g.add("ApprenticeLoadPromptKD", "5", file="tiny world critic.safetensors", clip="auto", classes="")
    oracle = g.add("ApprenticePromptKDOracle", "6", critic=critic[0], measure="logit", class_name="")
    tuned = g.add(
        "ApprenticeRewardFinetune", "7", model=g.world[0], clip=g.world[2], vae=g.world[3], oracle=oracle[0], prompts="bundled",
        text="", max_prompts=16, name="tiny world tuned", algorithm="path_kl", divergence="kl", strength="target KL", value=0.5,
        rank=16, updates=40, batch_size=8, at_once=8, width=64, height=64, steps=10, scheduler="karras", regressed_steps=6,
        learning_rate=0.0005, base_draws=16, rounds=2, precision="auto", gradient_checkpointing=False, first_seed=0,
        save_every=20,
    )  # fmt: skip
    curve = g.add("ApprenticeRewardCurve", "8", run=tuned[1])
    student = g.distil(
        "9", tuned[0], "tiny world taught", method="full copy", rank=16, pictures=1600, generator_rate=0.00005, fake_rate=0.0002,
        ema_half_life=400.0, student=g.world[1],
    )  # fmt: skip
    drawn = g.one_step("10", student[0])
    g.add("SaveImage", "11", images=drawn[1], filename_prefix="apprentice/taught")
    g.add("PreviewImage", "12", images=curve[0])
    g.add("PreviewImage", "13", images=curve[1])
    g.add("PreviewAny", "14", source=tuned[3])
    del g.nodes["3"]
    return g.at({
        "5": (400, 60, 320, 250), "6": (400, 390, 320, 190), "7": (780, 60, 360, 980), "8": (400, 660, 320, 120),
        "12": (1200, 60, 420, 620), "13": (1200, 760, 420, 280), "14": (400, 860, 320, 230), "9": (1680, 60, 360, 1010),
        "10": (2100, 60, 320, 480), "11": (2100, 620, 420, 420),
    })  # fmt: skip


def custom() -> Example:
    """Schedules, sampler, guidance and noise from ComfyUI's own nodes, as SamplerCustomAdvanced takes them."""
    g = Example()
    noise = g.add("RandomNoise", "5", noise_seed=12)
    levels = g.add("KarrasScheduler", "6", steps=2, sigma_max=80.0, sigma_min=1.55, rho=7.0)
    lcm = g.add("KSamplerSelect", "7", sampler_name="lcm")
    plain = g.add("BasicGuider", "8", model=g.world[1], conditioning=g.lines[0])
    schedule = g.add("BasicScheduler", "9", model=g.world[0], scheduler="karras", steps=16, denoise=1.0)
    second_order = g.add("KSamplerSelect", "10", sampler_name="heun")
    guided = g.add("CFGGuider", "11", model=g.world[0], positive=g.lines[0], negative=g.negative[0], cfg=2.0)
    sampler = g.artist(
        "12", g.world[4], noise=noise[0], sigmas=levels[0], sampler=lcm[0], guider=plain[0], teacher_sigmas=schedule[0],
        teacher_sampler=second_order[0], teacher_guider=guided[0],
    )  # fmt: skip
    g.add("SaveImage", "13", images=sampler[3], filename_prefix="apprentice/contact_sheet")
    return g.at({
        "5": (400, 60, 300, 110), "6": (400, 250, 300, 150), "7": (400, 480, 300, 60), "8": (400, 620, 300, 60),
        "9": (400, 800, 300, 130), "10": (400, 1010, 300, 60), "11": (400, 1150, 300, 120), "12": (760, 60, 380, 1220),
        "13": (1200, 60, 640, 560),
    })  # fmt: skip


def detailer() -> Example:
    """The rejected go through stock nodes of the artist's own choice, and back into their places."""
    g = Example()
    drafts = g.draft("5", g.world[1], seed=12, steps=1)
    pictures = g.decode("6", drafts[0])
    judge = g.add(
        "ApprenticeJudge", "7", oracle=g.world[4], images=pictures[0], prompt=g.lines[1], threshold="worst share", value=0.5,
        drafts=drafts[0],
    )  # fmt: skip
    split = g.add("ApprenticeSplit", "8", verdict=judge[0], images=pictures[0], latents=drafts[0])
    again = g.add("ApprenticePrompts", "9", clip=g.world[2], text=split[4])
    redrawn = g.add(
        "KSampler", "10", model=g.world[0], positive=again[0], negative=g.negative[0], latent_image=split[3], seed=13, steps=12,
        cfg=2.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=0.6,
    )  # fmt: skip
    merged = g.add(
        "ApprenticeMerge", "11", verdict=judge[0], images=pictures[0], rejected=g.decode("12", redrawn[0])[0], latents=drafts[0],
        rejected_latents=redrawn[0],
    )  # fmt: skip
    g.add("SaveImage", "13", images=merged[0], filename_prefix="apprentice/detailed")
    g.add("PreviewImage", "14", images=split[2])
    return g.at({
        "5": (400, 60, 320, 520), "6": (400, 660, 200, 60), "7": (780, 60, 340, 330), "8": (780, 470, 340, 220),
        "14": (780, 780, 340, 330), "9": (1180, 60, 320, 160), "10": (1180, 300, 320, 520), "12": (1180, 900, 200, 60),
        "11": (1180, 1040, 320, 110), "13": (1560, 60, 560, 700),
    })  # fmt: skip


EXAMPLES = {
    "adaptive": adaptive, "adaptive-modular": modular, "editing": editing, "calibrate-then-gate": calibrated, "oracles": oracles,
    "distil": distil, "students": students, "critic": critic, "sorting": sorting,
    "critic-teaches-student": teaches, "promising-noise": promising, "custom-sampling": custom, "own-detailer": detailer,
}  # fmt: skip
