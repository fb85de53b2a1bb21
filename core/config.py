"""Every knob of the engine, checked when it is built, and the presets.

A config is a frozen dataclass that is passed whole. Each field is made by `knob`, which keeps beside the default what the command
line and the dashboard's forms need: range or choices, symbol, what the knob does and what the paper used. Nothing here imports
torch, so that listing and validating cost nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Self

from core.errors import ConfigError, UnknownNameError, quoted
from core.layout import NAME_BYTES, PATH_BYTES

OPTIMIZERS = ("mi-fgsm", "adam")
RANGE_METHODS = ("minmax", "mse", "lsq")
NOISES = ("white", "pink")
SCHEDULES = ("linear", "constant")
DEVICES = ("auto", "cpu", "cuda", "mps")
BIT_WIDTHS = range(2, 9)
# what `export` writes: a quantized network, a set of images, a model card
NETWORK_FORMATS = ("onnx", "packed", "pt2")
IMAGE_FORMATS = ("png", "safetensors", "npz")
EXPORT_FORMATS = (*NETWORK_FORMATS, *IMAGE_FORMATS, "card")
# what a person may turn while a generation runs
LIVE_KNOBS = ("epsilon", "mu", "lr", "alpha_tv", "alpha_l2", "beta")
# evaluation images that have a name; all others are folders
EVALUATION_SETS = ("embedded", "cifar10", "cifar100")
# flags that are shorter than the knob's name, where the command leaves no doubt
_FLAGS = {"quantization_seed": "seed", "training_lr": "lr"}
MOST_EVALUATIONS = 100


def knob(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple | range | None = None,
    symbol: str = "",
    paper: str = "not stated",
    low: str = "",
    high: str = "",
    step: float | None = None,
) -> Any:
    """A dataclass field with everything that a form or a command line needs to offer and explain it.

    minimum, maximum: both inclusive. paper: what the paper used. low, high: what goes wrong with a smaller and with a larger value; of a
    switch, what is when it is off and on; the same text twice where one value is as good as another. step: of a slider or number field.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "minimum": minimum,
            "maximum": maximum,
            "choices": choices,
            "symbol": symbol,
            "paper": paper,
            "low": low,
            "high": high,
            "step": step,
        },
    )


def help_text(config_class: type, name: str) -> str:
    """What the knob does, its range, default, what the paper used and what goes wrong at either end, for `--help` and for a form.

    A line each: symbol and text; range, default and paper; the lower end; the higher end.
    """
    knob_field = next(f for f in fields(config_class) if f.name == name)
    meta, default = knob_field.metadata, knob_field.default
    lines = [f"{meta['symbol']}: {meta['help']}" if meta["symbol"] else meta["help"]]
    facts = []
    if meta["choices"] is not None or meta["minimum"] is not None or meta["maximum"] is not None:
        facts.append(f"{'Range' if meta['choices'] is None else 'Choices'}: {allowed(meta)}.")
    facts += [f"Default: {_in_words(default)}.", f"Paper: {meta['paper']}."]
    lines.append(" ".join(facts))
    if meta["low"] == meta["high"] != "":
        lines.append(meta["low"])
    else:
        titles = ("Off", "On") if isinstance(default, bool) else ("Lower", "Higher")
        lines += [f"{title}: {text}" for title, text in zip(titles, (meta["low"], meta["high"])) if text]
    return "\n".join(lines)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value) if value else "none"


def flag(name: str) -> str:
    """The knob's flag on the command line."""
    return "--" + _FLAGS.get(name, name).replace("_", "-")


def allowed(meta: Mapping[str, Any]) -> str:
    """The range of a knob in words, for messages and help."""
    if meta["choices"] is not None:
        return ", ".join(str(choice) for choice in meta["choices"])
    low, high = meta["minimum"], meta["maximum"]
    if low is not None and high is not None:
        return f"{_in_words(low)} to {_in_words(high)}"
    if low is not None:
        return f"{_in_words(low)} or more"
    return f"at most {_in_words(high)}" if high is not None else "any value of its type"


def _finite(value: float) -> bool:
    # every int is finite, and math.isfinite raises OverflowError for one that no float can hold
    return isinstance(value, int) or math.isfinite(value)


