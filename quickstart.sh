#!/usr/bin/env bash
# Runs the adaptive example workflow in a real ComfyUI, with the built-in models.
#   bash quickstart.sh           draw, judge, improve; print the table; save the pictures
#   bash quickstart.sh --serve   the same ComfyUI in the browser, with live previews
#   bash quickstart.sh --help    this text
# The first call installs PyTorch, ComfyUI 0.3.75 and what they need into .venv and .cache of this folder: about 2 GB on disk
# with PyTorch's CPU build, which is taken where there is no NVIDIA driver and an index that has it, 6 GB with CUDA.
# COMFYUI_PATH=/path/to/ComfyUI uses yours; APPRENTICE_CPU_INDEX another index for PyTorch's CPU build.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/environment.sh"
print_help "${BASH_SOURCE[0]}" "$@"
set_up

link="$COMFYUI_PATH/custom_nodes/apprentice"
if [ ! -e "$link" ]; then ln -s "$ROOT" "$link"; fi

if [ "${1:-}" = "--serve" ]; then
    shift
    exec "$PYTHON" "$ROOT/scripts/run_workflow.py" --serve "$@"
fi
# The built-in models are small: one thread is as fast on free cores, and several times faster on busy ones.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PYTHON" "$ROOT/scripts/run_workflow.py" "$ROOT/example_workflows/adaptive.json" --output "$ROOT/quickstart_output" "$@"
say ""
say "To see the graph in a browser: bash quickstart.sh --serve, then open the address it prints;"
say "the workflow is under Templates (Workflow > Browse Templates > apprentice), or drag a saved picture onto the canvas."
