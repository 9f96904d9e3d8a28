"""The bridge to ComfyUI's sampling: noise, packing of part of a batch, counting, progress.

Everything that draws goes through stock functions (``comfy.sample``), so that with the whole batch the result is the
stock sampler's to the bit. What this file adds is that a *part* of a batch gets the noise it would have got in the
whole one.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import comfy.k_diffusion.sampling as k_sampling
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
from torch import Tensor, nn

from .pixels import require_tensor, to_pixels
from .prompts import for_rows, groups
from .rows import Conditioning as Conditioning
from .rows import Latent as Latent
from .rows import is_whole, take_latent, take_rows

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
INFO = "apprentice"  # key in a LATENT for what later nodes need to know about the drafts
CARD = "apprentice_card"  # attachment of a MODEL: how it was made, and with which preset it draws

# Samplers that integrate a Brownian path instead of drawing white noise each step.
_BROWNIAN = frozenset({"dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"})
# Guiders of ComfyUI whose guidance of a picture depends on the batch: PerpNegGuider projects all pictures at once.
_BY_BATCH = frozenset({"Guider_PerpNeg"})
_NOISE_BY_PLACE = {"SD_X4Upscaler", "HunyuanImage21Refiner", "HunyuanVideo15_SR_Distilled"}


# ---------------------------------------------------------------------------------------------------- noise


def batch_noise(latent: Latent, seed: int) -> Tensor:
    """The stock noise of the whole batch: a function of the seed and of each picture's ``batch_index`` alone."""
    return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def step_noise(
    sampler_name: str, function: Callable[..., Any], whole: Tensor, sigmas: Tensor, seed: int, rows: Sequence[int]
) -> dict[str, Any]:
    """The ``noise_sampler`` option that gives ``rows`` the per-step noise they would get in the whole batch.

    Args:
        whole: A tensor of the whole batch's shape, on the sampling device.
        sigmas: The noise levels to be sampled.

    Returns:
        Options for ``KSAMPLER``; empty for samplers that draw no noise between steps.
    """
    if "noise_sampler" not in inspect.signature(function).parameters:
        return {}
    base = sampler_name.removesuffix("_gpu")
    if base in _BROWNIAN:
        positive = sigmas[sigmas > 0]
        if len(positive) == 0:
            return {}
        source = k_sampling.BrownianTreeNoiseSampler(
            whole, positive.min(), sigmas.max(), seed=seed, cpu=base == sampler_name
        )
    else:
        source = k_sampling.default_noise_sampler(whole, seed=seed)
    index = torch.as_tensor(list(rows), device=whole.device)
    return {"noise_sampler": lambda sigma, following: source(sigma, following)[index]}


class _RowsSampler(comfy.samplers.KSAMPLER):
    """A stock sampler over some rows of a batch, with the noise of those rows.

    Overrides ``sample`` only to learn the device and noise levels before the sampler starts; what is drawn is unchanged.
    """

    def __init__(self, stock: comfy.samplers.KSAMPLER, name: str, shape: torch.Size, rows: Sequence[int]) -> None:
        super().__init__(stock.sampler_function, dict(stock.extra_options), dict(stock.inpaint_options))
        self.name, self.shape, self.rows = name, shape, list(rows)

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        whole = torch.empty((self.shape[0], *noise.shape[1:]), dtype=noise.dtype, device=noise.device)
        seed = extra_args.get("seed")
        if "noise_sampler" not in self.extra_options and seed is not None:
            self.extra_options |= step_noise(self.name, self.sampler_function, whole, sigmas, seed, self.rows)
        if self.inpaint_options.get("random") and denoise_mask is not None:
            return self._sample_random_inpaint(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask,
                                               disable_pbar)  # fmt: skip
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _sample_random_inpaint(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None,
        denoise_mask: Tensor,
        disable_pbar: bool,
    ) -> Tensor:
        """``ddim`` under a mask: the noise over the kept part is drawn by shape, so draw the whole batch's."""
        generator = torch.manual_seed(extra_args.get("seed", 41) + 1)
        kept = torch.randn((self.shape[0], *noise.shape[1:]), generator=generator, device="cpu")[self.rows]
        inner = self.sampler_function

        def with_noise(model: Any, *args: Any, **kwargs: Any) -> Tensor:
            model.noise = kept.to(noise)
            return inner(model, *args, **kwargs)

        stock = comfy.samplers.KSAMPLER(with_noise, self.extra_options, {})
        return stock.sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


