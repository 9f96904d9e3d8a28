#!/usr/bin/env bash
# Installs what the tests need and runs all of them: style, types, units, a real ComfyUI, a real browser.
#   bash test.sh              everything; at the end what it cost in CPU time, and the ten dearest tests
#   bash test.sh --quick      the unit tests alone: no ComfyUI is started, no browser needed
#   bash test.sh tests/unit   a part; arguments go to pytest
#   bash test.sh --help       this text
# Two workers where there are two cores or more, with one thread and one ComfyUI each.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
print_help "${BASH_SOURCE[0]}" "$@"
set_up
cd "$ROOT"

install_tests() { say "Installing the test tools: about 0.5 GB on disk…"; "$PYTHON" -m pip install -q -e ".[test]"; }
once "tests-$(cksum <pyproject.toml | cut -d' ' -f1)" install_tests

find_chromium() {
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name"; then return 0; fi
    done
    return 1
}
install_chromium() {
    say "Installing Chromium: about 0.6 GB on disk…"
    local sudo=""
    if [ "$(id -u)" != 0 ]; then sudo="sudo -n"; fi
    if command -v apt-get >/dev/null && $sudo apt-get update -qq >&2 \
        && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >&2; then
        return 0
    fi
    "$PYTHON" -m playwright install chromium >&2
}

newer_front_end() {
    say "Fetching a newer ComfyUI front end: 0.15 GB on disk…"
    rm -rf "$CACHE/front-end" && mkdir -p "$CACHE/front-end"
    "$PYTHON" -m pip download -q --no-deps -d "$CACHE/front-end" comfyui-frontend-package==1.58.1 \
        && "$PYTHON" -m zipfile -e "$CACHE"/front-end/*.whl "$CACHE/front-end"
}
front_end="$CACHE/front-end/comfyui_frontend_package/static"

check_style_and_types() {
    "$PYTHON" -m ruff check .
    # mypy wants a folder with the package's name, whatever this checkout is called.
    mkdir -p "$CACHE/types" && ln -sfn "$ROOT" "$CACHE/types/comfyui_apprentice"
    (cd "$CACHE/types" && "$PYTHON" -m mypy --config-file "$ROOT/pyproject.toml")
}

# Children of this shell only: ``times`` must not run in a subshell.
cpu_seconds() { tail -n 1 "$1" | sed 's/[ms]/ /g' | awk '{ print $1 * 60 + $2 + $3 * 60 + $4 }'; }
tell_cost() {
    times >"$CACHE/times-after"
    awk -v from="$(cpu_seconds "$CACHE/times-before")" -v to="$(cpu_seconds "$CACHE/times-after")" \
        'BEGIN { printf "CPU time of this run: %.1f minutes (user + sys); the whole suite may take 20.\n", (to - from) / 60 }'
}

cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)"
workers=(-n 0)
if [ "$cores" -ge 2 ]; then workers=(-n 2 --dist loadfile); fi
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # a ComfyUI that is started many times is compiled once

if [ "${1:-}" = "--quick" ]; then
    shift
    exec "$PYTHON" -m pytest -q "${workers[@]}" tests/unit "$@"
fi

find_chromium >/dev/null || install_chromium
export APPRENTICE_CHROMIUM="${APPRENTICE_CHROMIUM:-$(find_chromium || true)}"
[ -e "$front_end/index.html" ] || newer_front_end
export APPRENTICE_FRONT_ENDS="$front_end"
times >"$CACHE/times-before"
trap tell_cost EXIT
check_style_and_types
"$PYTHON" -m pytest -q "${workers[@]}" "$@"
