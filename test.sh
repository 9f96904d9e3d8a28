#!/usr/bin/env bash
# Installs what the tests need and runs all of them: style, types, units, a real ComfyUI, a real browser.
#   bash test.sh              everything
#   bash test.sh tests/unit   a part; arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
set_up
cd "$ROOT"

install_tests() { say "Installing the test tools…"; "$PYTHON" -m pip install -q -e ".[test]"; }
once "tests-$(cksum <pyproject.toml | cut -d' ' -f1)" install_tests

find_chromium() {
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name"; then return 0; fi
    done
    return 1
}
install_chromium() {
    say "Installing Chromium…"
    local sudo=""
    if [ "$(id -u)" != 0 ]; then sudo="sudo -n"; fi
    if command -v apt-get >/dev/null && $sudo apt-get update -qq >&2 \
        && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >&2; then
        return 0
    fi
    "$PYTHON" -m playwright install chromium >&2
}
find_chromium >/dev/null || install_chromium
export APPRENTICE_CHROMIUM="${APPRENTICE_CHROMIUM:-$(find_chromium || true)}"

newer_front_end() {
    say "Fetching a newer ComfyUI front end…"
    rm -rf "$CACHE/front-end" && mkdir -p "$CACHE/front-end"
    "$PYTHON" -m pip download -q --no-deps -d "$CACHE/front-end" comfyui-frontend-package==1.58.1 \
        && "$PYTHON" -m zipfile -e "$CACHE"/front-end/*.whl "$CACHE/front-end"
}
front_end="$CACHE/front-end/comfyui_frontend_package/static"
[ -e "$front_end/index.html" ] || newer_front_end
export APPRENTICE_FRONT_ENDS="$front_end"

"$PYTHON" -m ruff check .
# mypy wants a folder with the package's name, whatever this checkout is called.
mkdir -p "$CACHE/types" && ln -sfn "$ROOT" "$CACHE/types/comfyui_apprentice"
(cd "$CACHE/types" && "$PYTHON" -m mypy --config-file "$ROOT/pyproject.toml")
exec "$PYTHON" -m pytest -q --durations=10 "$@"