# ------------------------------------------------------------------------------------------ parts of a batch


def tell_rows(model_options: dict[str, Any], rows: Sequence[int], total: int) -> None:
    """Tell a model's patches which pictures of a batch of ``total`` they are going to see.

    ``ad_params`` is the protocol of AnimateDiff's windows, which IP-Adapter and its like follow; ``apprentice_rows`` is ours.
    With the whole batch nothing is said.
    """
    if not is_whole(rows, total):
        options = model_options.setdefault("transformer_options", {})
        options.setdefault("ad_params", {"sub_idxs": list(rows), "full_length": total, "context_length": len(rows)})
        options["apprentice_rows"] = {"rows": list(rows), "total": total}


def step_cache(model: comfy.model_patcher.ModelPatcher) -> str:
    """The cache (EasyCache, LazyCache) on ``model`` that skips steps by how little the batch as a whole changes; or ""."""
    return str(getattr(model.model_options.get("transformer_options", {}).get("easycache"), "name", ""))


# --------------------------------------------------------------------------------------------------- counting


class Counter:
    """Counts network evaluations: rows that went through the network (one CFG step on one picture counts two)."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """ComfyUI's wrapper protocol."""
        self.rows += len(x)
        return executor(x, *args, **kwargs)

    def attach(self, model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
        """A clone of ``model`` that counts."""
        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "apprentice_count", self)
        return clone


