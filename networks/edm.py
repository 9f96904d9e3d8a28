"""The pixel-space networks of EDM and SiD: ``EDMPrecond`` over one of ``edm_unets``, built of a configuration or of a snapshot.

Parameter names and constructor arguments are those of the released checkpoints (NVlabs/edm, mingyuanzhou/SiD), so that every EDM,
SiD and SiDA state dict loads strictly.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..files import UnreadableFile
from .edm_unets import DhariwalUNet, SongUNet, require_choice
from .limits import refuse_hollow, refuse_immodest, without_memory
from .preconditioning import denoised, noise_label, scaled_input

_FINEST = 2_048  # pixels a side; the authors' networks draw 32 to 512

# SiDA's classes are the same networks with a second output.
_UNETS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
    "SongUNet_EncoderDecoder": SongUNet,
    "DhariwalUNet_EncoderDecoder": DhariwalUNet,
}
_PRECONDITIONINGS = ("EDMPrecond", "EDMPrecond_EncoderDecoder")


class EDMPrecond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise): EDM's eq. 7, coefficients of its Table 1.

    Args:
        img_resolution: Height and width of the images.
        img_channels: Their channels.
        label_dim: Number of classes; 0 is unconditional.
        use_fp16: Run F in float16 on a GPU; parameters and D stay float32.
        sigma_min: Least noise level that samplers may ask for.
        sigma_max: Greatest one.
        sigma_data: Standard deviation of the images, which are about -1..1.
        model_type: ``SongUNet`` or ``DhariwalUNet``.
        **model_kwargs: That class's arguments.

    Raises:
        ValueError: ``model_type`` or one of that class's choices is unknown.
    """

    def __init__(
        self, img_resolution: int, img_channels: int, label_dim: int = 0, use_fp16: bool = False, sigma_min: float = 0.0,
        sigma_max: float = float("inf"), sigma_data: float = 0.5, model_type: str = "DhariwalUNet", **model_kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        require_choice("model_type", model_type, tuple(_UNETS))
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16, self.sigma_data = use_fp16, sigma_data
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.model = _UNETS[model_type](img_resolution, img_channels, img_channels, label_dim, **model_kwargs)

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None,
        return_features: bool = False,
    ) -> Any:  # fmt: skip
        """Denoise ``x``.

        Args:
            x: Noisy images [B, C, H, W]; clean ones are about -1..1.
            sigma: Their noise level, one for all or B of them in any shape; greater than 0.
            class_labels: One-hot [B or 1, label_dim]; ``None`` is the all-zero label. An unconditional network ignores it.
            augment_labels: [B or 1, augment_dim]; ``None`` leaves their term out.
            return_features: Return (D, features); the mean over channels of features, the encoder's last activations
                [B, width, h, w], is the discriminator's map of logits in SiDA (arXiv 2410.14919).

        Returns:
            D [B, C, H, W], float32 (float64 if the parameters are).
        """
        wide = torch.float64 if self.model.map_layer0.weight.dtype == torch.float64 else torch.float32
        narrow = torch.float16 if self.use_fp16 and x.is_cuda else wide
        x, sigma = x.to(wide), sigma.to(wide).reshape(-1, 1, 1, 1)
        labels = None if class_labels is None or not self.label_dim else class_labels.reshape(-1, self.label_dim)
        scaled = scaled_input(x, sigma, self.sigma_data).to(narrow)
        f, features = self.model(scaled, noise_label(sigma.flatten()), labels, augment_labels, return_features=True)
        d = denoised(x, f.to(wide), sigma, self.sigma_data)
        return (d, features.to(wide)) if return_features else d


def build_edm(config: dict[str, Any]) -> EDMPrecond:
    """Build the network that ``config`` describes, with the authors' initialisation.

    Args:
        config: ``EDMPrecond``'s keyword arguments, as snapshots store them. ``class_name`` or ``_class_name`` may name its
            class.

    Raises:
        ValueError: The class is another preconditioning, a key is unknown or missing, or a value is not among its choices.
    """
    kwargs = {key: value for key, value in config.items() if key not in ("class_name", "_class_name")}
    name = str(config.get("class_name") or config.get("_class_name") or "EDMPrecond").rsplit(".", 1)[-1]
    if name not in _PRECONDITIONINGS:
        raise ValueError(
            f"This network is preconditioned by {name}, and only EDMPrecond can be built. The released edm-* and SiD "
            "checkpoints have it; the baseline-* ones do not."
        )
    model_type = str(kwargs.get("model_type", "DhariwalUNet"))
    require_choice("model_type", model_type, tuple(_UNETS))
    arguments = {*inspect.signature(EDMPrecond).parameters, *inspect.signature(_UNETS[model_type]).parameters}
    if unknown := sorted(set(kwargs) - arguments | set(kwargs) & {"in_channels", "out_channels", "model_kwargs"}):
        raise ValueError(f"Unknown in the configuration of a {model_type}: {', '.join(unknown)}.")
    if missing := [key for key in ("img_resolution", "img_channels") if key not in kwargs]:
        raise ValueError(f"The network's configuration lacks {' and '.join(missing)}.")
    return EDMPrecond(**kwargs)


def restore_edm(config: dict[str, Any], weights: Mapping[str, Tensor], name: str) -> EDMPrecond:
    """The network of a snapshot, in float32; weights that are float32 already are shared with ``weights``, not copied.

    Args:
        config: As ``build_edm`` takes it.
        weights: Its state dict.
        name: Of the file, for messages.

    Raises:
        UnreadableFile: The network can't be built, it is larger than its weights, or they are not its.
    """
    refuse_hollow(weights, name)
    refuse_immodest(config, name)
    try:
        if not 1 <= int(config.get("img_resolution", 1)) <= _FINEST:
            raise ValueError(f"It draws in {str(config['img_resolution'])[:20]} pixels, and no such network does.")
        with without_memory(len(weights)):  # no memory and no initialisation: all weights are the file's
            network = build_edm(config)
        network.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    except ValueError as error:
        raise UnreadableFile(f"{name} can't be loaded. {str(error).rstrip('.')}.") from error
    except RuntimeError as error:
        raise UnreadableFile(f"{name} holds weights that don't fit the network that it names; use the authors' file.") from error
    except (TypeError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise UnreadableFile(f"{name} describes a network that can't be built ({error}).") from error
    return network
