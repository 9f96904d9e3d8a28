"""The cascade: a light oracle for all, the heavy one for the doubtful; its scale, its bands, and what they promise."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_apprentice.gate.calibration import Calibration, Maker
from comfyui_apprentice.gate.cascade import CertifiedBand, Pairs, ShareBand, report
from comfyui_apprentice.gate.controller import FileController
from comfyui_apprentice.gate.decision import Situation, gate_scores, limits
from comfyui_apprentice.gate.thresholds import absolute, worst_share
from comfyui_apprentice.oracles.base import Oracle
from comfyui_apprentice.oracles.cascade import Cascade, Scale
from comfyui_apprentice.oracles.deferred import Deferred
from scipy.stats import norm, spearmanr
from torch import Tensor, nn

NAN, INF = math.nan, math.inf
RHO = 0.8  # correlation of light and heavy scores, both standard normal


class Channel(Oracle):
    """Scores a picture by the mean of one colour, and counts what it was asked."""

    differentiable = True

    def __init__(self, channel: int, comparable: bool = True) -> None:
        self.name, self.channel, self.asked = f"colour {channel}", channel, 0
        self.comparable_across_prompts = comparable
        self.network = nn.Linear(1, 1).requires_grad_(False)

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.asked += len(images)
        return images[..., self.channel].flatten(1).mean(1)

    def fingerprint(self) -> str:
        return f"channel {self.channel}"


def pictures(light: list[float], heavy: list[float]) -> Tensor:
    """Pictures [B, 2, 2, 3] that the light oracle scores by red and the heavy one by green."""
    both = torch.tensor([light, heavy, [0.0] * len(light)], dtype=torch.float32).T
    return both[:, None, None, :].expand(-1, 2, 2, -1)


def drawn(rng: np.random.Generator, count: int) -> tuple[list[float], list[float]]:
    light, heavy = rng.multivariate_normal([0, 0], [[1, RHO], [RHO, 1]], count).T
    return light.tolist(), heavy.tolist()


def pairs_of(light: list[float], heavy: list[float]) -> Pairs:
    return Pairs(tuple(light), tuple(heavy), tuple(range(len(light))))


def both_sides(low: float, high: float, t: float) -> float:
    """P(L < low, H >= t) + P(L > high, H < t): H given L = l is normal with mean rho l, and L is summed over a fine grid."""
    grid = norm.ppf((np.arange(20000) + 0.5) / 20000)
    below = norm.cdf((t - RHO * grid) / math.sqrt(1 - RHO**2))
    return float(((grid < low) * (1 - below) + (grid > high) * below).mean())


# ------------------------------------------------------------------------------------------------------- scale


def test_the_scale_is_isotonic_least_squares_joined_between_the_middles_of_its_blocks() -> None:
    """By hand: 3 and 1 are pooled to 2; the knots are (0, 0), (1.5, 2), (3, 4), and beyond them the slope is 4/3."""
    scale = Scale.fitted([0, 1, 2, 3, NAN, 1], [0, 3, 1, 4, 9, NAN])
    assert scale == Scale((0, 1.5, 3), (0, 2, 4))
    assert scale.heavy_of([0, 0.75, 1.5, 3, 4.5, -3]) == pytest.approx([0, 1, 2, 4, 6, -4])
    assert math.isnan(scale.heavy_of([NAN])[0])
    values = [-7.0, 0.1, 1.9, 12.0]
    assert scale.light_of(scale.heavy_of(values)) == pytest.approx(values)


def test_equal_light_scores_count_together_and_an_order_turned_round_is_refused() -> None:
    assert Scale.fitted([1, 1, 1, 2], [0, 0, 3, 5]) == Scale((1, 2), (1, 5))
    for light, heavy in (([1, 2, 3], [3, 2, 1]), ([1, 1], [1, 2]), ([NAN], [1]), ([], [])):
        with pytest.raises(ValueError, match="take another light oracle"):
            Scale.fitted(light, heavy)


# ------------------------------------------------------------------------------------------------------- bands


def test_a_share_is_the_drafts_nearest_in_rank_and_stays_as_large_at_the_ends() -> None:
    pairs = pairs_of([float(i) for i in range(10)], [0.0] * 10)
    middle = ShareBand.of(pairs, 0.4)
    assert middle(NAN, 4.5) == (3.0, 6.0)
    assert middle(NAN, 0.5) == (-INF, 3.0)  # nothing lies below, so what lies below all drafts is in the band too
    assert middle(NAN, 99.0) == (6.0, INF)
    assert ShareBand.of(pairs, 1.0)(NAN, 4.5) == (-INF, INF) and ShareBand.of(pairs, 0.0)(NAN, 4.5) == (4.5, 4.5)
    with pytest.raises(ValueError, match=r"not 30; for 30 of 100 set 0\.3"):
        ShareBand.of(pairs, 30)


def test_a_certified_band_leaves_out_as_many_wrong_pairs_as_the_binomial_tail_allows() -> None:
    """By hand: P(Bin(60, 0.1) <= 2) = 0.053, P(<= 3) = 0.137, so j + m + 1 is 2: one good pair stays below, no bad one above."""
    light = [float(i) for i in range(60)]
    heavy = [float(i) for i in range(60)]
    heavy[5], heavy[9], heavy[50], heavy[40] = 35.0, 36.0, 1.0, 2.0  # good ones that look bad, bad ones that look good
    band = CertifiedBand.of(pairs_of(light, heavy), 0.1, 0.9)
    assert band.spared == 1 and band(30.0, 30.0) == (9.0, 50.0)
    assert CertifiedBand.of(pairs_of(light, heavy), 0.2, 0.9)(30.0, 30.0) == (31.0, 28.0)  # j = m = 3: nothing in doubt
    assert CertifiedBand.of(pairs_of([NAN, *light[1:]], heavy), 0.1, 0.9)(0.0, 0.0) == (2.0, -INF)  # NaN is always inside
    assert CertifiedBand.of(pairs_of(light, heavy), 0.02, 0.9)(30.0, 30.0) == (-INF, INF)  # too few: all are asked
    assert "it takes 194 prompts" in CertifiedBand.of(pairs_of(light, heavy), 0.02, 0.9).promise
    assert CertifiedBand.of(pairs_of(light, heavy), 1.0, 0.9)(30.0, 30.0) == (30.0, 30.0)
    for alpha, confidence, wrong in ((5, 0.9, "for 5 of 100 set 0.05"), (0.1, 1, "between 0 and 1"), (NAN, 0.9, "from 0 to 1")):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            CertifiedBand.of(pairs_of(light, heavy), alpha, confidence)


def broken(confidence: float, t: float | None = None) -> int:
    """Of 400 calibrations with 150 pairs of the known law, how many let decisions differ in more than a tenth of all pictures.

    The threshold is ``t``, or the 30th percentile of the very same pairs.
    """
    rng, count = np.random.default_rng(0), 0
    for _ in range(400):
        light, heavy = drawn(rng, 150)
        limit = float(np.quantile(heavy, 0.3)) if t is None else t
        band = CertifiedBand(tuple(light), tuple(heavy), 0.1, confidence)
        judge = Cascade(Channel(0), Channel(1), Scale.fitted(light, heavy), band, limit, "channel 1")
        count += both_sides(*judge.band(limit), limit) > 0.1
    return count


def test_decisions_differ_in_more_than_alpha_exactly_as_often_as_the_theorem_says() -> None:
    """P(Bin(150, 0.1) <= 9) = 0.060 is the largest below 0.1, and P(<= 14) = 0.460 that below 0.5; within 3.3 deviations."""
    for confidence, expected in ((0.9, 0.0600), (0.5, 0.4602)):
        assert abs(broken(confidence, float(norm.ppf(0.3))) - 400 * expected) < 3.3 * math.sqrt(400 * expected * (1 - expected))


def test_the_promise_also_holds_at_a_percentile_of_the_calibration_itself() -> None:
    """Which the theorem doesn't cover: the threshold was chosen by looking at the pairs."""
    assert broken(0.9) <= 400 * 0.1 + 3.3 * math.sqrt(400 * 0.09)