class _StandIn:
    """Takes a model's place under a sampler: its noise levels and guidance, and for a network the best guess at random pictures.

    It answers to what ComfyUI calls a guider, a model, and the model's patcher.
    """

    def __init__(self, guider: comfy.samplers.CFGGuider) -> None:
        self.model_patcher, self.cfg, self.rows = guider.model_patcher, guider.cfg, 0
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.inner_model = self.current_patcher = self
        self.guider: Any = copy.copy(guider)
        self.guider.conds = {key: [{"model_conds": {}, "uuid": key}] for key in guider.original_conds}
        self.guider.inner_model = self
        # The second model of ComfyUI's DualModelGuider.
        self.guider.uncond_inner, self.guider._uncond_conds = self, self.guider.conds.get("negative")

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Any:
        options = dict(model_options)
        options["sampler_post_cfg_function"] = [self._forgiving(f) for f in model_options.get("sampler_post_cfg_function", [])]
        return self.guider.predict_noise(x, sigma, options, seed)

    def _forgiving(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function after guidance that wants what only the network leaves behind (SAG) evaluates it once."""

        def call(given: dict[str, Any]) -> Any:
            try:
                return function(given)
            except Exception:  # by strangers, on a network that isn't there
                self.rows += len(given["input"])
                return given["denoised"]

        return call

    def apply_model(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        self.rows += len(x)
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        picture = self.model_sampling.noise_scaling(level, zeros, ones)
        noise = self.model_sampling.noise_scaling(level, ones, zeros)
        return x * picture / (picture**2 + noise**2)

    def memory_required(self, *_: Any, **__: Any) -> int:
        return 0

    def get_free_memory(self, *_: Any, **__: Any) -> int:
        return 1  # more than is required; newer ComfyUIs ask the patcher

    def prepare_state(self, *_: Any, **__: Any) -> None:
        pass

    def apply_hooks(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


def count_evaluations(
    model: comfy.model_patcher.ModelPatcher, sampler: str | comfy.samplers.Sampler, sigmas: Tensor, cfg: float, guider: Any = None
) -> int:
    """Network evaluations that ``sampler`` spends on one picture, with guidance and its companions (PAG, SAG, skipped layers).

    The sampler is run on a few numbers with a stand-in for the network. It is an estimate for one that chooses its own steps, and
    for one that looks into the network: one evaluation a step, two with guidance. A ``guider`` counts in place of model and cfg.
    """
    if len(sigmas) < 2:
        return 0
    guider = guider or stock_guider(model, [], [], cfg)
    kind = guider.model_patcher.get_model_object("latent_format")
    shape = (1, kind.latent_channels, *[8] * kind.latent_dimensions)
    options = comfy.model_patcher.create_model_options_clone(options_of(guider))
    options.pop("model_function_wrapper", None)  # how the network is called, not how often
    options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
    with torch.random.fork_rng(devices=[]):
        noise, given = torch.randn(shape, generator=torch.Generator().manual_seed(0)), {"model_options": options, "seed": 0}
        try:
            network = _StandIn(guider)
            sampler_of(sampler).sample(network, sigmas.cpu(), given, None, noise, torch.zeros(shape), disable_pbar=True)
        except Exception:  # by strangers, on a network that isn't there
            return (len(sigmas) - 1) * (1 if getattr(guider, "cfg", cfg) == 1 else 2)
    return network.rows


# --------------------------------------------------------------------------------------------------- sampling


def stock_sigmas(
    model: comfy.model_patcher.ModelPatcher, sampler: str | comfy.samplers.Sampler, scheduler: str, steps: int, denoise: float
) -> Tensor:
    """The noise levels that the stock KSampler would use.

    Raises:
        ValueError: ComfyUI has no such sampler or scheduler; a choice that is connected can't be checked any earlier.
    """
    for what, given, known in (
        ("sampler_name", sampler, comfy.samplers.SAMPLER_NAMES), ("scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES),
    ):  # fmt: skip
        if isinstance(given, str) and given not in known:
            raise ValueError(f"{what} is '{given}', which is not one of: {', '.join(known)}.")
    stock = comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler=sampler_name(sampler), scheduler=scheduler, denoise=denoise,
        model_options=model.model_options,
    )  # fmt: skip
    return stock.sigmas


def stock_guider(
    model: comfy.model_patcher.ModelPatcher, positive: Conditioning, negative: Conditioning, cfg: float
) -> comfy.samplers.CFGGuider:
    """The guidance of the stock KSampler."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def with_model(guider: Any, model: comfy.model_patcher.ModelPatcher) -> Any:
    """A copy of ``guider`` that draws with ``model``, which is its own model or a clone of it."""
    own, changed = options_of(guider), copy.copy(guider)
    shared = own is guider.model_patcher.model_options
    changed.model_patcher = model
    changed.model_options = model.model_options if shared else comfy.model_patcher.create_model_options_clone(own)
    return changed


def options_of(guider: Any) -> dict[str, Any]:
    """What a guider hands to its model."""
    options: dict[str, Any] = getattr(guider, "model_options", guider.model_patcher.model_options)
    return options


def sampler_of(sampler: str | comfy.samplers.Sampler) -> comfy.samplers.Sampler:
    """A SAMPLER, by name or as it is."""
    return comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler


def sampler_name(sampler: str | comfy.samplers.Sampler) -> str:
    """The name that ``sampler`` has in ComfyUI's list, or goes by."""
    if isinstance(sampler, str):
        return sampler
    function = getattr(sampler, "sampler_function", type(sampler))
    own = getattr(function, "__name__", type(function).__name__).removeprefix("sample_").removesuffix("_function")
    return str(getattr(sampler, "apprentice_name", own.replace("unipc", "uni_pc")))


def draws_whole(
    model: comfy.model_patcher.ModelPatcher, sampler: str | comfy.samplers.Sampler, guider: Any = None
) -> str:
    """Why pictures can't be drawn apart by these, so that the whole batch must be; "" where they can.

    Another pack's sampler may draw noise between the steps that only it knows to draw; another pack's guider may keep its
    conditionings in a way of its own; some guidance depends on the whole batch; some of ComfyUI's models of upscaling add noise
    to the pictures that they are shown, drawn for all at once.
    """
    if noisy := _NOISE_BY_PLACE & {kind.__name__ for kind in type(model.model).__mro__}:
        return f"the model {noisy.pop()} draws noise for all pictures at once"
    stock = sampler_of(sampler)
    if guider is not None and not isinstance(getattr(guider, "original_conds", None), dict):
        return f"the guider {type(guider).__name__} keeps its conditionings to itself"
    if type(guider).__name__ in _BY_BATCH:
        return f"the guider {type(guider).__name__} weighs the batch as a whole"
    if type(stock) is not comfy.samplers.KSAMPLER:
        return f"the sampler {sampler_name(stock)} is one of its own kind"
    if hasattr(stock, "apprentice_name") or stock.sampler_function.__module__.startswith("comfy."):
        return ""
    inner = [value for value in stock.extra_options.values() if isinstance(value, comfy.samplers.Sampler)]
    functions = [getattr(each, "sampler_function", None) for each in (stock, *inner)]
    if all(function and "noise_sampler" not in inspect.signature(function).parameters for function in functions):
        return ""
    return f"the sampler {sampler_name(stock)} draws noise of its own"


def sample_rows(
    model: comfy.model_patcher.ModelPatcher,
    latent: Latent,
    rows: Sequence[int],
    *,
    noise: Tensor,
    sigmas: Tensor,
    sampler: str | comfy.samplers.Sampler,
    cfg: float,
    positive: Conditioning,
    negative: Conditioning,
    seed: int,
    pack: int = 0,
    callback: Any = None,
    guider: Any = None,
) -> tuple[Tensor, list[float]]:
    """Sample the pictures ``rows`` of a batch, each with the noise that it has in the whole batch.

    With all rows in one pack this is ComfyUI's SamplerCustomAdvanced on the batch, to the bit. Prompts with texts of
    different lengths are drawn in a pack for each length (``samplers.prompts``). Where ``draws_whole`` tells why, all pictures
    are drawn for the sake of ``rows``.

    Args:
        latent: The whole batch: ``samples`` [B, C, H, W], and mask and indices where there are any.
        noise: The whole batch's noise [B, C, H, W].
        sigmas: Noise levels, falling; the last is 0.
        sampler: A sampler's name, or one made by hand.
        pack: Pictures at a time; 0 for all at once.
        callback: ComfyUI's preview callback, for the progress bar.
        guider: A GUIDER, in place of cfg, positive and negative; its model is ``model``.

    Returns:
        Latents [len(rows), C, H, W] and each picture's network evaluations.
    """
    total, ndim = len(latent["samples"]), latent["samples"].ndim
    name, stock = sampler_name(sampler), sampler_of(sampler)
    guider = guider or stock_guider(model, positive, negative, cfg)
    parts = [list(range(total))] if rows else []
    if whole := draws_whole(model, stock, guider):
        conds = {}
    else:
        conds = _conditionings(guider)
        # Its step size follows the error of the whole batch, so only alone is a picture independent of the others.
        alone = name == "dpm_adaptive" or _counts_texts(model, conds)
        pack = 1 if alone else pack or max(len(rows), 1)
        parts = [group[i : i + pack] for group in groups(list(conds.values()), rows) for i in range(0, len(group), pack)]
    samples, evaluations = dict[int, Tensor](), dict[int, float]()
    for part_rows in parts:
        part, counter = take_latent(latent, part_rows), Counter()
        drawn = _for_rows(guider, conds, part_rows, total, ndim, counter).sample(
            take_rows(noise, part_rows, total), _among(part["samples"], latent["samples"]),
            stock if whole else _RowsSampler(stock, name, latent["samples"].shape, part_rows), sigmas,
            denoise_mask=part.get("noise_mask"), callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        ).to(comfy.model_management.intermediate_device())  # fmt: skip
        samples |= dict(zip(part_rows, drawn, strict=True))
        spent = counter.rows or count_evaluations(model, stock, sigmas, cfg, guider) * len(part_rows)
        evaluations |= dict.fromkeys(part_rows, spent / len(rows if whole else part_rows))
    if not rows:
        return latent["samples"][:0], []
    return torch.stack([samples[row] for row in rows]), [evaluations[row] for row in rows]


def _counts_texts(model: comfy.model_patcher.ModelPatcher, conds: dict[str, Conditioning]) -> bool:
    """Whether ComfyUI would take the tokens of all texts of a batch for those of one, as it does for OmniGen2."""
    several = any(text is not None and len(text) > 1 for entries in conds.values() for text, _options in entries)
    return several and type(model.model).__name__ == "Omnigen2"


def _conditionings(guider: Any) -> dict[str, Conditioning]:
    """A guider's conditionings by its own names, as nodes pass them."""
    kept = {"cross_attn", "uuid"}
    found: dict[str, Conditioning] = {}
    for name, entries in guider.original_conds.items():
        found[name] = [
            [entry.get("cross_attn"), {k: v for k, v in entry.items() if k not in kept and (k != "model_conds" or v)}]
            for entry in entries
        ]
    return found


def _for_rows(
    guider: Any, conds: dict[str, Conditioning], rows: Sequence[int], total: int, ndim: int, counter: Counter
) -> Any:
    """A copy of ``guider`` for ``rows``, whose model is counted and told of them."""
    part = with_model(guider, counter.attach(guider.model_patcher))
    tell_rows(part.model_options, rows, total)
    controls: dict[Any, Any] = {}
    picked = {name: for_rows(conditioning, rows, total, ndim, controls) for name, conditioning in conds.items()}
    if picked:
        part.original_conds = {name: comfy.sampler_helpers.convert_cond(entries) for name, entries in picked.items()}
    return part


def _among(part: Tensor, whole: Tensor) -> Tensor:
    """``part`` as ComfyUI takes it in ``whole``: empty latents stay unshifted only where the whole batch is empty.

    Empty rows among others get the smallest number there is, which vanishes in the shift.
    """
    if torch.count_nonzero(part) or not torch.count_nonzero(whole):
        return part
    return part + torch.finfo(part.dtype).tiny


def progress(model: comfy.model_patcher.ModelPatcher, steps: int, packs: int = 1) -> Any:
    """A preview callback whose bar runs once over all packs."""
    stock = latent_preview.prepare_callback(model, steps * packs)
    if packs == 1:
        return stock
    done = 0

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        nonlocal done
        stock(min(done, steps * packs - 1), x0, x, steps * packs)
        done += 1

    return callback


def step_reports(model: comfy.model_patcher.ModelPatcher, report: Callable[[int, int, Any], None]) -> Any:
    """A preview callback that tells ``report`` the steps done, all steps, and a preview for ComfyUI's progress bar."""
    previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        report(step + 1, total, previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None)

    return callback


def fit_channels(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Latent:
    """``latent`` with the model's number of channels where it is empty, as the stock sampler does it.

    Newer ComfyUIs note in an empty latent how many pixels a latent was taken for, so that it can be made as large as it was
    asked for; like the stock sampler this hands that on to ComfyUI and takes it off.

    Raises:
        ValueError: It isn't empty and belongs to another kind of model.
    """
    wanted = model.get_model_object("latent_format").latent_channels
    taken = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {key: latent[key] for key in RATIOS if key in latent and key in taken}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)
    if samples.shape[1] != wanted:
        raise ValueError(
            f"These latents have {samples.shape[1]} channels, but the model draws in {wanted}: they come from another "
            f"family of models. Encode the picture with this model's VAE, or connect both VAEs."
        )
    return {**without_ratios(latent), "samples": samples}


def without_ratios(latent: Latent) -> Latent:
    """``latent`` without what an empty latent notes of its size in pixels."""
    return {key: value for key, value in latent.items() if key not in RATIOS}


def predict_x0(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone whose network's output is read as the picture itself (the stock ModelSamplingDiscrete node's "x0")."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, "x0", False)[0]


def as_sampler(function: Callable[..., Tensor], name: str) -> comfy.samplers.KSAMPLER:
    """A sampler function of our own in ComfyUI's wrapper."""
    sampler = comfy.samplers.KSAMPLER(function)
    sampler.apprentice_name = name
    return sampler


def show_text(text: str) -> None:
    """Show ``text`` on the node that is running, as the stock nodes show progress text."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def family(model: comfy.model_patcher.ModelPatcher) -> str:
    """The model's latent family: two models of one family can pass latents to each other."""
    return type(model.get_model_object("latent_format")).__name__


# ------------------------------------------------------------------------------------------------ fingerprints

_DIGESTS: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()
_SAMPLED = 64  # values of each weight that go into a fingerprint


def model_name(model: comfy.model_patcher.ModelPatcher) -> str:
    """What kind of model it is, for people: "SDXL", "TinyWorldModel"."""
    return type(model.model).__name__


def model_fingerprint(model: comfy.model_patcher.ModelPatcher) -> str:
    """Sixteen hex digits that change with the weights, the LoRAs on them and their strengths, and the kind of sampling.

    Of each weight 64 values in even distances are looked at, which takes a fraction of a second for the largest models and
    tells any two that were trained apart. A model in another precision is another model: it draws other pictures.
    """
    known = _DIGESTS.setdefault(model.model, {})
    if model.patches_uuid not in known:
        digest = hashlib.sha256(model_name(model).encode())
        for key, (weight, *patches) in sorted(model.get_key_patches().items()):
            digest.update(key.encode())
            _digest(digest, weight[0])
            for patch in patches:
                _digest(digest, patch)
        known[model.patches_uuid] = digest.hexdigest()
    objects = {key: type(value).__name__ for key, value in sorted(model.object_patches.items())}
    return hashlib.sha256(f"{known[model.patches_uuid]}|{objects}".encode()).hexdigest()[:16]


def part_fingerprint(part: Any) -> str:
    """The same of a CLIP or a VAE; "" of what isn't in ComfyUI's memory management."""
    patcher = getattr(part, "patcher", None)
    return "" if patcher is None else model_fingerprint(patcher)


def _digest(digest: Any, value: Any) -> None:
    """Add a weight, or a patch made of numbers, texts, weights and objects that hold weights."""
    if isinstance(value, Tensor):
        digest.update(repr(tuple(value.shape)).encode())
        try:
            flat = value.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float().cpu().numpy().tobytes())
        except (RuntimeError, NotImplementedError, TypeError):
            digest.update(b"?")  # a packed format that can't be sampled: its shape must do
    elif isinstance(value, (list, tuple)):
        for item in value:
            _digest(digest, item)
    elif isinstance(value, (int, float, str)) or value is None:
        digest.update(repr(value).encode())
    elif hasattr(value, "weights"):
        _digest(digest, value.weights)


