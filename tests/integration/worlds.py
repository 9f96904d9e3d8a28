"""Graphs that the integration tests start from."""

from __future__ import annotations

from typing import Any

from harness import Graph, Node

SETTINGS: dict[str, Any] = {
    "seed": 7, "preset": "tiny-world", "steps": 2, "cfg": 1.0, "denoise": 1.0, "threshold": "absolute", "value": 0.5,
    "strategy": "refine", "rollback": 0.6, "teacher_steps": 4, "teacher_cfg": 2.0, "sampler_name": "dpmpp_2m",
    "scheduler": "karras", "margin": 0.0,
}  # fmt: skip


class World:
    """The tiny world with one prompt a picture, and an oracle that reads its score out of the prompt."""

    def __init__(self, prompts: list[str], *, latent: Node | None = None, oracle: str = "TestPromptOracle") -> None:
        self.g = g = Graph()
        self.prompts = prompts
        self.tiny = g.add("ApprenticeTinyWorld", "tiny", student="consistency")
        self.teacher, self.student = self.tiny[0], self.tiny[1]
        self.clip, self.vae = self.tiny[2], self.tiny[3]
        self.lines = g.add("ApprenticePrompts", "lines", clip=self.clip, text="\n".join(prompts))
        self.positive, self.list = self.lines[0], self.lines[1]
        self.negative = g.add("CLIPTextEncode", "empty", clip=self.clip, text="")[0]
        self.latent = g.add("EmptyLatentImage", "latent", width=64, height=64, batch_size=len(prompts))[0]
        self.oracle = g.add(oracle, "oracle")[0] if oracle != "world" else self.tiny[4]

    def count(self) -> None:
        """Count what goes through student and teacher from below."""
        self.teacher = self.g.add("TestCountModel", "count_teacher", model=self.teacher, name="teacher")[0]
        self.student = self.g.add("TestCountModel", "count_student", model=self.student, name="student")[0]

    def sampler(self, name: str = "all", **changes: Any) -> Node:
        """The all-in-one node, its results saved under ``name``."""
        links = {
            "student": self.student, "teacher": self.teacher, "vae": self.vae, "oracle": self.oracle,
            "positive": self.positive, "negative": self.negative, "prompt": self.list, "latent_image": self.latent,
        }  # fmt: skip
        node = self.g.add("ApprenticeSampler", name, **{**links, **SETTINGS, **changes})
        self.g.add("TestSave", f"save_{name}", name=name, latent=node[0], image=node[1], verdict=node[2])
        return node

    def modular(self, name: str = "modular", **changes: Any) -> dict[str, Node]:
        """The same, wired from the single nodes."""
        s = {**SETTINGS, **changes}
        g = self.g
        pick = lambda *keys: {k: s[k] for k in keys}  # noqa: E731
        nodes = {}
        nodes["drafts"] = drafts = g.add(
            "ApprenticeStudentSampler", f"{name}_drafts", model=self.student, positive=self.positive, negative=self.negative,
            latent_image=self.latent, **pick("seed", "preset", "steps", "cfg", "denoise"),
        )  # fmt: skip
        images = g.add("VAEDecode", samples=drafts, vae=self.vae)
        nodes["judge"] = judge = g.add(
            "ApprenticeJudge", f"{name}_judge", oracle=self.oracle, images=images, prompt=self.list, drafts=drafts,
            teacher_nfe=s.get("teacher_nfe", 8.0), **pick("threshold", "value"),
        )  # fmt: skip
        nodes["teacher"] = improved = g.add(
            "ApprenticeTeacher", f"{name}_teacher", verdict=judge[0], drafts=drafts, model=self.teacher,
            positive=self.positive, negative=self.negative, steps=s["teacher_steps"], cfg=s["teacher_cfg"],
            seed=s["seed"] if s["strategy"] == "regenerate" else s["seed"] + 1, max_batch=s.get("max_batch", 0),
            **pick("strategy", "rollback", "sampler_name", "scheduler"),
        )  # fmt: skip
        nodes["keep"] = keep = g.add(
            "ApprenticeKeepBetter", f"{name}_keep", oracle=self.oracle, verdict=judge[0], drafts=drafts, improved=improved,
            draft_images=images, improved_images=g.add("VAEDecode", samples=improved, vae=self.vae), margin=s["margin"],
        )  # fmt: skip
        g.add("TestSave", f"save_{name}", name=name, latent=keep[0], image=keep[1], verdict=keep[2], text=judge[1])
        return nodes

    def stock(self, name: str, model: Any, **changes: Any) -> Node:
        """The stock KSampler on the same inputs."""
        inputs: dict[str, Any] = {
            "seed": 7, "steps": 4, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            "positive": self.positive, "negative": self.negative, "latent_image": self.latent, **changes,
        }  # fmt: skip
        node = self.g.add("KSampler", f"stock_{name}", model=model, **inputs)
        self.g.add("TestSave", f"save_{name}", name=name, latent=node)
        return node

    def save(self, name: str, **values: Any) -> None:
        """Save tensors under ``name``."""
        self.g.add("TestSave", f"save_{name}", name=name, **values)