@pytest.mark.parametrize("pictures", [4, 32])
def test_the_promise_also_holds_where_a_share_of_the_batch_sets_the_threshold(pictures: int) -> None:
    """Neither of which the theorem covers: at the threshold that came out, and against the heavy oracle's own worst share."""
    rng, worse = np.random.default_rng(0), [0, 0]
    for _ in range(60):
        light, heavy = drawn(rng, 150)
        band = CertifiedBand(tuple(light), tuple(heavy), 0.1, 0.9)
        judge = Cascade(Channel(0), Channel(1), Scale.fitted(light, heavy), band, 0.0, "channel 1")
        differing = [0, 0]
        for _ in range(128 // pictures):
            new, truth = drawn(rng, pictures)
            scores, asked = judge.scale.heavy_of(new), set[int]()
            while rows := set(judge.doubtful(new, limits(worst_share(scores, 0.3), "worst share"))) - asked:
                asked |= rows
                scores = [truth[i] if i in asked else score for i, score in enumerate(scores)]
            gate = worst_share(scores, 0.3)
            for k, alone in enumerate((absolute(truth, gate.threshold), worst_share(truth, 0.3))):
                differing[k] += sum(a != b for a, b in zip(gate.accepted, alone.accepted, strict=True))
        worse = [count + (wrong > 12.8) for count, wrong in zip(worse, differing, strict=True)]
    assert max(worse) <= 6


# ----------------------------------------------------------------------------------------------------- cascade


def cascade(light: list[float], heavy: list[float], share: float = 0.5, threshold: float = 0.5) -> Cascade:
    return Cascade(
        Channel(0), Channel(1), Scale.fitted(light, heavy), ShareBand.of(pairs_of(light, heavy), share), threshold, "channel 1"
    )


EVEN = [i / 20 for i in range(21)]


def test_only_pictures_in_the_band_are_asked_about_and_none_means_that_nothing_is_read() -> None:
    reads: list[int] = []

    def read() -> Oracle:
        reads.append(1)
        return Channel(1)

    late = Deferred("heavy", Channel, read)
    judge = Cascade(Channel(0), late, Scale.fitted(EVEN, EVEN), ShareBand.of(pairs_of(EVEN, EVEN), 0.3), 0.5, "channel 1")
    assert judge.fingerprint() and judge.unit() == ("channel 1", "heavy") and judge.doubts([]) == "" and judge.reads_prompts
    assert judge.reward(pictures([0.1, 0.9], [0.9, 0.1]), ["x"] * 2).tolist() == pytest.approx([0.1, 0.9]) and reads == []
    scores = judge.reward(pictures([0.1, 0.45, 0.9], [0.9, 0.95, 0.1]), ["x"] * 3)
    assert scores.tolist() == pytest.approx([0.1, 0.95, 0.9]) and reads == [1] and judge.heavy.asked == 1


def test_a_picture_scores_the_same_whatever_it_is_judged_with() -> None:
    rng = np.random.default_rng(1)
    judge = cascade(EVEN, EVEN)
    batch = pictures(*(rng.uniform(size=9).tolist() for _ in range(2)))
    together = judge.score(batch, ["x"])
    assert torch.equal(together, torch.cat([judge.score(one[None], ["x"]) for one in batch]))
    assert torch.equal(together.flip(0), judge.score(batch.flip(0), ["x"]))


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 0.31, 0.5, 1.0, 7.0])
def test_outside_of_the_band_the_score_lies_on_the_side_that_the_rule_says(threshold: float) -> None:
    rng = np.random.default_rng(2)
    light, heavy = drawn(rng, 60)
    for share in (0.0, 0.2, 0.9):
        judge = cascade(light, heavy, share, threshold)
        low, high = judge.band(threshold)
        probes = [low - 1e-6, high + 1e-6, low - 3, high + 3, *rng.uniform(-4, 4, 200)]
        for probe in filter(math.isfinite, probes):
            if not low <= probe <= high:
                assert (judge.scale.heavy_of([probe])[0] >= threshold) == (probe > high)


