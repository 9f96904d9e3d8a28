"""Examples on the tiny world: drafts, judging, improving."""

from __future__ import annotations

from typing import Any

from .graph import START, Example, group


def start() -> Example:
    """As little as there can be: models, prompts, one node, the pictures."""
    g = Example("glossy red heart on blue\npanda face on yellow\nstrawberry on pink\nburger on green")
    sampler = g.artist("5", g.world[4])
    g.add("ApprenticeSaveImages", "6", images=sampler[1], verdict=sampler[2], filename_prefix="apprentice/start")
    return g.on(
        "Start here: four pictures in a few seconds",
        "Press *Run*: nothing has to be downloaded, and it runs on any machine. A fast model drafts four small pictures, a judge "
        "scores them, and a slow model redraws the two weakest.\n\n"
        "The **Draft Board** on the node shows every draft with its score. Click a picture to keep it, shift-click to have it "
        "redrawn, and run again: only that is done anew.\n\n"
        "For your own models open the example that names them.",
        (START, group("2  Draft, judge, improve", "5"), group("3  The pictures", "6")),
        shown="2.text 5.seed 5.value", results="6",
    )  # fmt: skip


def adaptive() -> Example:
    """The all-in-one node."""
    g = Example()
    sampler = g.artist("5", g.world[4])
    g.add("ApprenticeSaveImages", "6", images=sampler[1], verdict=sampler[2], filename_prefix="apprentice/picture")
    g.add("SaveImage", "7", images=sampler[3], filename_prefix="apprentice/contact_sheet")
    report = g.add("ApprenticeReport", "8", verdict=sampler[2], images=sampler[1])
    g.add("PreviewAny", "9", source=report[1])
    return g.on(
        "Draft, judge, improve: all in one node",
        "The fast **student** drafts eight pictures in two steps each. The **oracle** scores every draft against its prompt, and "
        "the worst half is sent to the slow **teacher**. The teacher refines them, and the better of the two is kept.\n\n"
        "The pictures are saved with their scores, and the contact sheet shows drafts, scores and decisions side by side.\n\n"
        "Press *Run*; then change `value`, or drag the line on the Draft Board, and run again: only the gate moves.",
        (START, group("2  The method", "5"), group("3  What came of it", "7 8", "6 9")),
        shown="2.text 5.seed 5.threshold 5.value 5.strategy", results="6 7",
    )  # fmt: skip


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
    return g.on(
        "The same from single nodes, with a budget",
        "What Apprentice Sampler does, wired by hand, so that any part can be exchanged. *Student Sampler* drafts, *Judge* "
        "decides, *Teacher* regenerates what was rejected, *Keep Better* compares.\n\n"
        "The threshold is a **budget**: on average 18 network evaluations a picture, and the teacher gets the worst drafts that "
        "this pays for. *Teacher Cost* tells the judge what one picture of the teacher costs.\n\n"
        "Nothing of the teacher is loaded when every draft passes.",
        (START, group("2  Draft", "5 6"), group("3  Judge", "14 7"), group("4  Improve", "8 9"),
         group("5  Keep the better", "10"), group("6  What came of it", "12 11 13")),
        shown="2.text 5.seed 7.threshold 7.value", results="12",
    )  # fmt: skip


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
    return g.on(
        "Inpaint with a ControlNet, judged",
        "A picture is drawn first, then its right half is redrawn along its own edges. The mask lies on the latent "
        "(*Set Latent Noise Mask*), the edges come from *Canny* and go through a ControlNet.\n\n"
        "Student and teacher both keep to mask and edges. The judge looks at the whole picture, and only weak ones go to the "
        "teacher.\n\nFor a picture of your own put *Load Image* in place of group 2.",
        (START, group("2  A picture", "5 6 16"), group("3  New words, edges", "7 8", "9"), group("4  Mask", "10 11 12", "13 14")),
        (group("5  Redraw, judge, improve", "15", "17"),),
        shown="2.text 7.text 15.seed 15.value", results="17",
    )  # fmt: skip


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
    return g.on(
        "Calibrate once, then gate by percentile",
        "*Calibrate* lets the student draw 24 of the bundled prompts and keeps the scores, in a file that is "
        "reused. From then on "
        "a threshold means something before the first picture: here the student's own 40th percentile.\n\n"
        "With a calibration a single picture can be judged too, because it needn't be the worst of a batch.\n\n"
        "*Load Calibration* shows one that ships with the pack, for LCM-SDXL and ImageReward. The histogram is saved beside the "
        "contact sheet.",
        (START, group("2  Calibrate", "5", "7 8"), group("3  Gate by it", "6", "9")),
        (group("One that ships", "10", "11"),),
        shown="2.text 6.seed 6.value", results="7 9",
    )  # fmt: skip


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
    return g.on(
        "Samplers, schedules and guiders of ComfyUI's own",
        "Noise, noise levels, sampler and guider come over wires, as *SamplerCustomAdvanced* takes them. The student draws with "
        "LCM on two Karras levels, and the teacher with Heun, CFG 2 and sixteen levels.\n\n"
        "What is connected goes before the node's own widgets. So any sampler node of any pack can be a student's or a "
        "teacher's.\n\nThe costs on the contact sheet are counted by network evaluations: Heun takes two a step.",
        (START, group("2  Student", "5 6 7 8"), group("3  Teacher", "9 10 11"), group("4  The method", "12"),
         group("5  What came of it", "13")),
        shown="2.text 5.noise_seed 12.value", results="13",
    )  # fmt: skip


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
    return g.on(
        "The teacher starts from the student's best noise",
        "For every picture the student tries eight noises in one step each. The oracle says which of them promise most, and one "
        "is drawn at random in favour of the promising.\n\n"
        "The teacher then draws from that noise, beside the same teacher from any noise. Both are scored below.\n\n"
        "Smaller `alpha` is greedier; the steps cost the student's price, not the teacher's.",
        (START, group("2  Promising noise", "5 20"), group("3  One teacher", "6 7 8 9"),
         group("4  From promising noise", "10 11 13")),
        (group("5  From any noise", "14 15 17"), group("6  Side by side", "12 18", "16 22")),
        shown="2.text 5.candidates 5.alpha 5.seed", results="12 16",
    )  # fmt: skip