def _check_text(name: str, value: str) -> None:
    """Raises ConfigError for a text that can be neither a name nor a path: whoever opens, stores or prints it would stumble."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:  # half a pair of surrogates: a file's name that is no UTF-8, or JSON that was tampered with
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > PATH_BYTES or max(map(len, encoded.split(b"/"))) > NAME_BYTES:
        raise ConfigError(
            f"{name} is {quoted(value)}: allowed is a text in UTF-8 without NUL, of at most {PATH_BYTES:,} bytes, "
            f"{NAME_BYTES} between two slashes"
        )


class Checked:
    """Checks every field made by `knob` against its type and range, and reads and writes plain dictionaries."""

    def __post_init__(self) -> None:
        for knob_field in fields(self):  # type: ignore[arg-type]
            if "help" in knob_field.metadata:
                self._check(knob_field.name, getattr(self, knob_field.name), knob_field)

    @classmethod
    def check_value(cls, name: str, value: Any) -> Any:
        """The value, checked as the field `name` would check it. Raises ConfigError."""
        knob_field = next((f for f in fields(cls) if f.name == name), None)  # type: ignore[arg-type]
        if knob_field is None:
            raise UnknownNameError("knob", value=name, allowed=[f.name for f in fields(cls)])  # type: ignore[arg-type]
        cls._check(name, value, knob_field)
        return value

    @staticmethod
    def _check(name: str, value: Any, knob_field) -> None:
        meta, kind = knob_field.metadata, type(knob_field.default)
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{name} is {quoted(value)}: allowed is a whole number, {allowed(meta)}")
        if kind is float and (isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value)):
            raise ConfigError(f"{name} is {quoted(value)}: allowed is a finite number, {allowed(meta)}")
        if kind in (str, bool) and not isinstance(value, kind):
            raise ConfigError(f"{name} is {quoted(value)}: allowed is {'true or false' if kind is bool else 'a text'}")
        if kind is str:
            _check_text(name, value)
        if kind is tuple:
            _layer_bits(value)
        if meta["choices"] is not None and value not in meta["choices"]:
            raise ConfigError(f"{name} is {quoted(value)}: allowed are {allowed(meta)}")
        low, high = meta["minimum"], meta["maximum"]
        if (low is not None and value < low) or (high is not None and value > high):
            raise ConfigError(f"{name} is {quoted(value)}: allowed is {allowed(meta)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, fit for JSON."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`. Raises ConfigError for a key that is no knob."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__} is {quoted(values)}: allowed is a mapping of knobs to values")
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in names:
                raise UnknownNameError("knob", key, names)
        return cls(**values)


_ANY_SEED = "No seed is better than another; the accuracies of two differ by some tenths of a point."
_ANY_NETWORK = "No seed is better than another; each makes another network."
_ANY_ENCODER = "No seed is better than another; each makes another encoder, whose similarities are of another scale."
_NETWORKS = "pytorchcv's resnet20_cifar10, resnet20_cifar100, resnet18, mobilenetv2_w1 and resnet50"
_GIVEN = "none of its own, it takes the checkpoints of pytorchcv"
_GIVEN_ENCODER = "none of its own, it takes a CLIP that is not named"

_MODEL = (
    "The full-precision network: a name from `list`, or pytorchcv:NAME, torchvision:NAME or timm:NAME, downloaded on first use, "
    "or a .safetensors checkpoint made by `pretrain`."
)


@dataclass(frozen=True)
class GenerationConfig(Checked):
    """Knobs of the data generation (the paper's step 1)."""

    model: str = knob("resnet20_cifar10", _MODEL, paper=_NETWORKS)
    optimizer: str = knob(
        "mi-fgsm",
        "What moves the pixels: MI-FGSM moves each by the same step, Adam each by a step of its own.",
        choices=OPTIMIZERS,
        paper="mi-fgsm, and adam for comparison",
    )
    images: int = knob(
        512,
        "Images saved. With k snapshots, images / k noise images are optimised.",
        minimum=1,
        maximum=1_000_000,
        paper="5,120 for ImageNet",
        low="the training sees the same few images again and again and fits them instead of the teacher.",
        high="takes longer and more memory in proportion, and helps less with each doubling.",
    )
    iterations: int = knob(
        50,
        "Optimizer steps for each batch.",
        minimum=1,
        maximum=100_000,
        low="the images stay noise, their statistics far from the network's.",
        high="takes longer in proportion and makes the images alike.",
    )
    batch_size: int = knob(
        128,
        "Noise images optimised together: the statistics of a batch are matched, not those of each image.",
        minimum=2,
        maximum=4096,
        low="below about 32 the statistics of a batch are too noisy to match.",
        high="takes more memory, and each iteration longer, in proportion.",
    )
    snapshots: int = knob(
        4,
        "How often a batch is saved within one cycle of iterations, evenly after the burn-in.",
        minimum=1,
        maximum=100,
        symbol="k",
        paper="saves intermediate iterates, number not stated",
        low="1 saves only the last state of each image, which is the slowest way to a number of images.",
        high="fewer noise images share the work: the set is made faster, but has more early states and more versions of each image.",
    )
    burn_in: float = knob(
        0.2,
        "Part of the iterations that passes before the first snapshot may be taken.",
        minimum=0.0,
        maximum=0.95,
        step=0.05,
        low="the first snapshot is nearly noise.",
        high="snapshots lie close together and are almost the same image.",
    )
    half_resolution: float = knob(
        0.0,
        "Part of the iterations that comes first, at half the image size, at about a third of the cost; then the images are enlarged "
        "and go on at full size with a fresh momentum. For networks of 224 pixels and more, which find the coarse structure faster so; "
        "needs a network that takes both sizes. 0 turns it off.",
        minimum=0.0,
        maximum=0.9,
        step=0.05,
        low="0 is the plain method: nothing is saved.",
        high="little time is left for fine structure, and the first snapshot has to come later.",
    )
    noise: str = knob(
        "pink",
        "What images start from: white (each pixel on its own), or pink (coarse and fine structure alike, as in photographs).",
        choices=NOISES,
        paper="Gaussian, which is white",
    )
    epsilon: float = knob(
        0.1,
        "Step size of MI-FGSM in normalised units: every pixel moves by this much.",
        minimum=0.0,
        maximum=2.0,
        symbol="ε",
        paper="not stated",
        step=0.005,
        low="images do not get anywhere in the iterations given.",
        high="coarse, grainy images whose statistics jump about instead of settling.",
    )
    mu: float = knob(
        0.9,
        "Momentum of MI-FGSM: how much of the accumulated gradient stays.",
        minimum=0.0,
        maximum=2.0,
        symbol="μ",
        paper="not stated",
        step=0.05,
        low="0 is plain FGSM: each step follows the gradient of the moment, which turns back and forth.",
        high="the past outweighs the present from 1 on: images overshoot and go on in old directions.",
    )
    lr: float = knob(
        0.1,
        "Step size of Adam in normalised units.",
        minimum=0.0,
        maximum=2.0,
        symbol="lr",
        paper="not stated",
        step=0.005,
        low="images do not get anywhere in the iterations given.",
        high="images overshoot, L_BNS jumps about instead of settling.",
    )
    schedule: str = knob(
        "linear",
        "Step size over the iterations: linear falls to 2 % of its start, so that the images settle; constant stays, and they stay coarse.",
        choices=SCHEDULES,
        paper="not stated",
    )
    alpha_tv: float = knob(
        3e-4,
        "Weight of total variation: smooths the images.",
        minimum=0.0,
        maximum=100.0,
        symbol="α_TV",
        paper="not stated",
        step=1e-4,
        low="0 leaves high frequencies that no photograph has.",
        high="smooths the images until they are blurred and alike.",
    )
    alpha_l2: float = knob(
        3e-7,
        "Weight of the l2 norm of the pixels: pulls the images towards the mean colour.",
        minimum=0.0,
        maximum=100.0,
        symbol="α_l2",
        paper="not stated",
        step=1e-7,
        low="0 leaves contrast to the other losses alone.",
        high="pulls all pixels to the mean colour: grey images whose statistics no longer match.",
    )
    beta: float = knob(
        1.0,
        "Weight of the cross entropy to the assigned label.",
        minimum=0.0,
        maximum=100.0,
        symbol="β",
        paper="not stated",
        step=0.05,
        low="0 ignores labels: the teacher sees the assigned class in few images.",
        high="clear but uniform classes, and statistics that match less.",
    )
    max_shift: int = knob(
        2,
        "Largest random shift in pixels before each forward pass. 0 turns it off.",
        minimum=0,
        maximum=64,
        low="0 lets patterns form that fit one position of the pixels only.",
        high="images are rolled so far that their seams wander through the middle.",
    )
    flip: bool = knob(
        True,
        "Mirror the batch at random before each forward pass.",
        low="images are optimised for one orientation only.",
        high="their mirror images count as well, which suits classes without left and right, not letters.",
    )
    seed: int = knob(
        0,
        "Seed of noise, shifts and flips. Same config and seed give the same bits on one machine.",
        minimum=0,
        maximum=2**31 - 1,
        low=_ANY_SEED,
        high=_ANY_SEED,
    )
    compile: bool = knob(
        False,
        "On a GPU, have torch.compile translate the step before it is recorded: takes about half a minute, which long runs may get back. "
        "A network that cannot be compiled goes on as without. On a CPU the machine's C compiler does it within a second, unasked.",
        low="starts at once, each step takes longer.",
        high="short runs lose more to the translation than they get back.",
    )
    threads: int = knob(
        0,
        "CPU threads; 0 leaves the choice to torch.",
        minimum=0,
        maximum=1024,
        low="1 leaves cores idle.",
        high="more than there are cores slow each other down.",
    )
    device: str = knob("auto", "Where to compute; auto takes CUDA, then MPS, then the CPU.", choices=DEVICES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images % self.snapshots:
            raise ConfigError(f"images is {self.images}: allowed is a multiple of snapshots ({self.snapshots})")
        if self.images // self.snapshots < 2:
            raise ConfigError(
                f"images is {self.images}: allowed is at least {2 * self.snapshots}, as statistics need two noise images "
                f"and each is saved {self.snapshots} times"
            )
        available = self.iterations - math.floor(self.burn_in * self.iterations)
        if self.snapshots > available:
            raise ConfigError(f"snapshots is {self.snapshots}: allowed is at most {available}, the iterations left after the burn-in")
        if self.half_iterations >= self.snapshot_iterations[0]:
            raise ConfigError(
                f"half_resolution is {self.half_resolution}, which is {self.half_iterations} of {self.iterations} iterations: allowed are "
                f"fewer than {self.snapshot_iterations[0]}, as the first snapshot is of full size; burn_in is {self.burn_in}"
            )

    @property
    def noise_images(self) -> int:
        """How many noise images are optimised."""
        return self.images // self.snapshots

    @property
    def batches(self) -> list[int]:
        """Sizes of the batches; never one image alone, as a batch of one has no variance to match."""
        sizes = [self.batch_size] * (self.noise_images // self.batch_size)
        rest = self.noise_images % self.batch_size
        if rest == 1 and sizes:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    @property
    def starts(self) -> list[int]:
        """Of each image saved, in their order, which noise image it began as: batch by batch, all snapshots of one after the other."""
        starts: list[int] = []
        first = 0
        for size in self.batches:
            starts += self.snapshots * list(range(first, first + size))
            first += size
        return starts

    @property
    def half_iterations(self) -> int:
        """How many iterations of a batch run at half the image size, before all others."""
        return math.floor(self.half_resolution * self.iterations)

    @property
    def snapshot_iterations(self) -> tuple[int, ...]:
        """The iterations, counted from 1, after which a batch is saved: evenly spaced after the burn-in, the last one included."""
        start = math.floor(self.burn_in * self.iterations)
        span = self.iterations - start
        return tuple(start + math.ceil(span * (i + 1) / self.snapshots) for i in range(self.snapshots))


@dataclass(frozen=True)
class QuantizationConfig(Checked):
    """Knobs of quantization and quantization-aware training (the paper's step 2)."""

    model: str = knob("resnet20_cifar10", _MODEL, paper=_NETWORKS)
    weight_bits: int = knob(
        4,
        "Bit width of the weights.",
        choices=BIT_WIDTHS,
        paper="3, 4, 5",
        low="at 2 and 3 bits a kernel has 4 and 8 values: much accuracy is lost, and more training is needed.",
        high="at 7 and 8 bits little is lost even without training, and little memory is saved.",
    )
    activation_bits: int = knob(
        4,
        "Bit width of the activations.",
        choices=BIT_WIDTHS,
        paper="3, 4, 5",
        low="at 2 and 3 bits an activation has 4 and 8 values: much accuracy is lost, and more training is needed.",
        high="at 7 and 8 bits little is lost even without training, and little is saved.",
    )
    range: str = knob(
        "lsq",
        "How ranges are found: minmax (running average), mse (least squared error), lsq (learned step size, started at mse). "
        "At 3 bits minmax loses most, as single large values stretch it.",
        choices=RANGE_METHODS,
        paper="minmax",
    )
    first_last_8bit: bool = knob(
        False,
        "Keep the first and the last layer at 8 bits.",
        paper="off: all layers at n bits",
        low="all layers have the same width, as in the paper's table.",
        high="more accurate at few bits, and not comparable with the paper's table.",
    )
    steps: int = knob(
        150,
        "Training steps. 0 stops after calibration.",
        minimum=0,
        maximum=1_000_000,
        low="0 is calibration alone; with few, low bit widths stay far behind full precision.",
        high="takes longer in proportion, and gains less and less.",
    )
    batch_size: int = knob(
        64,
        "Images in a training step.",
        minimum=1,
        maximum=4096,
        low="noisy gradients; the training wanders.",
        high="takes more memory and time for each step.",
    )
    training_optimizer: str = knob(
        "adam", "Optimizer of the training: adam, or sgd with Nesterov momentum 0.9.", choices=("adam", "sgd"), paper="sgd"
    )
    training_lr: float = knob(
        5e-4,  # between what 3 and 5 bits want, see PRESETS
        "Peak step size of the training, after 10 warm-up steps, then cosine to zero. Fewer bits bear more: 1e-3 at 3, 1e-4 at 5.",
        minimum=0.0,
        maximum=1.0,
        paper="1e-4",
        step=1e-4,
        low="the weights hardly move from the calibrated network.",
        high="at many bits it destroys what the network knew; the loss may become infinite.",
    )
    alpha_ce: float = knob(
        0.0,
        "Weight of the cross entropy to the labels.",
        minimum=0.0,
        maximum=100.0,
        symbol="α_CE",
        paper="1",
        step=0.1,
        low="0 trusts the teacher alone.",
        high="trusts labels that the teacher does not see in some images, which costs accuracy at few bits.",
    )
    alpha_kd: float = knob(
        1.0,
        "Weight of T² KL to the full-precision teacher: the student learns all of its scores.",
        minimum=0.0,
        maximum=100.0,
        symbol="α_KD",
        paper="not stated",
        step=0.1,
        low="0 takes the teacher's scores away: only labels and features are left.",
        high="outweighs labels and features, and with sgd acts like a larger step size.",
    )
    alpha_feature: float = knob(
        10.0,
        "Weight of the relative distance between the BatchNorm outputs of student and teacher: keeps each layer near its original.",
        minimum=0.0,
        maximum=1000.0,
        symbol="α_F",
        paper="0: not part of it",
        step=0.5,
        low="0 looks at the scores alone, and layers may drift from their originals.",
        high="holds every layer to its original although few bits need other ones, at the cost of the scores.",
    )
    temperature: float = knob(
        4.0,
        "Temperature T of teacher and student in the KL term.",
        minimum=0.1,
        maximum=100.0,
        symbol="T",
        paper="not stated",
        step=0.5,
        low="only the teacher's first choice counts.",
        high="all classes count nearly alike, and what the teacher is sure of is lost.",
    )
    averaging: float = knob(
        0.98,
        "Decay of the moving average of weights and scales, which is what the training ends with: steadies it at few bits. 0 turns it off.",
        minimum=0.0,
        maximum=0.9999,
        paper="0: not part of it",
        step=0.01,
        low="0 ends with the last step's weights, which jump about at few bits.",
        high="the average reaches back to early steps of a short training, and lags behind.",
    )
    crop_padding: int = knob(
        4,
        "Reflect padding of the random crop, in pixels; 0 turns it off.",
        minimum=0,
        maximum=64,
        low="0 shows each image at one position only, which the network learns by heart.",
        high="much of an image is reflected border.",
    )
    training_flip: bool = knob(
        True, "Mirror images at random.", low="half as many different images.", high="suits classes without left and right, not letters."
    )
    calibration_images: int = knob(
        256,
        "Images that calibration looks at to find the activation ranges.",
        minimum=1,
        maximum=100_000,
        low="ranges miss values that other images have, which are then clipped.",
        high="takes longer and more memory; ranges hardly change any more.",
    )
    layer_bits: tuple[tuple[str, int], ...] = knob(
        (),
        "Bit widths of single layers, NAME=BITS, for their weights and input activations; all others keep the run's. Where several layers "
        "read one activation, it gets the largest of their widths.",
        paper="none: all layers at n bits",
    )
    evaluations: int = knob(
        4,  # of 500 images each: 3 % of the time of the trainings of `quick`, 5 % of that of the shortest
        "How often the test accuracy is measured during the training, evenly spaced, on at most 500 of the evaluation images. Nothing is "
        "chosen on it: the reported accuracy stays that of the last step on all of them.",
        minimum=0,
        maximum=MOST_EVALUATIONS,
        low="0 measures only at the end: no curve.",
        high="the training waits for each of them.",
    )
    data: str = knob(
        "embedded",
        "Evaluation images: embedded (2,000 of CIFAR-10's test set), cifar10 or cifar100 (downloaded by torchvision), or a folder: "
        "one folder a class (named as the class, its number, or ImageNet's WordNet id), or ImageNet or CIFAR as torchvision keeps them.",
        paper="CIFAR-10, CIFAR-100 and ImageNet",
    )
    quantization_seed: int = knob(
        0, "Seed of the order of images, crops and flips.", minimum=0, maximum=2**31 - 1, low=_ANY_SEED, high=_ANY_SEED
    )
    threads: int = knob(
        0,
        "CPU threads; 0 leaves the choice to torch.",
        minimum=0,
        maximum=1024,
        low="1 leaves cores idle.",
        high="more than there are cores slow each other down.",
    )
    device: str = knob("auto", "Where to compute; auto takes CUDA, then MPS, then the CPU.", choices=DEVICES)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layer_bits", _layer_bits(self.layer_bits))

    @property
    def width(self) -> str:
        """W4A4 for 4-bit weights and activations, whatever single layers have."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """The steps, counted from 1, after which the test accuracy is measured: evenly spaced, without the last one, which always is."""
        parts = self.evaluations + 1
        return tuple(sorted({round(self.steps * i / parts) for i in range(1, parts)} - {0, self.steps}))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "layer_bits": dict(self.layer_bits)}


def _layer_bits(given: Any) -> tuple[tuple[str, int], ...]:
    """`layer_bits` from a mapping or pairs, in the order of the names. Raises ConfigError."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ConfigError(f"layer_bits is {quoted(given)}: allowed is a mapping of layer names to bit widths")
    seen: set[str] = set()
    for name, bits in pairs:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"layer_bits is for {quoted(name)}: allowed are names of layers")
        _check_text("layer_bits", name)
        if type(bits) is not int or bits not in BIT_WIDTHS:
            raise ConfigError(f"layer_bits is {quoted(bits)} for {quoted(name)}: allowed are {', '.join(map(str, BIT_WIDTHS))}")
        if name in seen:
            raise ConfigError(f"layer_bits is given for {quoted(name)} twice: allowed is each layer once")
        seen.add(name)
    return tuple(sorted((name, bits) for name, bits in pairs))


@dataclass(frozen=True)
class RunConfig(Checked):
    """A whole run: generation by each optimizer, their diversity, and the quantized network at each bit width.

    Threads and device are one setting for the whole run: the generation's. Those of `quantization` hold only where it is used alone.
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    optimizers: tuple[str, ...] = OPTIMIZERS
    bits: tuple[int, ...] = (3, 4, 5)  # empty: generation and diversity only
    # these override quantization.steps and .training_lr at a bit width: fewer bits need more of both, and many bits bear little
    steps_by_bits: Mapping[int, int] = field(default_factory=dict)
    lr_by_bits: Mapping[int, float] = field(default_factory=dict)
    activation_bits: int = 0  # bit width of the activations; 0: that of the weights, as in the paper
    encoder: str = "embedded"  # empty: no diversity
    images_from: str = ""  # a folder, or the images of an earlier run: no generation

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "optimizers", tuple(self.optimizers))
        object.__setattr__(self, "bits", tuple(self.bits))
        # the keys of a JSON object are texts
        for name in ("steps_by_bits", "lr_by_bits"):
            by_bits = {int(k) if isinstance(k, str) and k.isdecimal() and len(k) == 1 else k: v for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(by_bits))
        if not self.optimizers:
            raise ConfigError(f"optimizers is empty: allowed are {', '.join(OPTIMIZERS)}")
        for name in self.optimizers:
            if name not in OPTIMIZERS and not self.images_from:
                raise UnknownNameError("optimizer", name, OPTIMIZERS)
        for bits in self.bits:
            QuantizationConfig.check_value("weight_bits", bits)
        if type(self.activation_bits) is not int or self.activation_bits != 0:
            QuantizationConfig.check_value("activation_bits", self.activation_bits)
        for name in ("optimizers", "bits"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ConfigError(f"{name} is {', '.join(map(str, getattr(self, name)))}: allowed is each value once")
        for knob_name, values in (("steps", self.steps_by_bits), ("training_lr", self.lr_by_bits)):
            for bits, value in values.items():
                QuantizationConfig.check_value("weight_bits", bits)
                QuantizationConfig.check_value(knob_name, value)
        if self.generation.model != self.quantization.model:
            raise ConfigError(
                f"model is {quoted(self.generation.model)} for generation and {quoted(self.quantization.model)} for quantization: "
                "allowed is one network for both"
            )

    def _check_types(self) -> None:
        kinds = (
            ("generation", GenerationConfig, "a GenerationConfig"),
            ("quantization", QuantizationConfig, "a QuantizationConfig"),
            ("optimizers", (list, tuple), "a list of names"),
            ("bits", (list, tuple, range), "a list of bit widths"),
            ("steps_by_bits", Mapping, "a mapping of bit width to steps"),
            ("lr_by_bits", Mapping, "a mapping of bit width to step size"),
            ("encoder", str, "a text"),
            ("images_from", str, "a text"),
        )
        for name, kind, words in kinds:
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"{name} is {quoted(getattr(self, name))}: allowed is {words}")
        for name in self.optimizers:
            if not isinstance(name, str):
                raise ConfigError(f"optimizers has {quoted(name)} in it: allowed are {', '.join(OPTIMIZERS)}")
            # with given images any name, but it becomes one of a folder
            _check_text("optimizers", name)
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                raise UnknownNameError("optimizer", name, OPTIMIZERS)
        for name in ("encoder", "images_from"):
            _check_text(name, getattr(self, name))

    def __reduce__(self) -> tuple:
        # copied and pickled by way of plain values: a mapping proxy can be neither
        return type(self).from_dict, (self.to_dict(),)

    def generation_for(self, optimizer: str) -> GenerationConfig:
        """The generation config of one optimizer."""
        return replace(self.generation, optimizer=optimizer)

    def quantization_for(self, bits: int) -> QuantizationConfig:
        """The quantization config at one bit width, weights and activations alike."""
        return replace(
            self.quantization,
            weight_bits=bits,
            activation_bits=self.activation_bits or bits,
            steps=self.steps_by_bits.get(bits, self.quantization.steps),
            training_lr=self.lr_by_bits.get(bits, self.quantization.training_lr),
            threads=self.generation.threads,
            device=self.generation.device,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "generation": self.generation.to_dict(),
            "quantization": self.quantization.to_dict(),
            "optimizers": list(self.optimizers),
            "bits": list(self.bits),
            "steps_by_bits": {str(bits): steps for bits, steps in self.steps_by_bits.items()},
            "lr_by_bits": {str(bits): lr for bits, lr in self.lr_by_bits.items()},
            "activation_bits": self.activation_bits,
            "encoder": self.encoder,
            "images_from": self.images_from,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if isinstance(values, Mapping):
            values = {
                **values,
                "generation": GenerationConfig.from_dict(values.get("generation", {})),
                "quantization": QuantizationConfig.from_dict(values.get("quantization", {})),
            }
        return super().from_dict(values)


_TRAINING_IMAGES = "Training images: cifar10 or cifar100 (downloaded by torchvision), or a folder with one folder a class."


@dataclass(frozen=True)
class PretrainConfig(Checked):
    """Knobs of the pretraining. The defaults made the embedded resnet20_cifar10."""

    architecture: str = knob(
        "resnet20_cifar10", "A classifier of pytorchcv, by its name there; or torchvision:NAME, timm:NAME.", paper=_GIVEN
    )
    data: str = knob("cifar10", _TRAINING_IMAGES, paper=_GIVEN)
    image_size: int = knob(
        32,
        "Side of the images in pixels.",
        minimum=8,
        maximum=1024,
        low="details are lost that tell classes apart, and deep networks have no pixels left in their last layers.",
        high="costs time and memory with its square.",
        paper=_GIVEN,
    )
    epochs: int = knob(
        36,
        "Passes over the training images.",
        minimum=1,
        maximum=10_000,
        low="the network has not learned what it can.",
        high="takes longer in proportion, and gains little or fits the training images by heart.",
        paper=_GIVEN,
    )
    batch_size: int = knob(
        128,
        "Images in a training step.",
        minimum=2,
        maximum=65_536,
        low="noisy gradients and BatchNorm statistics.",
        high="takes more memory, and needs a larger step size for as few epochs.",
        paper=_GIVEN,
    )
    lr: float = knob(
        0.2,
        "Peak step size of SGD, after 2 epochs of warm-up, then cosine to zero.",
        minimum=1e-8,
        maximum=10.0,
        low="learns slowly, and ends below what it could.",
        high="the loss jumps about or becomes infinite.",
        paper=_GIVEN,
    )
    weight_decay: float = knob(
        5e-4,
        "Weight decay on kernels and the classifier only.",
        minimum=0.0,
        maximum=1.0,
        low="fits the training images by heart.",
        high="keeps the weights too small to fit anything.",
        paper=_GIVEN,
    )
    label_smoothing: float = knob(
        0.05,
        "Label smoothing in the first 80 % of epochs.",
        minimum=0.0,
        maximum=0.9,
        low="0 asks for full certainty of each label.",
        high="the network stays unsure of everything.",
        paper=_GIVEN,
    )
    crop_padding: int = knob(
        4,
        "Reflect padding of the random crop, in pixels.",
        minimum=0,
        maximum=64,
        low="0 shows each image at one position only.",
        high="much of an image is reflected border.",
        paper=_GIVEN,
    )
    seed: int = knob(
        0, "Seed of the weights, order, crops and flips.", minimum=0, maximum=2**31 - 1, low=_ANY_NETWORK, high=_ANY_NETWORK, paper=_GIVEN
    )
    threads: int = knob(
        0,
        "CPU threads; 0 leaves the choice to torch.",
        minimum=0,
        maximum=1024,
        low="1 leaves cores idle.",
        high="more than there are cores slow each other down.",
        paper=_GIVEN,
    )
    device: str = knob("auto", "Where to compute; auto takes CUDA, then MPS, then the CPU.", choices=DEVICES, paper=_GIVEN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_padding >= self.image_size:
            raise ConfigError(
                f"crop_padding is {self.crop_padding}: allowed is less than image_size ({self.image_size}), "
                "as the border is a reflection of the image"
            )


@dataclass(frozen=True)
class EncoderTrainingConfig(Checked):
    """Knobs of the contrastive training. The defaults made the embedded encoder."""

    data: str = knob("cifar10", _TRAINING_IMAGES, paper=_GIVEN_ENCODER)
    epochs: int = knob(
        12,
        "Passes over the training images.",
        minimum=1,
        maximum=10_000,
        low="similar images lie no closer together than others.",
        high="takes longer in proportion, and gains little.",
        paper=_GIVEN_ENCODER,
    )
    batch_size: int = knob(
        256,
        "Images and captions contrasted with each other.",
        minimum=2,
        maximum=65_536,
        low="each image has few others to be told from, so that the contrast teaches little.",
        high="takes more memory, and more captions of a batch say the same.",
        paper=_GIVEN_ENCODER,
    )
    lr: float = knob(
        2e-3,
        "Peak step size of AdamW, after a warm-up over 5 % of the steps, then cosine to zero.",
        minimum=1e-8,
        maximum=1.0,
        low="learns slowly, and ends below what it could.",
        high="the loss jumps about, and all embeddings may fall together.",
        paper=_GIVEN_ENCODER,
    )
    weight_decay: float = knob(
        0.05,
        "Weight decay of AdamW, on matrices and kernels only.",
        minimum=0.0,
        maximum=1.0,
        low="fits the training images by heart.",
        high="keeps the weights too small to tell images apart.",
        paper=_GIVEN_ENCODER,
    )
    crop_padding: int = knob(
        4,
        "Reflect padding of the random crop, in pixels of the original image.",
        minimum=0,
        maximum=64,
        low="0 shows each image at one position only.",
        high="much of an image is reflected border.",
        paper=_GIVEN_ENCODER,
    )
    seed: int = knob(
        0,
        "Seed of the weights, order, crops and captions.",
        minimum=0,
        maximum=2**31 - 1,
        low=_ANY_ENCODER,
        high=_ANY_ENCODER,
        paper=_GIVEN_ENCODER,
    )
    threads: int = knob(
        0,
        "CPU threads; 0 leaves the choice to torch.",
        minimum=0,
        maximum=1024,
        low="1 leaves cores idle.",
        high="more than there are cores slow each other down.",
        paper=_GIVEN_ENCODER,
    )


def knobs(config_class: type) -> dict[str, Any]:
    """Name -> dataclass field of every knob of a config class, in order."""
    return {f.name: f for f in fields(config_class) if f.default is not MISSING and "help" in f.metadata}


# The settings that a person starts from. `quick` is measured on two CPU cores in README; `paper` is meant for a GPU.
PRESETS: Mapping[str, RunConfig] = MappingProxyType(
    {
        "quick": RunConfig(
            generation=GenerationConfig(images=2048, iterations=50, snapshots=4),
            # chosen on the 8,000 test images that are not among the embedded 2,000; labels did harm (W3A3 86.0 with, 87.5 without)
            quantization=QuantizationConfig(),
            steps_by_bits={3: 300, 4: 250, 5: 150},
            lr_by_bits={3: 1e-3, 4: 2e-4, 5: 1e-4},
        ),
        # for networks of ImageNet's size. L_BNS, a sum over layers and channels, is about 10,000 there, and a label that counts as in the
        # other presets is not heard: with beta 1 EfficientNet-Lite0 took no image for what it should be, with 100 seven of eight
        "imagenet": RunConfig(
            generation=GenerationConfig(images=512, iterations=60, snapshots=4, batch_size=32, beta=100.0),
            quantization=QuantizationConfig(batch_size=32),
            steps_by_bits={3: 300, 4: 250, 5: 150},
            lr_by_bits={3: 1e-3, 4: 2e-4, 5: 1e-4},
        ),
        "paper": RunConfig(
            generation=GenerationConfig(images=5120, iterations=500, snapshots=4, noise="white"),
            quantization=QuantizationConfig(
                range="minmax",
                steps=40_000,
                batch_size=256,
                training_optimizer="sgd",
                training_lr=1e-4,
                alpha_ce=1.0,
                alpha_feature=0.0,
                averaging=0.0,
                evaluations=20,
                data="cifar10",
            ),
        ),
    }
)


def preset(name: str) -> RunConfig:
    """The preset `name`. Raises UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]