def test_nan_leaves_the_question_open_and_a_threshold_that_decides_by_itself_asks_nobody() -> None:
    judge = cascade(EVEN, EVEN, 0.3)
    assert judge.doubtful([0.1, NAN, 0.5, 0.9], [0.5] * 4) == [1, 2]
    for nobody in (INF, -INF, NAN):
        assert judge.doubtful([0.1, NAN, 0.5], [nobody] * 3) == []
    assert judge.doubtful([0.2, 0.2], [0.2, 0.8]) == [0]  # each by its own
    assert math.isnan(judge.score(torch.full((1, 2, 2, 3), NAN), ["x"])[0])


def test_what_changes_decisions_changes_the_fingerprint() -> None:
    one = cascade(EVEN, EVEN)
    others = [cascade(EVEN, EVEN, 0.4), cascade(EVEN, EVEN, threshold=0.6), cascade(EVEN, [x * x for x in EVEN])]
    assert len({judge.fingerprint() for judge in [one, *others]}) == 4 and one.fingerprint() == cascade(EVEN, EVEN).fingerprint()


def test_another_heavy_oracle_than_the_calibrated_one_is_refused_when_it_is_read() -> None:
    judge = Cascade(Channel(0), Channel(2), Scale.fitted(EVEN, EVEN), ShareBand((0.0, 1.0), 1.0), 0.5, "channel 1")
    with pytest.raises(ValueError, match=r"calibrated with another colour 2 \(channel 1; this one is channel 2\)"):
        judge.score(pictures([0.5], [0.5]), ["x"])
    with pytest.raises(ValueError, match="colour 1 mean something else for every prompt"):
        Cascade(Channel(0), Channel(1, comparable=False), Scale.fitted(EVEN, EVEN), ShareBand((0.0,), 1.0), 0.5, "channel 1")