def explored() -> Example:
    """Two students under one budget, a prompt's pictures chosen together, the teacher where it pays."""
    g = Example("\n".join(["glossy red heart on blue"] * 4 + ["panda face on yellow"] * 4))
    second = g.add("ApprenticeTinyWorld", "5", student="sid")
    said = {"positive": g.lines[0], "negative": g.negative[0], "preset": "tiny-world", "steps": 1, "cfg": 1.0}
    one = g.add("ApprenticeSource", "6", model=g.world[1], **said, name="consistency")
    two = g.add("ApprenticeSource", "7", model=second[1], **said, name="SiD")
    elsewhere = g.add(
        "KSampler", "15", model=g.world[1], positive=g.lines[0], negative=g.negative[0], latent_image=g.latent[0], seed=3,
        steps=3, cfg=1.0, sampler_name="lcm", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    finished = g.add("ApprenticePictureSource", "17", images=g.decode("16", elsewhere[0])[0], cost=3.0, name="a KSampler")
    teacher: dict[str, Any] = {"strategy": "regenerate", "rollback": 0.7, "steps": 9, "cfg": 2.0}
    teacher |= {"sampler_name": "dpmpp_2m", "scheduler": "karras"}
    cost = g.add("ApprenticeTeacherCost", "8", model=g.world[1], **teacher)
    search = g.add(
        "ApprenticeExplore", "9", oracle=g.world[4], vae=g.world[3], source_1=one[0], source_2=two[0], source_3=finished[0],
        prompt=g.lines[1], latent_image=g.latent[0], seed=12, spend="budget", value=8.0, most=32.0, variety=10.0, denoise=1.0,
        teacher_nfe=cost[0],
    )  # fmt: skip
    improved = g.add(
        "ApprenticeTeacher", "10", verdict=search[2], drafts=search[0], model=g.world[0], positive=g.lines[0],
        negative=g.negative[0], **teacher, seed=12, max_batch=0,
    )  # fmt: skip
    better = g.add(
        "ApprenticeKeepBetter", "11", oracle=g.world[4], verdict=search[2], drafts=search[0], improved=improved[0],
        draft_images=search[1], improved_images=g.decode("12", improved[0])[0], margin=0.0,
    )  # fmt: skip
    g.add("ApprenticeSaveImages", "13", images=better[1], verdict=better[2], filename_prefix="apprentice/explored")
    g.add("PreviewAny", "14", source=search[3])
    return g.on(
        "Spend where it pays: two students, one budget",
        "Eight pictures of two prompts, at eight network evaluations each **on average**. *Explore* lets two students draw "
        "one-step drafts, again and again for the pictures that may still win, and stops where the next draft isn't worth its "
        "price.\n\n"
        "`variety` chooses the four pictures of a prompt together, so that they differ. A picture whose best draft stays weak "
        "goes to the teacher, once its gain is known to be worth it: that is learned from run to run.\n\n"
        "Pictures of anything else's making compete too: here a stock KSampler's. The report tells the order in which drafts "
        "were tried, their scores and indices.",
        (START, group("2  Two students", "5", "6 7"), group("3  Pictures from elsewhere", "15 16", "17")),
        (group("4  Explore", "8 14", "9"), group("5  The teacher, where it pays", "10 12", "11"), group("6  The pictures", "13")),
        shown="2.text 9.seed 9.spend 9.value 9.variety", results="13",
    )  # fmt: skip
