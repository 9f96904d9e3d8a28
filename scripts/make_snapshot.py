"""Write what saved workflows depend on (``tests/data/object_info.json``) and the locales, from the nodes in a real ComfyUI.

``COMFYUI_PATH=… python scripts/make_snapshot.py``. It refuses to write a snapshot that breaks saved workflows.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration"), str(ROOT / "scripts")]

from harness import comfyui  # noqa: E402
from make_locales import TARGET, as_text, locale, write_translated  # noqa: E402
from test_contract import SNAPSHOT, broken_promises, ours, signature  # noqa: E402


def main() -> None:
    """Both files."""
    with tempfile.TemporaryDirectory() as folder, comfyui(Path(folder)) as server:
        nodes = ours(server)
    new = {name: signature(info) for name, info in nodes.items()}
    if broken := broken_promises(json.loads(SNAPSHOT.read_text()), new):
        sys.exit("Saved workflows would break:\n" + "\n".join(broken))
    SNAPSHOT.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    TARGET.write_text(as_text(locale(nodes)), encoding="utf-8")
    print("\n".join(write_translated()))


if __name__ == "__main__":
    main()