def test_a_deferred_oracle_is_its_kind_before_it_is_read_and_itself_afterwards() -> None:
    class Shy(Channel):
        comparable_across_prompts, reads_prompts, has_features, batch = False, False, True, 3

        def features(self, images: Tensor) -> Tensor:
            return images.flatten(1)

        def uncertainty(self, images: Tensor, prompts: list[str]) -> Tensor:
            return torch.ones(len(images))

    reads: list[Shy] = []
    late = Deferred("shy", Shy, lambda: reads.append(Shy(1)) or reads[-1])
    facts = (late.name, late.comparable_across_prompts, late.reads_prompts, late.has_features, late.differentiable, late.batch)
    assert facts == ("shy", False, False, True, True, 3) and late.doubts([]) == "" and reads == []
    batch = pictures([0.1, 0.2], [0.3, 0.4])
    assert late.score(batch, ["x"]).tolist() == pytest.approx([0.3, 0.4]) and late.fingerprint() == "channel 1"
    assert late.features(batch).shape == (2, 12) and late.uncertainty(batch, ["x"] * 2).tolist() == [1, 1] and len(reads) == 1
    with pytest.raises(AttributeError):
        late.nothing_of_the_kind  # noqa: B018


# ------------------------------------------------------------------------------------------- pairs and reports


