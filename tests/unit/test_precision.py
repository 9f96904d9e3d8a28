"""Half precision only where the machine has it natively; one thread where networks are small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfyui_apprentice import precision
from comfyui_apprentice.cli import app
from comfyui_apprentice.cli.running import LARGE, set_threads
from comfyui_apprentice.precision import DTYPES, autocast, native_bfloat16, warning, warning_of
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "tests" / "data" / "sid" / "tiny_edm_snapshot.pkl"


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has neither bfloat16 nor float16."""
    monkeypatch.setattr(precision, "_on_the_cpu", lambda _dtype: False)


@pytest.fixture
def fast_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has both."""
    monkeypatch.setattr(precision, "_on_the_cpu", lambda _dtype: True)


def test_a_cpu_with_avx2_alone_is_drawn_on_in_float32() -> None:
    """oneDNN is told that it has no more; on other processors than x86 that says nothing."""
    code = (
        "import torch\n"
        "from comfyui_apprentice.world.recipe.sampling import World, unit_noise\n"
        "from comfyui_apprentice.networks import tiny_unet\n"
        "kinds, real = set(), tiny_unet.TinyUNet.forward\n"
        "def forward(self, *given):\n"
        "    kinds.add(torch.is_autocast_enabled('cpu'))\n"
        "    return real(self, *given)\n"
        "tiny_unet.TinyUNet.forward = forward\n"
        "World().draft(['panda'], unit_noise(1, 0), 1)\n"
        "print(kinds, torch.ops.mkldnn._is_mkldnn_bf16_supported())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    drawn, native = done.stdout.strip().rsplit(" ", 1)
    assert drawn == ("{True}" if native == "True" else "{False}")


@pytest.mark.parametrize(
    ("machine", "onednn", "instructions", "native"),
    [
        ("x86_64", False, {"avx512_bf16": True}, False),  # told to leave it, or another build
        ("x86_64", True, {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),  # Skylake: oneDNN says yes
        ("x86_64", True, {"avx512_bf16": True}, True),
        ("AMD64", True, {"avx_ne_convert": True}, True),
        ("aarch64", True, {}, True),
    ],
)
def test_a_cpu_counts_that_has_the_instruction_and_a_pytorch_that_uses_it(
    machine: str, onednn: bool, instructions: dict[str, bool], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert precision._on_the_cpu.__wrapped__(torch.bfloat16) is native


@pytest.mark.usefixtures("slow_cpu")
def test_without_it_autocast_is_off_unless_it_is_asked_for() -> None:
    with autocast():
        assert not torch.is_autocast_enabled("cpu")
    with autocast(True):
        assert torch.is_autocast_enabled("cpu")
    assert not native_bfloat16() and not native_bfloat16("mps")


@pytest.mark.usefixtures("fast_cpu")
def test_with_it_autocast_is_on_unless_it_is_refused_and_nobody_is_warned() -> None:
    with autocast():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")
    with autocast(False):
        assert not torch.is_autocast_enabled("cpu")
    assert [warning(dtype, "cpu") for dtype in DTYPES.values()] == ["", "", ""]


@pytest.mark.usefixtures("slow_cpu")
def test_the_warning_says_how_slow_it_is_here() -> None:
    assert warning(torch.float32, "cpu") == "" and warning(torch.bfloat16, "cuda:0") == ""
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        said = warning(dtype, "cpu")
        assert re.fullmatch(rf"This CPU has no native {name}: a convolution takes \d+ times as long .* Take fp32, .*\.", said)


@pytest.mark.usefixtures("slow_cpu")
def test_weights_that_stay_in_half_precision_are_told_of_and_wide_ones_are_not() -> None:
    """HPSv3's, which are read as they are in the file."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert warning_of(network, "cpu") == ""
    network[1].bfloat16()
    assert "no native bfloat16" in warning_of(network, "cpu") and warning_of(network, "cuda:0") == ""


