"""Examples on the tiny world about who judges, and what is done with the judged."""

from __future__ import annotations

from .graph import PROMPTS, START, Example, group


def oracles() -> Example:
    """What oracles are good for besides gating: two of different kinds."""
    g = Example(PROMPTS.replace("purple square", "blue diamond"))
    drafts = g.draft("5", g.world[1], seed=5, steps=2)
    pictures = g.decode("6", drafts[0])
    one = g.add("ApprenticeLoadOracle", "7", name="tiny world")
    critic = g.add("ApprenticeLoadPromptKD", "8", file="tiny world critic.safetensors", clip="auto", classes="")
    two = g.add("ApprenticePromptKDOracle", "9", critic=critic[0], measure="probability", class_name="")
    calibrations = [g.calibrate("10", one[0]), g.calibrate("11", two[0], "tiny world critic example")]
    vote = g.add(
        "ApprenticeCombineOracles", "12", oracle_a=one[0], calibration_a=calibrations[0][0], oracle_b=two[0],
        calibration_b=calibrations[1][0], weight_a=1.0, weight_b=1.0, combination="vote",
    )  # fmt: skip
    quick = g.add("ApprenticeFastDecode", "13", model=g.world[1], samples=drafts[0])
    compared = g.add("ApprenticeOracleCompare", "14", oracle_a=one[0], oracle_b=two[0], images=pictures[0], prompt=g.lines[1])
    best = g.add(
        "ApprenticeBestOf", "15", oracle=vote[0], images=pictures[0], prompt=g.lines[1], count=4, per_prompt=False,
        order="best first", latents=drafts[0],
    )  # fmt: skip
    scored = g.add("ApprenticeScore", "16", oracle=one[0], images=quick[0], prompt=g.lines[1])
    g.add("SaveImage", "17", images=compared[0], filename_prefix="apprentice/oracles")
    g.add("SaveImage", "18", images=best[0], filename_prefix="apprentice/best_of")
    g.add("PreviewAny", "19", source=scored[1])
    g.add("PreviewImage", "20", images=quick[0])
    return g.on(
        "Two oracles: compare, combine, pick the best",
        "Two judges of different kinds look at eight drafts: the tiny world's own oracle, and a critic that knows classes by "
        "their names. *Compare Oracles* shows where they agree and where not.\n\n"
        "Each is calibrated on the same prompts, so that *Combine Oracles* can let them vote, whatever their units. *Best of N* "
        "keeps the four that the vote likes best.\n\n"
        "*Fast Decode* gives a rough look that costs next to nothing, and *Score* says what the oracle makes of it.",
        (START, group("2  Draft", "5 6"), group("3  Two judges", "7 8 9"), group("4  Calibrated", "10", "11")),
        (group("5  Do they agree?", "14", "17"), group("6  They vote on the best", "12 15", "18"),
         group("7  A quick look", "13 16", "20", "19")),
        shown="2.text 5.seed 15.count", results="17 18",
    )  # fmt: skip


