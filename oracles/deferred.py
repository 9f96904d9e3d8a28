"""An oracle that is read when somebody needs it, and not before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .base import Oracle


class Deferred(Oracle):
    """An oracle whose file is read when it is first asked anything but its name and its kind's properties.

    Args:
        name: For people.
        kind: Its class, whose attributes hold for it.
        read: Reads it.
    """

    def __init__(self, name: str, kind: type[Oracle], read: Callable[[], Oracle]) -> None:
        self.name, self._read = name, read
        self._oracle: Oracle | None = None
        for attribute in ("differentiable", "comparable_across_prompts", "reads_prompts", "has_features", "batch"):
            setattr(self, attribute, getattr(kind, attribute))

    @property
    def oracle(self) -> Oracle:
        """The oracle itself."""
        if self._oracle is None:
            self._oracle = self._read()
        return self._oracle

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """Its network."""
        return self.oracle.network

    def __getattr__(self, name: str) -> object:
        """What only some oracles have, such as ``uncertainty``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.oracle, name)

    def fingerprint(self) -> str:
        """See ``Oracle.fingerprint``."""
        return self.oracle.fingerprint()

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See ``Oracle.reward``."""
        return self.oracle.reward(images, prompts)

    def features(self, images: Tensor) -> Tensor:
        """See ``Oracle.features``."""
        return self.oracle.features(images)

    def doubts(self, pictures: Sequence[Tensor]) -> str:
        """See ``Oracle.doubts``; nothing while it is not read."""
        return self._oracle.doubts(pictures) if self._oracle else ""
