"""What knobs with names can be set to. Containers that may grow at run time are dictionaries: a knob reads its choices when it checks."""

from typing import Any, NamedTuple

BIT_WIDTHS = range(2, 9)
NOISES = ("white", "pink", "gray")
PLATEAU = "plateau"
SCHEDULES = ("linear", "constant", PLATEAU)
DIVERGENCE, NORMS = BNS_FORMS = ("divergence", "norms")
SHARED, AUTHORS = PROTOCOLS = ("shared", "authors")
DEVICES = ("auto", "cpu", "cuda", "mps")
# evaluation images that have a name; all others are folders
EVALUATION_SETS = ("embedded", "cifar10", "cifar100")
# in place of evaluation images: those embedded if they are of the network's classes, otherwise none; and none
AUTO_DATA, NO_DATA = "auto", "none"
DATA_NAMES = (AUTO_DATA, NO_DATA, *EVALUATION_SETS)
# what `export` writes: a quantized network, a set of images, a model card
NETWORK_FORMATS = ("onnx", "onnx-symmetric", "onnx-exact", "packed", "pt2", "pte", "tflite")
IMAGE_FORMATS = ("png", "safetensors", "npz")
EXPORT_FORMATS = (*NETWORK_FORMATS, *IMAGE_FORMATS, "card")


class RangeChoice(NamedTuple):
    """A range method: its class, as "module:Class" so that torch is not imported here, or the class itself; and one line of help."""

    source: Any
    help: str


RANGE_METHODS: dict[str, RangeChoice] = {
    "minmax": RangeChoice("core.quantization.ranges.minmax:MinMax", "smallest and largest value, a running average over batches"),
    "mse": RangeChoice("core.quantization.ranges.mse:LeastSquares", "least squared error"),
    "lsq": RangeChoice("core.quantization.ranges.lsq:LearnedRange", "learned step size, initialized by mse"),
}