# ----------------------------------------------------------------------------------------------- a quick look

# Where ComfyUI's latent formats don't tell yet; any other takes 8 pixels.
_PIXELS = {
    "Flux2": 16, "Wan22": 16, "SC_Prior": 42, "SC_B": 4, "LTXV": 32, "HunyuanImage21": 32, "HunyuanImage21Refiner": 16,
    "HunyuanVideo15": 16, "ChromaRadiance": 1,
}  # fmt: skip


def pixels_per_latent(kind: Any) -> int:
    """Pixels that a latent of this latent format stands for, along a side."""
    known = (_PIXELS[base.__name__] for base in type(kind).__mro__ if base.__name__ in _PIXELS)
    return int(getattr(kind, "spacial_downscale_ratio", None) or next(known, 8))


def fast_decode(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Tensor:
    """Pictures [B, H, W, 3] in 0..1 by ComfyUI's own preview decoders: TAESD where its file is there, else the linear map.

    Both give full-size pictures; the linear map's are blurred. Decodes eight at a time; videos' frames are pictures.

    Raises:
        ValueError: The model's family has neither.
    """
    kind = model.get_model_object("latent_format")
    raw = require_tensor(latent)
    path = _taesd_file(kind)
    if path is not None and kind.taesd_decoder_name in latent_preview.VIDEO_TAES:
        return to_pixels(_video_taesd(path), raw).clamp(0, 1)
    samples = kind.process_in(raw)
    if samples.ndim == 5:
        samples = samples.movedim(2, 1).flatten(0, 1)
    if path is not None:
        network = _taesd(path, kind.latent_channels)
        with on_device(network) as device:
            parts = [network.decode(part.to(device).float()).float().cpu() for part in samples.split(8)]
        return ((torch.cat(parts) + 1) / 2).clamp(0, 1).movedim(1, -1)
    if kind.latent_rgb_factors is None:
        raise ValueError(
            f"There is no fast decoder for {type(kind).__name__}; choose 'full decode', or put its TAESD into models/vae_approx."
        )
    previewer = latent_preview.Latent2RGBPreviewer(
        kind.latent_rgb_factors, kind.latent_rgb_factors_bias, getattr(kind, "latent_rgb_factors_reshape", None)
    )
    reshape = previewer.latent_rgb_factors_reshape or (lambda x: x)
    factors, bias = previewer.latent_rgb_factors.to(samples.device, torch.float32), previewer.latent_rgb_factors_bias
    bias = None if bias is None else bias.to(samples.device, torch.float32)
    small = nn.functional.linear(reshape(samples.float()).movedim(1, -1), factors, bias)
    size = tuple(side * pixels_per_latent(kind) for side in samples.shape[-2:])
    shown = nn.functional.interpolate(small.movedim(-1, 1), size, mode="bicubic").movedim(1, -1)
    return ((shown + 1) / 2).clamp(0, 1)


def _taesd_file(kind: Any) -> str | None:
    """The decoder's file in models/vae_approx, or None."""
    name = kind.taesd_decoder_name
    if name is None:
        return None
    found = next((f for f in folder_paths.get_filename_list("vae_approx") if f.startswith(name)), None)
    return folder_paths.get_full_path("vae_approx", found) if found else None


@lru_cache(maxsize=2)
def _taesd(path: str, channels: int) -> Any:
    from comfy.taesd.taesd import TAESD

    return TAESD(None, path, latent_channels=channels).eval()


@lru_cache(maxsize=1)
def _video_taesd(path: str) -> Any:
    """A small decoder for video as a VAE, as the stock VAE loader makes it: it takes latents as they are."""
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(path))
    vae.first_stage_model.show_progress_bar = False
    return vae


