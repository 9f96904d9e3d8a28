"""PromptKD's networks (arXiv 2403.02781): learned tokens in any open_clip ViT, and the student with its projector.

open_clip isn't forked: the tokens enter by hooks on a tower's residual blocks, as in the authors' ``IVLP`` towers.

- Picture tower: block 0 sees ``ln_pre(tokens)`` appended, without positions; every further block up to the depth has its last n
  tokens replaced.
- Text tower: positions 1..n are replaced, before the positions are added, and again at every further block up to the depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .limits import build_to_fit, same_shapes

CONTEXT = 4  # tokens a block in all published runs
TOKEN_STD = 0.02  # of tokens that don't begin as words


class PromptTokens(nn.Module):
    """The learned tokens of one tower: ``blocks[i]`` is [n, width] and enters before residual block i.

    Raises:
        ValueError: There are none, or they differ in shape.
    """

    def __init__(self, tokens: Sequence[Tensor]) -> None:
        super().__init__()
        shapes = {tuple(t.shape) for t in tokens}
        if len(shapes) != 1 or tokens[0].ndim != 2:
            raise ValueError(f"Prompt tokens must be one matrix [n, width] a block, all alike; they are {sorted(shapes)}.")
        self.blocks = nn.ParameterList(nn.Parameter(t.detach().clone()) for t in tokens)
        self.enabled = True

    @property
    def depth(self) -> int:
        """How many blocks get tokens."""
        return len(self.blocks)

    @property
    def count(self) -> int:
        """Tokens a block, n."""
        return int(self.blocks[0].shape[0])

    @property
    def width(self) -> int:
        """Channels of the tower."""
        return int(self.blocks[0].shape[1])

    @classmethod
    def random(cls, depth: int, count: int, width: int, generator: torch.Generator) -> PromptTokens:
        """Tokens drawn from N(0, 0.02^2), as the authors begin."""
        return cls([torch.randn(count, width, generator=generator) * TOKEN_STD for _ in range(depth)])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the tower is the plain one."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def of_block(self, block: int, like: Tensor, token_dim: int) -> Tensor:
        """The tokens of ``block`` for every row of the batch ``like``, in its dtype; the batch is the other of dims 0 and 1."""
        tokens = self.blocks[block].to(like.dtype)
        if token_dim == 1:
            return tokens.expand(like.shape[0], -1, -1)
        return tokens[:, None].expand(-1, like.shape[1], -1)


def _blocks(tower: Any, what: str) -> tuple[list[nn.Module], int]:
    """The residual blocks of a tower, and which dimension of what they pass on counts tokens.

    Raises:
        ValueError: It has none, so it isn't one of open_clip's own transformers.
    """
    transformer = getattr(tower, "transformer", None)
    blocks = getattr(transformer, "resblocks", None)
    if blocks is None:
        raise ValueError(
            f"This {what} is no transformer of open_clip's own (a ViT with 'resblocks'); choose a ViT such as ViT-B-16."
        )
    # Before open_clip 2.25 blocks passed on [tokens, batch, width] always.
    return list(blocks), 1 if getattr(transformer, "batch_first", False) else 0


def _check(tokens: PromptTokens, blocks: list[nn.Module], width: int, what: str) -> None:
    if tokens.depth > len(blocks):
        raise ValueError(f"There are prompt tokens for {tokens.depth} blocks, but the {what} has {len(blocks)}.")
    if tokens.width != width:
        raise ValueError(f"The prompt tokens are {tokens.width} wide, but the {what} is {width}; they belong to another model.")


def prompt_picture_tower(visual: Any, tokens: PromptTokens) -> None:
    """Let ``tokens`` enter an open_clip picture tower from now on (see the module's text).

    Raises:
        ValueError: The tower is no ViT of open_clip's, or the tokens don't fit it.
    """
    blocks, token_dim = _blocks(visual, "picture tower")
    if not hasattr(visual, "ln_pre") or getattr(visual, "attn_pool", None) is not None:
        raise ValueError("This picture tower doesn't read out its class token as CLIP's do; choose a ViT such as ViT-B-16.")
    _check(tokens, blocks, int(visual.conv1.out_channels), "picture tower")

    def append(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
        # Every token is normalised by itself, so appending before ln_pre appends ln_pre(tokens).
        return torch.cat([args[0], tokens.of_block(0, args[0], 1)], dim=1) if tokens.enabled else None

    def replace_last(block: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            if not tokens.enabled:
                return None
            x, rest = _first(args, kwargs)
            kept = x.narrow(token_dim, 0, x.shape[token_dim] - tokens.count)
            return rest(torch.cat([kept, tokens.of_block(block, x, token_dim)], dim=token_dim))

        return hook

    visual.ln_pre.register_forward_pre_hook(append)
    for i in range(1, tokens.depth):
        blocks[i].register_forward_pre_hook(replace_last(i), with_kwargs=True)


def prompt_text_tower(clip: Any, tokens: PromptTokens) -> None:
    """Let ``tokens`` enter the text tower of an open_clip model from now on; texts must leave positions 1..n to them.

    Raises:
        ValueError: The tower is no transformer of open_clip's, or the tokens don't fit it.
    """
    tower = text_tower(clip)
    blocks, token_dim = _blocks(tower, "text tower")
    _check(tokens, blocks, int(tower.token_embedding.weight.shape[1]), "text tower")
    if tokens.count + 2 > int(tower.positional_embedding.shape[0]):
        raise ValueError(
            f"{tokens.count} prompt tokens leave no room for words in a text of {len(tower.positional_embedding)} tokens."
        )

    def enter(x: Tensor, block: int, dim: int) -> Tensor:
        after = 1 + tokens.count
        return torch.cat(
            [x.narrow(dim, 0, 1), tokens.of_block(block, x, dim), x.narrow(dim, after, x.shape[dim] - after)], dim=dim
        )

    def embedded(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        return enter(output, 0, 1) if tokens.enabled else None

    def replace(block: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            if not tokens.enabled:
                return None
            x, rest = _first(args, kwargs)
            return rest(enter(x, block, token_dim))

        return hook

    tower.token_embedding.register_forward_hook(embedded)
    for i in range(1, tokens.depth):
        blocks[i].register_forward_pre_hook(replace(i), with_kwargs=True)


def picture_size_of(visual: Any) -> int:
    """Side in pixels of the square pictures that go into an open_clip picture tower."""
    size = visual.image_size
    return int(size[0] if isinstance(size, (tuple, list)) else size)


def text_tower(clip: Any) -> Any:
    """What holds ``token_embedding`` and ``transformer``: the model itself, or its ``text`` in open_clip's newer layout."""
    return clip if hasattr(clip, "token_embedding") else getattr(clip, "text", clip)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
    """A block's input, whichever way it came, and what puts another in its place."""
    if args:
        return args[0], lambda x: ((x, *args[1:]), kwargs)
    return kwargs["q_x"], lambda x: (args, {**kwargs, "q_x": x})


class PromptedClip(nn.Module):
    """An open_clip model with learned tokens in one or both towers: PromptKD's teacher.

    Args:
        clip: The model; it is frozen, and hooked for good.
        picture_tokens: For its picture tower, or None.
        text_tokens: For its text tower, or None.
        tokenizer: Texts to ids [N, context], start token first. Without ``text_tokens`` any texts will do.

    Raises:
        ValueError: The tokens don't fit the model.
    """

    def __init__(self, clip: Any, picture_tokens: PromptTokens | None, text_tokens: PromptTokens | None, tokenizer: Any) -> None:
        super().__init__()
        self.clip: Any = clip.requires_grad_(False).train(False)
        self.picture_tokens, self.text_tokens, self.tokenizer = picture_tokens, text_tokens, tokenizer
        if picture_tokens is not None:
            prompt_picture_tower(clip.visual, picture_tokens)
        if text_tokens is not None:
            prompt_text_tower(clip, text_tokens)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), the inverse temperature."""
        scale: Tensor = self.clip.logit_scale.exp()
        return scale

    @property
    def picture_size(self) -> int:
        """Side in pixels of the square pictures that go in."""
        return picture_size_of(self.clip.visual)

    @property
    def embed(self) -> int:
        """Size of the common space."""
        return int(self.clip.visual.output_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.clip.parameters()).device

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Unit features [B, D], float32, of preprocessed pictures [B, 3, S, S]."""
        dtype = next(self.clip.visual.parameters()).dtype
        return F.normalize(self.clip.encode_image(pixels.to(dtype)).float(), dim=-1)

    def encode_classes(self, ids: Tensor) -> Tensor:
        """Unit features [N, D], float32, of token ids [N, context]; with text tokens, ids 1..n are not looked at."""
        return F.normalize(self.clip.encode_text(ids).float(), dim=-1)

    def class_texts(self, names: Sequence[str], placeholder: str) -> list[str]:
        """What is encoded for class names: n placeholder words, where the learned tokens enter, and the name.

        ``placeholder`` are the words that the learned tokens began as ("a photo of a").
        """
        return [f"{placeholder} {name.replace('_', ' ')}.".strip() for name in names]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it the model is the plain one, without learned tokens and gradients."""
        with torch.no_grad(), _off(self.picture_tokens), _off(self.text_tokens):
            yield


@contextmanager
def _off(tokens: PromptTokens | None) -> Iterator[None]:
    if tokens is None:
        yield
    else:
        with tokens.off():
            yield


class Projector(nn.Module):
    """The student's features to the teacher's space: 1x1 convolution, batch norm, ReLU, 1x1 convolution (the authors' names)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(inside, outside, 1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True), nn.Conv2d(outside, outside, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, inside] to [B, outside], both float32."""
        projected: Tensor = self.conv1(features[:, :, None, None])
        return projected[:, :, 0, 0]

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> Projector:
        """PyTorch's own initialisation of convolutions, U(-1/sqrt(in), 1/sqrt(in)), from ``generator``."""
        for layer in (self.conv1[0], self.conv1[3]):
            bound = 1 / math.sqrt(layer.in_channels)  # type: ignore[arg-type]
            for parameter in (layer.weight, layer.bias):
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)  # type: ignore[union-attr,operator,arg-type]
        self.conv1[1].reset_parameters()  # type: ignore[operator]
        return self


