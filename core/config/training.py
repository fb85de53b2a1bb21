"""Knobs of quantization and quantization-aware training, the paper's step 2."""

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any

from core.config.adaptive import ADAPTIVE
from core.config.choices import AUTHORS, BIT_WIDTHS, PROTOCOLS, RANGE_METHODS
from core.config.knobs import check_text, knob
from core.config.student_losses import StudentLossKnobs
from core.errors import ConfigError, quoted

_LOW_BITS = "at 2 and 3 bits, {} has 4 and 8 values: accuracy drops sharply and more training is needed."


@dataclass(frozen=True)
class TrainingConfig(StudentLossKnobs):
    """Knobs of quantization and training. In a run with several bit widths, `RunConfig.training_for` sets `weight_bits`."""

    weight_bits: int = knob(
        4,
        "Bit width of the weights.",
        choices=BIT_WIDTHS,
        paper="3, 4, 5",
        low=_LOW_BITS.format("a kernel"),
        high="at 7 and 8 bits, little is lost even without training, and little memory is saved.",
        in_form=False,
    )
    activation_bits: int = knob(
        0,
        "Bit width of the activations. 0: that of the weights.",
        choices=(0, *BIT_WIDTHS),
        paper="that of the weights",
        low=_LOW_BITS.format("an activation"),
        high="at 7 and 8 bits, little is lost even without training, and little is saved.",
        in_form=False,
    )
    range: str = knob(
        "lsq",
        "How ranges are found: " + "; ".join(f"{name}, {choice.help}" for name, choice in RANGE_METHODS.items()) + ". "
        "At 3 bits, minmax loses most, because single large values stretch it.",
        choices=RANGE_METHODS,
        paper="minmax",
    )
    symmetric_weights: bool = knob(
        False,
        "Quantize weights around zero, with zero points of 0, as TensorRT, NPUs, and mobile runtimes compute with them.",
        paper="off",
        low="each channel uses all levels of its range; files for such runtimes round 8-bit weights once more.",
        high="exported 8-bit weights are those that were trained; a channel whose weights are not centered loses levels.",
    )
    first_last_8bit: bool = knob(
        False,
        "Keep the first and last layer at 8 bits.",
        label="First and last layer at 8 bits",
        paper="off: all layers at n bits",
        low="all layers have the same width, as in the paper's table.",
        high="more accurate at low bit widths, but not comparable with the paper's table.",
    )
    steps: int = knob(
        150,
        "Training steps. 0 stops after calibration.",
        minimum=0,
        maximum=1_000_000,
        step=50,
        label="Training steps",
        low="0 is calibration alone; with few steps, low bit widths stay far below full precision.",
        high="takes proportionally longer, with diminishing gains.",
        in_form=False,
    )
    training_batch_size: int = knob(
        64,
        "Images in a training step.",
        minimum=1,
        maximum=4096,
        label="Batch size",
        flag="batch-size",
        low="noisy gradients.",
        high="takes more memory and time per step.",
    )
    training_optimizer: str = knob(
        "adam", "Optimizer of the training: adam, or sgd with Nesterov momentum 0.9.", choices=("adam", "sgd"), paper="sgd"
    )
    training_lr: float = knob(
        5e-4,  # between what 3 and 5 bits want, see PRESETS
        "Peak step size of the training: 10 warm-up steps, then cosine decay to zero. Fewer bits tolerate more: 1e-3 at 3, 1e-4 at 5.",
        minimum=0.0,
        maximum=1.0,
        label="Training step size",
        flag="lr",
        paper="1e-4",
        step=1e-4,
        low="weights barely move from the calibrated network.",
        high="at high bit widths it destroys what the network knew; the loss may diverge.",
        in_form=False,
    )
    alpha_ce: float = knob(
        0.0,
        "Weight of the cross entropy to the labels.",
        minimum=0.0,
        maximum=100.0,
        label="Labels α_CE",
        symbol="α_CE",
        paper="1",
        step=0.1,
        low="0 relies on the teacher alone.",
        high="trusts labels that the teacher does not recognize in some images, which costs accuracy at low bit widths.",
    )
    alpha_kd: float = knob(
        1.0,
        "Weight of T² KL(teacher || student): distillation from the full-precision network's logits.",
        minimum=0.0,
        maximum=100.0,
        label="Teacher α_KD",
        symbol="α_KD",
        step=0.1,
        low="0 turns distillation off: only labels and features are left.",
        high="outweighs labels and features, and with sgd acts like a larger step size.",
    )
    alpha_feature: float = knob(
        10.0,
        "Weight of the relative distance between the BatchNorm outputs of student and teacher: keeps each layer near its original.",
        minimum=0.0,
        maximum=1000.0,
        label="Features α_F",
        symbol="α_F",
        paper="0: not part of it",
        step=0.5,
        low="0 matches the logits alone; layers may drift from their originals.",
        high="holds layers to their originals even where low bit widths need other ones.",
    )
    temperature: float = knob(
        4.0,
        "Temperature T of teacher and student in the KL term.",
        minimum=0.1,
        maximum=100.0,
        symbol="T",
        step=0.5,
        low="only the teacher's top class counts.",
        high="all classes count nearly alike, and the teacher's confidence is lost.",
    )
    ema_decay: float = knob(
        0.98,
        "Decay of the exponential moving average (EMA) of weights and scales, which the training ends with. 0 turns it off.",
        minimum=0.0,
        maximum=0.9999,
        label="EMA decay",
        paper="0: not part of it",
        step=0.01,
        low="0 ends with the last step's weights, which are noisy at low bit widths.",
        high="the average includes early steps of a short training, and lags behind.",
        old_names=("averaging",),
    )
    crop_padding: int = knob(
        4,
        "Reflect padding of the random crop, in pixels; 0 turns it off.",
        minimum=0,
        maximum=64,
        label="Random crop (pixels)",
        low="0 shows each image in one position only, so that the network overfits to it.",
        high="much of each image is reflected border.",
    )
    training_flip: bool = knob(
        True,
        "Mirror images at random.",
        label="Random flip",
        low="half as many different images.",
        high="suits classes without left and right, not letters.",
    )
    cutmix: float = knob(
        0.0,
        "Share of the training batches with CutMix: each image gets a rectangle of another one, for the teacher as well. Not under the "
        "authors' protocol, and not for images that are made during the training.",
        minimum=0.0,
        maximum=1.0,
        label="CutMix (share)",
        paper="0: not part of it",
        step=0.1,
        low="0 trains on the images as they are.",
        high="1 mixes every batch.",
    )
    protocol: str = knob(
        "shared",
        "How a network is trained on the images of a method: shared (images first, then the same training for all methods) or authors "
        "(the loss and the learning rates of the method's authors; a generator keeps learning while the student trains). The generators "
        "of ZAQ, AdaDFQ, and AdaSG keep learning in both.",
        choices=PROTOCOLS,
        paper="authors",
        low="the methods differ in their images alone.",
        high="authors: the methods differ in their training, too.",
        of=("gdfq", "qimera", "zaq", "dsg-g", *ADAPTIVE, "texq", "intraq", "hast", "plf", "synq"),
    )
    training_weight_decay: float = knob(
        0.0,
        "Weight decay of the training.",
        minimum=0.0,
        maximum=1.0,
        label="Weight decay",
        paper="1e-4 in GDFQ",
        step=1e-4,
        low="0 turns it off.",
        high="pulls the weights to zero, away from the calibrated network.",
    )
    flip_share: float = knob(
        0.0,
        "Smallest share of a weight tensor's integer codes that a step changes, as in AIT: smaller steps are enlarged. Falls with the "
        "learning rate. 0 turns it off.",
        minimum=0.0,
        maximum=0.1,
        label="Flipped codes (share)",
        paper="1e-3 for CIFAR-10 and 1e-4 for ImageNet in AIT",
        step=1e-4,
        low="steps too small to change a code leave the network as it is.",
        high="steps as large as those of a much larger learning rate, which destroy what the network knew.",
    )
    keep: str = knob(
        "better",
        "Which network a bit width ends with: better, the calibrated or the trained one, whichever has the larger signal-to-noise ratio "
        "of the scores on held-out synthetic images, with full precision as the signal; or trained.",
        choices=("better", "trained"),
        label="Keep",
        paper="trained",
    )
    calibration_images: int = knob(
        256,
        "Images used to calibrate the activation ranges.",
        minimum=1,
        maximum=100_000,
        low="ranges miss values of other images, which are then clipped.",
        high="takes longer and more memory, while ranges barely change.",
    )
    correct_statistics: bool = knob(
        True,
        "After the calibration, correct the running statistics of each BatchNorm layer, so that its output has the mean and variance of "
        "full precision although the layers before it are rounded. Not under the authors' protocol.",
        label="Correct BatchNorm statistics",
        paper="off",
        low="the calibrated network as its ranges make it: at 3 bits, many points less accurate.",
        high="takes two more forward passes.",
    )
    layer_bits: tuple[tuple[str, int], ...] = knob(
        (),
        "Bit widths of single layers, NAME=BITS, for their weights and input activations; all others keep the run's. An activation that "
        "several layers read gets the largest of their widths.",
        paper="none: all layers at n bits",
        in_form=False,
    )
    size: float = knob(
        0.0,
        "Largest size of a network in kB (1,000 bytes), packed. Within it, the weights of each layer get the bit width, 2 to 8, with "
        "which the scores change least; activations keep the run's. 0: no limit, all weights have the run's width.",
        minimum=0.0,
        maximum=1e7,
        label="Size at most (kB)",
        paper="none: all layers at n bits",
        low="fewer bits for all layers; what is too small for 2 bits is refused.",
        high="8 bits for all weights, from where a larger limit changes nothing.",
    )
    layer_weight_bits: tuple[tuple[str, int], ...] = knob(
        (),
        "Bit widths of the weights of single layers, NAME=BITS, whatever their input activations have; `size` chooses them.",
        paper="none: all layers at n bits",
        in_form=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _BY_LAYER:
            object.__setattr__(self, name, _layer_bits(name, getattr(self, name)))

    @classmethod
    def _check(cls, name: str, value: Any, knob_field: Field) -> None:
        if name in _BY_LAYER:
            _layer_bits(name, value)
        else:
            super()._check(name, value, knob_field)

    @property
    def input_bits(self) -> int:
        """Bit width of the activations, 2 to 8."""
        return self.activation_bits or self.weight_bits

    @property
    def corrects_statistics(self) -> bool:
        """Whether BatchNorm statistics are corrected, which the authors' protocol excludes."""
        return self.correct_statistics and self.protocol != AUTHORS

    @property
    def cutmix_share(self) -> float:
        """Share of the batches with CutMix, which the authors' protocol excludes."""
        return self.cutmix if self.protocol != AUTHORS else 0.0

    @property
    def mixed(self) -> bool:
        """Whether layers may have different widths."""
        return bool(self.first_last_8bit or self.layer_bits or self.layer_weight_bits or self.size)

    @property
    def width(self) -> str:
        """W4A4 for 4-bit weights and activations, whatever single layers have."""
        return f"W{self.weight_bits}A{self.input_bits}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return {**super().to_dict(), **{name: dict(getattr(self, name)) for name in _BY_LAYER}}


_BY_LAYER = ("layer_bits", "layer_weight_bits")


def _layer_bits(knob_name: str, given: Any) -> tuple[tuple[str, int], ...]:
    """Bit widths by layer from a mapping or pairs, sorted by name. Raises ConfigError."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ConfigError(f"{knob_name} must be a mapping of layer names to bit widths, got {quoted(given)}")
    seen: set[str] = set()
    for name, bits in pairs:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{knob_name} must name layers, got {quoted(name)}")
        check_text(knob_name, name)
        if type(bits) is not int or bits not in BIT_WIDTHS:
            raise ConfigError(f"{knob_name} must be one of {', '.join(map(str, BIT_WIDTHS))} for {quoted(name)}, got {quoted(bits)}")
        if name in seen:
            raise ConfigError(f"{knob_name} must name each layer once, got {quoted(name)} twice")
        seen.add(name)
    return tuple(sorted((name, bits) for name, bits in pairs))