def cascade() -> Example:
    """A small critic judges all, a jury those that the critic can't tell."""
    g = Example()
    critic = g.add("ApprenticeLoadPromptKD", "5", file="tiny world critic.safetensors", clip="auto", classes="")
    light = g.add("ApprenticePromptKDOracle", "6", critic=critic[0], measure="probability", class_name="")
    other = g.add("ApprenticeLoadOracle", "7", name="tiny world")
    first = [g.calibrate("8", light[0], "tiny world critic example"), g.calibrate("9", other[0])]
    heavy = g.add(
        "ApprenticeCombineOracles", "10", oracle_a=light[0], calibration_a=first[0][0], oracle_b=other[0],
        calibration_b=first[1][0], weight_a=1.0, weight_b=1.0, combination="weighted",
    )  # fmt: skip
    both = g.add(
        "ApprenticeCascadeOracle", "12", light=light[0], light_calibration=first[0][0], heavy=heavy[0],
        heavy_calibration=g.calibrate("11", heavy[0], "tiny world jury example")[0], band="share", share=0.4, differing=0.2,
        confidence=0.9, percentile=30.0,
    )  # fmt: skip
    drawn = g.artist("13", both[0], value=0.4)
    g.add("ApprenticeSaveImages", "14", images=drawn[1], verdict=drawn[2], filename_prefix="apprentice/cascade")
    g.add("PreviewAny", "15", source=both[2])
    return g.on(
        "A light judge for all, a heavy one for the doubtful",
        "A good oracle may be large and slow. Here a small **critic** judges every picture, and a **jury** of two only those "
        "near the threshold, wherever that lies.\n\n"
        "Both have scored the same drafts once, in *Calibrate*. From these *Cascade Oracle* learns what a light score is worth, "
        "and where the doubt begins. The verdict says how many pictures the jury saw.\n\n"
        "With a large oracle of your own: *Load Oracle* with *on_demand* as the heavy one, and two *Load Calibration*. Its file "
        "is not even read while no picture needs it.",
        (START, group("2  A critic, and a second judge", "5 6", "7"), group("3  Each calibrated", "8", "9")),
        (group("4  The jury, on the same drafts", "10", "11"), group("5  Both as one", "12", "15"),
         group("6  Draft, judge, improve", "13", "14")),
        shown="2.text 12.share 13.seed 13.value", results="14",
    )  # fmt: skip


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
    return g.on(
        "Only the rejected go through your own nodes",
        "*Judge* scores the drafts, and *Split by Verdict* takes the batch apart: accepted pictures on one "
        "side, rejected ones on "
        "the other, with their prompts.\n\n"
        "The rejected go through whatever you like: here a stock KSampler at 0.6 denoise, for you an upscaler or a face "
        "detailer. *Merge by Verdict* puts them back into their places.\n\n"
        "Where nothing was rejected, that branch doesn't run at all.",
        (START, group("2  Draft", "5 6"), group("3  Judge and split", "7 8", "14"), group("4  Your own nodes", "9 10 12")),
        (group("5  Together again", "11", "13"),),
        shown="2.text 5.seed 7.value 10.denoise", results="13",
    )  # fmt: skip


def taste() -> Example:
    """Clicks on the board become an oracle, which then judges."""
    g = Example()
    first = g.artist("5", g.world[4], value=1.0)
    g.add("ApprenticeSaveImages", "6", images=first[1], verdict=first[2], filename_prefix="apprentice/before")
    learned = g.add("ApprenticeTaste", "7", oracle=g.world[4], taste="my taste", mix=-1.0, save_as="my taste")
    second = g.artist("8", learned[0], seed=99)
    g.add("ApprenticeSaveImages", "9", images=second[1], verdict=second[2], filename_prefix="apprentice/my_taste")
    g.add("PreviewAny", "10", source=learned[2])
    shared = g.add("ApprenticeLoadTaste", "11", name="my taste.safetensors", oracle=g.world[4])
    g.add("PreviewAny", "12", source=shared[2])
    tuned = g.add(
        "ApprenticeTasteFinetune", "13", model=g.world[1], clip=g.world[2], vae=g.world[3], taste="my taste", name="my look",
        rank=16, beta=2000.0, updates=80, batch_pairs=4, at_once=0, width=0, height=0, steps=1, scheduler="karras",
        own_noise=True, learning_rate=0.0003, precision="auto", gradient_checkpointing=False, first_seed=0, save_every=20,
    )  # fmt: skip
    looks = g.decode("15", g.draft("14", tuned[0], seed=7, steps=1)[0])
    g.add("SaveImage", "16", images=looks[0], filename_prefix="apprentice/my_look")
    g.add("PreviewAny", "17", source=tuned[3])
    return g.on(
        "Teach the judge your own taste",
        "Run it, then choose *Teach a taste* on the Draft Board and click the better picture of each pair. Every picture is "
        "drawn by the student and by the teacher, so there is always a pair to choose from.\n\n"
        "After some twenty clicks switch group 3 on (select it, Ctrl-M) and run again. *Taste* fits your preferences on the "
        "oracle's own features, and says how well it predicts clicks that it has not seen.\n\n"
        "The result is an **oracle** like any other: here it judges a new batch. Its file can be shared; group 4 loads one.\n\n"
        "Group 5 makes a **LoRA** of the same clicks, without any oracle: the student itself learns to draw what you chose.",
        (START, group("2  Pictures to choose from", "5", "6"),
         group("3  Judged by your taste (off until you have clicked)", "7 10", "8", "9")),
        (group("4  A taste that somebody shared (off)", "11", "12"),
         group("5  A LoRA from your clicks (off)", "13 17", "14 15", "16")),
        shown="2.text 5.seed", results="6", muted="7 8 9 10 11 12 13 14 15 16 17",
    )  # fmt: skip