def calibration(scores: list[float], oracle: str, **changes: object) -> Calibration:
    prompts = tuple(f"prompt {i // 2}" for i in range(len(scores)))
    made = Calibration(
        tuple(scores), oracle, oracle, prompts, student=Maker("s", "f"), name=oracle,
        schedule="two steps", settings={"size": "64x64", "first_seed": 0, "batch_size": 8},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_pairs_are_of_the_same_drafts_and_one_a_prompt_counts() -> None:
    light = calibration([float(i) for i in range(24)], "light")
    pairs = Pairs.of(light, calibration([float(i) for i in range(20)], "heavy", settings={"size": "64x64"}))  # an older file
    assert len(pairs.light) == len(pairs.heavy) == 20 and pairs.first == tuple(range(0, 20, 2))
    assert len(CertifiedBand.of(pairs, 0.5, 0.9).light) == 10
    for other, words in (
        ({"student": Maker("t", "g")}, "differ in student"), ({"schedule": "four steps"}, "differ in schedule"),
        ({"prompts": ("else",) * 24}, "differ in prompts"),
        ({"settings": {**light.settings, "batch_size": 4}}, "differ in batch size"),
        ({"settings": {**light.settings, "first_seed": 4}}, "differ in first seed"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            Pairs.of(light, calibration([0.0] * 24, "heavy", **other))
    with pytest.raises(ValueError, match="10 drafts or more"):
        Pairs.of(light, calibration([1.0] * 9 + [NAN] * 15, "heavy"))
    with pytest.raises(ValueError, match="Published percentiles"):
        Pairs.of(light, calibration([], "heavy", published=((10.0, 0.0), (90.0, 1.0))))


def test_the_report_counts_what_is_asked_and_what_is_decided_otherwise() -> None:
    light, heavy = list(EVEN), list(EVEN)
    heavy[0], heavy[9] = 0.9, 0.8  # one far below the band that the heavy oracle likes, one within
    judge = Cascade(Channel(0), Channel(1), Scale(tuple(EVEN), tuple(EVEN)), ShareBand.of(pairs_of(light, heavy), 0.2), 0.5,
                    "channel 1")  # fmt: skip
    words = report(judge, pairs_of(light, heavy))
    assert "about 4 of the 21 drafts. 1 of them are decided otherwise than by colour 1 alone" in words
    assert f"rank correlation is {spearmanr(light, heavy).statistic:.2f}" in words
    promising = replace_promise(judge, "So it is")
    assert promising.words(1, 2, [0.5, 0.5]) == "colour 1 was asked about 1 of 2 pictures. So it is."
    assert promising.words(1, 2, [0.5, 0.6]) == "colour 1 was asked about 1 of 2 pictures."


def replace_promise(judge: Cascade, promise: str) -> Cascade:
    return Cascade(judge.light, judge.heavy, judge.scale, judge.rule, judge.threshold, judge.heavy_fingerprint, promise)


# ------------------------------------------------------------------------------------------------- in the gate


def test_a_count_that_passes_all_asks_nobody_and_other_gates_name_their_thresholds() -> None:
    scores = [0.3, 0.1, 0.2]
    assert limits(worst_share(scores, 0.0), "worst share") == [-INF] * 3
    assert limits(worst_share(scores, 0.34), "worst share") == [0.2] * 3
    assert limits(worst_share(scores, 1.0), "budget") == [INF] * 3
    assert limits(absolute(scores, 0.1), "absolute") == [0.1] * 3
    assert limits(gate_scores(scores, "expected gain", 0.0, situation=Situation(["x"] * 3)), "expected gain") == pytest.approx(
        [0.15, 0.25, 0.2]
    )


def test_a_controller_on_trial_judges_as_it_will_and_remembers_nothing(tmp_path: Path) -> None:
    file, first = tmp_path / "c.json", [i / 10 for i in range(20)]
    trial, real = FileController(file, trial=True), FileController(file)
    for start in range(0, 9, 3):
        scores, keys = [0.2 * start, 0.7, 0.1], [f"{start} {i}" for i in range(3)]
        before = file.read_bytes() if file.exists() else b""
        tried = [trial.judge(scores, keys, 0.3, "o", "o", first) for _ in range(2)]
        assert (file.read_bytes() if file.exists() else b"") == before
        assert tried[0] == tried[1] == real.judge(scores, keys, 0.3, "o", "o", first) and file.exists()
