"""A node that counts what goes through a network, for a real ComfyUI and for its executor in the tests' own process."""

from __future__ import annotations

from collections import Counter

import comfy.patcher_extension

COUNTS: Counter[str] = Counter()


class CountModel:
    """Counts the rows that go through the network itself."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "name": ("STRING", {"default": "model"})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "test"

    def patch(self, model, name):
        """A clone whose network calls are counted from below."""

        def wrapper(executor, x, *args, **kwargs):
            COUNTS[name] += len(x)
            return executor(x, *args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, f"count_{name}", wrapper)
        return (clone,)