def prefers_half(network: nn.Module) -> bool:
    """Whether ComfyUI would rather compute ``network`` in float16 on this machine's device; never on a CPU."""
    device = comfy.model_management.get_torch_device()
    size = sum(p.numel() for p in network.parameters())
    return bool(comfy.model_management.should_use_fp16(device, model_params=size))


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that is on one device whole, or refused: plain torch layers can't be split between devices."""

    def partially_load(self, device_to: torch.device, *_: Any, **options: Any) -> Any:
        """All that is not there yet.

        Raises:
            ValueError: There is no room for it.
        """
        missing = self.model_size() - self.loaded_size()
        free = comfy.model_management.get_free_memory(device_to)
        if not comfy.model_management.is_device_cpu(device_to) and missing > free:
            raise ValueError(
                f"A network that must be on one device whole needs {missing / 2**30:.1f} GiB there, and {free / 2**30:.1f} GiB "
                "are free: choose fp16, or a smaller oracle, CLIP or model."
            )
        return super().partially_load(device_to, **{**options, "extra_memory": 1e32})

    def partially_unload(self, *_: Any, **__: Any) -> int:
        """Nothing, so that ComfyUI takes all of it."""
        return 0


def patchers_of(network: nn.Module) -> list[WholePatcher]:
    """The ModelPatchers of a network: one for each network that it is made of, whoever else that belongs to."""
    parts = getattr(network, "residents", None)
    if parts is not None:
        return list(dict.fromkeys(patcher for part in parts() for patcher in patchers_of(part)))
    patcher = network.__dict__.get("apprentice_patcher")
    if patcher is None:
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        # In a module of our own: ModelPatcher writes attributes, some of which transformers' classes don't let anybody set.
        patcher = WholePatcher(nn.ModuleList([network]), device, offload)
        # On the network itself, so that both go when nobody needs the oracle any more.
        network.__dict__["apprentice_patcher"] = patcher
    return [patcher]


@contextmanager
def on_device(network: nn.Module) -> Iterator[torch.device]:
    """Have ComfyUI load ``network`` (an oracle's) on its device, making room and offloading as for its own models.

    Raises:
        ValueError: There is no room for it.
    """
    patchers = patchers_of(network)
    with torch.inference_mode(False):  # what is moved in inference mode can't teach any more
        comfy.model_management.load_models_gpu(patchers, force_full_load=True)
    yield patchers[0].load_device
