"""The graphs of the example workflows; ``make_examples.py`` makes files of them."""

from __future__ import annotations

from . import judges, look, real, training, world

# In the order of the table in docs/examples.md.
TINY = {
    "1-start-here": world.start, "adaptive": world.adaptive, "adaptive-modular": world.modular,
    "calibrate-then-gate": world.calibrated, "explore": world.explored, "taste": judges.taste, "own-detailer": judges.detailer,
    "oracles": judges.oracles, "cascade": judges.cascade, "editing": world.editing, "custom-sampling": world.custom,
    "promising-noise": world.promising, "students": training.students,
    "distil": training.distil, "critic": training.critic, "sorting": training.sorting, "critic-teaches-student": training.teaches,
}  # fmt: skip
EXAMPLES = TINY | real.EXAMPLES | look.EXAMPLES
