"""Settings of a training run, as frozen dataclasses, and the two presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PRESETS", "AugmentConfig", "TrainConfig", "preset"]


@dataclass(frozen=True)
class AugmentConfig:
    """How a crop is drawn from an image.

    Attributes
    ----------
    crop : int
        Side of the square crop in pixels, a multiple of 32.
    min_side, max_side : int
        The image is scaled so that its longest side is between them (log-uniform), and large
        enough for a crop.
    stretch : float
        Largest change of the aspect ratio, as a natural logarithm.
    flip, flip_vertical : float
        Probability of mirroring left-right, top-bottom.
    colour : float
        Range of brightness, contrast and saturation factors, as a natural logarithm.
    grey, blur, noise : float
        Probability of each.
    line_width : int
        Width in the crop, pixels, of the lines that thin labels become.
    """

    crop: int = 320
    min_side: int = 380
    max_side: int = 900
    stretch: float = 0.12
    flip: float = 0.5
    flip_vertical: float = 0.08
    colour: float = 0.4
    grey: float = 0.08
    blur: float = 0.15
    noise: float = 0.2
    line_width: int = 4

    def __post_init__(self) -> None:
        if self.crop < 32 or self.crop % 32:
            raise ConfigError(f"crop is {self.crop}; it must be a positive multiple of 32")
        if not 0 < self.min_side <= self.max_side:
            raise ConfigError(
                f"min_side {self.min_side} and max_side {self.max_side}: "
                "0 < min_side <= max_side is needed"
            )
        for name in ("flip", "flip_vertical", "grey", "blur", "noise"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; a probability from 0 to 1 is needed")
        if self.line_width < 0 or self.stretch < 0 or self.colour < 0:
            raise ConfigError("line_width, stretch and colour must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run; the same config and data give the same weights.

    Attributes
    ----------
    architecture : {"lite", "segformer"}
        `LiteBoundaryNet`, or SegFormer-b0, the paper's.
    label_stride : int
        Labels have the crop's side divided by this: 1, 2 or 4; logits are resized to them.
    labels : {"soft", "exact"}
        Edge strength widened after scaling, or the paper's dilation minus erosion at native size.
    steps : int
        Optimiser steps, of which the learning rate makes one curve.
    stop_after : int, optional
        End after so many of them, with the weights of that step; after all by default. Masks of a
        model teach a network first what people draw, and then what only that model sees.
    batch_size : int
        Crops a device and forward pass.
    accumulate : int
        Forward passes a step.
    learning_rate, encoder_rate : float
        AdamW's rate; the encoder's is `encoder_rate` times that.
    weight_decay : float
        AdamW's.
    warmup : int
        Steps of linear rise.
    schedule : {"cosine", "constant"}
        After the rise.
    clip_norm : float
        Largest norm of the gradient; 0 for none.
    ema : float
        Decay of the averaged weights, which are what is validated and saved; 0 for none.
    frozen_stages : int
        Stages of the encoder, from the first, whose weights stay as they are; ``"lite"`` only. To
        go on from trained weights, 2 of its 7 save 40 % of a step: they are half its work.
    freeze_encoder_norm : bool
        Keep the encoder's batch statistics: right for pretrained encoders and small batches.
    mixed_precision : {"no", "bf16"}
        Autocast of the forward pass.
    logit_shift : float
        Added to the logits of the weights that are saved, and taken off again from those that a
        run starts from and from maps of a teacher. Soft labels of overlapping masks are far
        below 1 even on sure boundaries; the shift puts the best threshold near 0.5, and gives small
        probabilities more of the 256 levels of a map.
    seed : int
        Of crops, order and initial weights.
    checkpoint_every, validate_every, log_every : int
        Steps between.
    workers : int
        DataLoader workers; 0 loads in the main process.
    augment : AugmentConfig
        Crops.

    Examples
    --------
    >>> preset("default").architecture, preset("epoc").labels
    ('lite', 'exact')
    """

    architecture: Literal["lite", "segformer"] = "lite"
    label_stride: int = 2
    labels: Literal["soft", "exact"] = "soft"
    steps: int = 1200
    stop_after: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 0.02
    warmup: int = 150
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = 1.0
    ema: float = 0.998
    frozen_stages: int = 0
    freeze_encoder_norm: bool = True
    mixed_precision: Literal["no", "bf16"] = "no"
    logit_shift: float = 2.4
    seed: int = 0
    checkpoint_every: int = 250
    validate_every: int = 250
    log_every: int = 10
    workers: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "checkpoint_every",
            "validate_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.steps:
            raise ConfigError(
                f"stop_after is {self.stop_after}; it must be from 1 to steps={self.steps}"
            )
        if self.learning_rate <= 0 or self.encoder_rate < 0:
            raise ConfigError("learning_rate must be positive, encoder_rate not negative")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; a decay from 0 (none) to below 1 is needed")
        for name, allowed in (
            ("label_stride", (1, 2, 4)),
            ("architecture", ("lite", "segformer")),
            ("labels", ("soft", "exact")),
            ("schedule", ("cosine", "constant")),
            ("mixed_precision", ("no", "bf16")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; choose one of "
                    + ", ".join(str(one) for one in allowed)
                )
        if not 0 <= self.frozen_stages <= (7 if self.architecture == "lite" else 0):
            raise ConfigError(
                f"frozen_stages is {self.frozen_stages}; 0 to 7 for lite, 0 for segformer"
            )
        if min(self.warmup, self.workers, self.clip_norm, self.weight_decay) < 0:
            raise ConfigError("warmup, workers, clip_norm and weight_decay must not be negative")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, nested."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration from what `to_dict` gave.

        Raises
        ------
        ConfigError
            A name that is no setting, or a value out of range.
        """
        given = dict(values)
        crops = given.pop("augment", {})
        _refuse_unknown(cls, given)
        _refuse_unknown(AugmentConfig, crops)
        return cls(**given, augment=AugmentConfig(**crops))


def _refuse_unknown(kind: type[Any], values: Mapping[str, Any]) -> None:
    known = {one.name for one in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(known))}"
        )


_DEFAULT = TrainConfig()

#: "default": the recipe of the packaged weights. "epoc": the paper's (arXiv 2402.14327, appendix A)
#: for one device; it used a batch of 64 in all, 2 epochs of SA-1B.
PRESETS: dict[str, TrainConfig] = {
    "default": _DEFAULT,
    "epoc": TrainConfig(
        architecture="segformer",
        label_stride=1,
        labels="exact",
        steps=350_000,
        batch_size=8,
        accumulate=8,
        learning_rate=1e-4,
        encoder_rate=1.0,
        weight_decay=0.05,
        warmup=5000,
        schedule="constant",
        clip_norm=0.0,
        ema=0.0,
        freeze_encoder_norm=False,
        logit_shift=0.0,
        checkpoint_every=1000,
        validate_every=1000,
        augment=replace(
            _DEFAULT.augment,
            crop=1024,
            min_side=1024,
            max_side=1024,
            stretch=0.0,
            flip_vertical=0.0,
            grey=0.0,
            blur=0.0,
            noise=0.0,
        ),
    ),
}


def preset(name: str, **changes: Any) -> TrainConfig:
    """Return a preset, with some settings changed.

    Parameters
    ----------
    name : str
        ``"default"`` or ``"epoc"``.
    **changes
        Fields of `TrainConfig`; ``crop`` and the other fields of `AugmentConfig` are passed on.

    Raises
    ------
    ConfigError
        No such preset or setting.

    Examples
    --------
    >>> preset("default", steps=10, crop=64).augment.crop
    64
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    values = PRESETS[name].to_dict()
    crops = {one.name for one in fields(AugmentConfig)}
    for key, value in changes.items():
        (values["augment"] if key in crops else values)[key] = value
    return TrainConfig.from_dict(values)
