"""What the registry and its scanner look at: one list of what ships, metadata that it takes, and nothing in it that it flags."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from shipping import ROOT, pyproject, shipped

PACKAGE = pyproject()
COMFY = PACKAGE["tool"]["comfy"]
REPOSITORY = PACKAGE["project"]["urls"]["Repository"]
# Raw substrings that versions of other packs were flagged for, in any text file, comments and Markdown included.
FLAGGED = re.compile(
    r"\b(?:eval|exec)\s*\(|\.eval\(|__import__|importlib\.import_module|sys\.settrace|marshal\.|pickle\.loads?\("  # code
    r"|subprocess|os\.(?:system|popen|exec\w*|spawn\w*|kill)\b|\bsudo\b|rm -rf|ctypes"  # commands
    r"|os\.(?:environ|getenv|putenv)\b|HF_TOKEN|auth_token_comfy_org"  # the environment
    r"|urlopen\(|urlretrieve|http\.client|\brequests\.\w+\(|\bhttpx\b|aiohttp\.ClientSession|\bsocket\.socket"  # network
    r"|\.connect\s*\(|\.bind\s*\(|\.listen\s*\(|\.send(?:all)?\s*\(|raw\.githubusercontent|\bnew Function\b"
    r"|gethostname|tempfile\.gettempdir|://[^/\s]+:[^/\s@]+@"
)
TEXT = {".py", ".js", ".css", ".md", ".json", ".toml", ".txt", ".cff", ".html"}


def text_files() -> list[str]:
    return [path for path in shipped() if Path(path).suffix in TEXT and not path.endswith(".vocab.txt")]


def test_no_shipped_file_has_a_substring_that_the_registrys_scanner_flags() -> None:
    """docs/security.md names them in words; the bundled vocabulary of BERT is a list of words."""
    flags = [
        f"{path}:{number}: {match[0]}"
        for path in text_files()
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        for match in FLAGGED.finditer(line)
    ]
    assert len(text_files()) > 200 and flags == []


@pytest.mark.parametrize("line", [
    "exec (text)", "network.eval()", "os.environ['A']", "graph.connect(a, b)", "f.bind(this)", "request.urlopen(x)", "x.send (y)",
])  # fmt: skip
def test_the_scanner_here_finds_what_it_should(line: str) -> None:
    assert FLAGGED.search(line)


def test_installers_and_the_registry_ship_the_same_folders() -> None:
    """One list. What pyproject names and .comfyignore drops breaks ``pip install -e .`` in what the registry hands out."""
    packages = PACKAGE["tool"]["setuptools"]["packages"]
    named = {name.removeprefix("comfyui_apprentice").replace(".", "/").lstrip("/") for name in packages}
    code = {str(Path(path).parent).removeprefix(".") for path in shipped() if path.endswith(".py")}
    assert named == code


def test_the_package_is_small_and_has_what_artists_need() -> None:
    files = shipped()
    needed = ("__init__.py", "requirements.txt", "web/docs/", "locales/en/", "example_workflows/adaptive.json", "world/weights/")
    assert [start for start in needed if not any(path.startswith(start) for path in files)] == []
    assert not any(path.startswith(("tests/", "benchmarks/", "world/recipe/", "scripts/", ".")) for path in files)
    assert sum((ROOT / path).stat().st_size for path in files) < 80e6


def test_comfy_node_validate_has_nothing_to_say() -> None:
    """The check of ``comfy node validate``, over everything in the repository; CI runs the command itself."""
    command = [sys.executable, "-m", "ruff", "check", ".", "-q", "--isolated", "--select", "S102,S307,E702"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.stdout + checked.stderr == "" and checked.returncode == 0


def test_the_registry_takes_the_metadata() -> None:
    """By the rules of its page 'pyproject.toml': what breaks one is dropped with a warning."""
    project = PACKAGE["project"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["name"]) and "comfy" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])
    front_end = next(line for line in project["dependencies"] if line.startswith("comfyui-frontend-package"))
    assert re.fullmatch(r"comfyui-frontend-package>=\d+\.\d+\.\d+", front_end)
    assert "Operating System :: OS Independent" in project["classifiers"]
    assert len(project["description"]) < 200 and COMFY["PublisherId"] and COMFY["DisplayName"] == "Apprentice"


def test_versions_agree_and_the_changelog_begins_with_this_one() -> None:
    version = PACKAGE["project"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "__init__.py").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", changelog, re.M)[0] == version


def test_comfyui_and_the_registry_get_the_same_requirements() -> None:
    """The front end's range is for the registry alone, which takes it off the list."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = {line for line in PACKAGE["project"]["dependencies"] if not line.startswith("comfyui-frontend-package")}
    assert {line for line in lines if not line.startswith("#")} == wanted


def test_every_address_is_of_one_repository() -> None:
    """It is where it is published from: the workflow compares it with its own."""
    addresses = [*PACKAGE["project"]["urls"].values(), COMFY["Icon"], COMFY["Banner"]]
    assert all(address.startswith(REPOSITORY) for address in addresses)
    for file in re.findall(rf"{REPOSITORY}/(?:raw|blob)/main/(\S+)", " ".join(addresses)):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize(("name", "size"), [("Icon", (400, 400)), ("Banner", (2100, 900))])
def test_icon_and_banner_have_the_registrys_shapes(name: str, size: tuple[int, int]) -> None:
    path = ROOT / COMFY[name].split("/raw/main/")[1]
    with Image.open(path) as picture:
        assert picture.size == size and len(picture.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 50
    assert path.stat().st_size < 300_000