def test_nothing_else_in_the_pack_decides_for_bfloat16() -> None:
    """One place is asked; the bridge's denoiser hands on what was chosen. To switch it off is no decision for it."""
    found = {
        f"{path.relative_to(ROOT)}"
        for path in ROOT.glob("[a-z]*/**/*.py")
        if path.relative_to(ROOT).parts[0] not in ("tests", "scripts")
        and re.search(
            r"torch\.(amp\.)?autocast\((?!.*enabled=False)|is_bf16_supported|_is_mkldnn_bf16", path.read_text(encoding="utf-8")
        )
    }
    assert found == {"bridge/training.py"}


# ------------------------------------------------------------------------------------------------ the commands


def distil(*options: str) -> str:
    arguments = ["distill", "sid", str(TEACHER), "--pictures", "4", "--batch", "4", "--samples-every", "0", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("slow_cpu")
def test_a_command_that_is_asked_for_bfloat16_says_that_it_is_slow_and_obeys(tmp_path: Path) -> None:
    assert "This CPU has no native bfloat16" in distil("--out", str(tmp_path / "a.safetensors"), "--precision", "bf16")
    assert "native" not in distil("--out", str(tmp_path / "b.safetensors"), "--precision", "fp32")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers that PyTorch is told, while nobody has set ``OMP_NUM_THREADS``; this process stays at one."""
    told: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


def test_small_networks_take_one_thread_on_a_cpu_and_large_ones_what_pytorch_takes(threads: list[int]) -> None:
    set_threads(None, "cpu", LARGE)
    set_threads(None, "cuda:0")
    assert threads == []
    set_threads(None, "cpu", LARGE - 1)
    set_threads(3)
    assert threads == [1, 3]


def test_what_omp_num_threads_says_stays_unless_the_option_says_otherwise(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    set_threads(None)
    assert threads == []
    set_threads(4)
    assert threads == [4]


@pytest.mark.parametrize(("options", "expected"), [((), [1]), (("--threads", "2"), [2])])
def test_a_command_sets_its_threads(
    options: tuple[str, ...], expected: list[int], threads: list[int], tmp_path: Path
) -> None:
    distil("--out", str(tmp_path / "a.safetensors"), *options)
    assert threads == expected


def test_every_command_that_computes_has_the_option() -> None:
    import typer

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    computing = [commands["finetune"], *commands["distill"].commands.values(), *commands["bench"].commands.values()]
    without = {command.name for command in computing if "threads" not in {p.name for p in command.params}}
    assert without == {"startup", "decoder-memory"}, "which measure another process, and nothing"


# ----------------------------------------------------------------------------------------------- the benchmark


def test_the_benchmark_of_bfloat16_is_a_row_for_each_cpu_and_a_claim_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_apprentice.benchmarks import bfloat16

    assert {"convolution", "U-Net"} <= bfloat16.calls().keys()
    asked: list[str] = []

    def run(_command: object, *, env: dict[str, str], **_options: object) -> object:
        asked.append(env.get("ONEDNN_MAX_CPU_ISA", ""))
        return subprocess.CompletedProcess([], 0, '{"convolution": [30.0, 20.0, 40.0], "U-Net": [2.0, 2.0, 2.0]}')

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(bfloat16.subprocess, "run", run)
    figures = bfloat16.run(True, lambda _text: None)
    assert asked == ["", "AVX512_CORE", "AVX2"]
    assert figures.rows[2] == {"CPU": "AVX2", "convolution": "30.00 (20.00 to 40.00)", "U-Net": "2.00 (2.00 to 2.00)"}
    assert (figures.claims["bfloat16_convolution_avx2"].value, figures.claims["bfloat16_unet_here"].hi) == (30.0, 2.0)


def test_a_ratio_is_of_one_call_in_bfloat16_over_the_same_in_float32() -> None:
    from comfyui_apprentice.benchmarks import bfloat16

    seen: list[bool] = []
    assert len(bfloat16.ratios(lambda: seen.append(torch.is_autocast_enabled("cpu")), 3)) == 3
    assert seen == [True, False] * 4