def fitted_projector(weights: Mapping[str, Tensor]) -> Projector:
    """A projector with ``weights``; its sizes are theirs, and it is made only if all of them fit.

    Raises:
        KeyError, ValueError, RuntimeError: A part is missing, or doesn't fit the others.
    """
    outside, inside = weights["conv1.0.weight"].shape[:2]
    network = build_to_fit(lambda: Projector(inside, outside), weights, lambda sketch: same_shapes(sketch, weights))
    network.load_state_dict(weights)
    return cast(Projector, network)


def last_blocks(visual: Any, count: int) -> tuple[str, ...]:
    """The parameters, by name, of a picture tower's last ``count`` residual blocks and of what comes after them.

    With as many blocks as it has, or more: all of the tower's, patches and positions too.
    """
    names = tuple(name for name, _ in visual.named_parameters())
    blocks = len(visual.transformer.resblocks)
    if count >= blocks:
        return names
    parts = (*(f"transformer.resblocks.{i}." for i in range(blocks - count, blocks)), "ln_post.", "proj")
    return tuple(name for name in names if name.startswith(parts)) if count else ()


class PromptedStudent(nn.Module):
    """PromptKD's student: a small picture tower with learned tokens, and the projector into the teacher's space.

    It has no text tower: its logits are against the teacher's stored text features.

    Args:
        visual: The picture tower of a small open_clip model; it is hooked for good, and frozen but for ``taught``.
        tokens: Learned tokens.
        projector: From its features to the teacher's.
        logit_scale: ln of the student's own inverse temperature.
        taught: The tower's parameters, by name, that learn too, or did; see ``last_blocks``.
    """

    def __init__(
        self, visual: Any, tokens: PromptTokens, projector: Projector, logit_scale: Tensor, taught: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.visual: Any = visual.requires_grad_(False).train(False)
        self.taught = tuple(taught)
        for parameter in self.tower().values():
            parameter.requires_grad_(True)
        self.tokens, self.projector = tokens, projector
        self.register_buffer("logit_scale", logit_scale.detach().clone().float())
        prompt_picture_tower(visual, tokens)

    def train(self, mode: bool = True) -> PromptedStudent:
        """Only the projector knows of training: the tower has nothing that differs."""
        super().train(mode)
        self.visual.train(False)
        return self

    @property
    def picture_size(self) -> int:
        """Side in pixels of the square pictures that go in."""
        return picture_size_of(self.visual)

    def learned(self) -> list[nn.Parameter]:
        """What the published training changes: tokens and projector."""
        return [*self.tokens.parameters(), *self.projector.parameters()]

    def tower(self) -> dict[str, nn.Parameter]:
        """What of the picture tower learns beside them, by name; nothing as published."""
        return {name: self.visual.get_parameter(name) for name in self.taught}

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit features [B, D] in the teacher's space, float32, of preprocessed pictures [B, 3, S, S]."""
        return self.project(self.tower_features(pixels))

    def tower_features(self, pixels: Tensor) -> Tensor:
        """The small tower's own features [B, d], float32."""
        dtype = next(self.visual.parameters()).dtype
        features: Tensor = self.visual(pixels.to(dtype)).float()
        return features

    def project(self, features: Tensor) -> Tensor:
        """Unit features [B, D] in the teacher's space."""
        return F.normalize(self.projector(features), dim=-1)

    def logits(self, features: Tensor, text_features: Tensor) -> Tensor:
        """exp(logit_scale) cos [B, C] against the teacher's text features [C, D]."""
        return self.logit_scale.exp() * features @ text_features.T  # type: ignore[operator]
