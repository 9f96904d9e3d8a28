"""Examples on the tiny world that train something, or load what was trained."""

from __future__ import annotations

from .graph import PROMPTS, START, Example, group


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
    return g.on(
        "Distil a one-step LoRA, then draw with it",
        "*SiD Distill* teaches a LoRA to draw in one step what the teacher draws in many, without any pictures: Score identity "
        "Distillation. On a CPU it takes a few minutes, and it goes on where it was stopped.\n\n"
        "Beside it one step of the teacher itself, which shows what was learned. The LoRA lies in models/loras and loads "
        "everywhere.\n\nFor a model of your own connect its MODEL, CLIP and VAE, and set the size in pixels.",
        (group("1  Models and prompts", "1 2 4"), group("2  Distil", "5", "11 12"), group("3  One step of the student", "6 7"),
         group("For comparison: one step of the teacher", "9 10")),
        shown="2.text 5.pictures 6.seed", results="7",
    )  # fmt: skip


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
    return g.on(
        "Students from files: one step each",
        "*Load Student* reads distilled files as their authors publish them, whatever their layout: here the tiny world's "
        "one-step student. Its preset is told by its file.\n\n"
        "*Load EDM Network* reads pixel-space networks, as the SiD authors publish theirs: a one-step student of coloured "
        "digits.\n\nBelow, the teacher of those digits in twenty steps of Heun, with the stock KSampler.\n\n"
        "All three files ship with the pack; yours go to models/diffusion_models.",
        (START, group("2  A student of the tiny world", "5 6 7", "8"), group("3  A one-step student of digits", "9 10", "11 12")),
        (group("4  Its teacher, in twenty steps", "13", "14", "15 16", "17"),),
        shown="2.text 6.seed 10.seed", results="8",
    )  # fmt: skip


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
    return g.on(
        "A critic from a list of words judges drafts",
        "*PromptKD Teacher* is a large CLIP that knows the classes by their names. *PromptKD Distill* makes a small, fast "
        "critic of it, from pictures that nobody has labelled.\n\n"
        "The critic becomes an **oracle**: how probable the prompted class is. It judges the student's drafts like any other "
        "oracle.\n\nPut your own folder in place of the built-in icons, and your own words in `classes`. On a CPU this takes "
        "about a minute.",
        (START, group("2  A large teacher", "5 10"), group("3  A small critic", "6 9"), group("4  As an oracle", "7"),
         group("5  Drafts, judged by it", "8", "11")),
        shown="2.text 6.epochs 8.value", results="11",
    )  # fmt: skip


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
    return g.on(
        "Name a batch and sort it, with words it never saw",
        "A critic from a file says what is on each picture, and sorts the batch into one batch a class. Each part is saved "
        "under its class's name.\n\n"
        "*Domain Text* gives the critic new words without training: the large teacher's text side reads them. So it can name "
        "what it was never shown.\n\nSorting costs one look a picture; nothing is drawn again.",
        (START, group("2  Draft", "5 6 16"), group("3  A critic", "7 8 9"), group("4  Named and sorted", "11 10")),
        (group("5  New words", "12", "13 14"), group("6  Named anew", "15")),
        shown="2.text 13.classes", results="10",
    )  # fmt: skip


def teaches() -> Example:
    """A critic teaches the teacher, and the tuned teacher a student: reward at a price, then Score identity Distillation."""
    g = Example()
    critic = g.add("ApprenticeLoadPromptKD", "5", file="tiny world critic.safetensors", clip="auto", classes="")
    oracle = g.add("ApprenticePromptKDOracle", "6", critic=critic[0], measure="logit", class_name="")
    tuned = g.add(
        "ApprenticeRewardFinetune", "7", model=g.world[0], clip=g.world[2], vae=g.world[3], oracle=oracle[0], prompts="bundled",
        text="", max_prompts=16, name="tiny world tuned", algorithm="path_kl", divergence="kl", strength="target KL", value=0.2,
        rank=16, updates=40, batch_size=8, at_once=8, width=64, height=64, steps=10, scheduler="karras", regressed_steps=6,
        learning_rate=0.0005, base_draws=64, rounds=2, precision="auto", gradient_checkpointing=False, first_seed=0,
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
    return g.on(
        "A critic teaches the teacher, and the teacher a student",
        "*Reward Finetune* tunes the teacher towards what the critic likes, at a price for leaving what it could draw. The "
        "curves show reward and price after every update.\n\n"
        "The tuned teacher then teaches a one-step student, by Score identity Distillation. The student draws at once what the "
        "tuned teacher draws in many steps.\n\n"
        "On a CPU this takes some minutes; both runs go on where they were stopped.",
        (group("1  Models and prompts", "1 2 4"), group("2  A critic", "5 6"), group("3  Tune the teacher", "7 14"),
         group("4  Reward and price", "8 12", "13"), group("5  Teach a student", "9"), group("6  Draw in one step", "10 11")),
        shown="2.text 7.updates 9.pictures", results="11",
    )  # fmt: skip
