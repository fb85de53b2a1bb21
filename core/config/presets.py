"""Settings to start from. README.md has the figures of `quick` on two CPU cores; `paper` is meant for a GPU.

`quick` costs about the same for every method. A preset with the name of a method has the settings of its authors' code, as far as the
knobs have them; it is meant for a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from core.config.choices import PLATEAU
from core.config.evaluation import EvaluationConfig
from core.config.generation import GenerationConfig
from core.config.run import RunConfig, settings
from core.config.training import TrainingConfig
from core.errors import UnknownNameError

_ONE_BATCH = GenerationConfig(images=64, batch_size=64, iterations=500, snapshots=1, noise="gray", schedule=PLATEAU)
# of methods that were published without a training
_CALIBRATED = TrainingConfig(range="minmax", steps=0, keep="trained", correct_statistics=False)
# what the presets of generators have in common; the loss of the student is that of the protocol
_JOINT: Mapping[str, Any] = {
    "protocol": "authors",
    "range": "minmax",
    "training_optimizer": "sgd",
    "ema_decay": 0.0,
    "keep": "trained",
    "correct_statistics": False,
}
_PAPER = TrainingConfig(
    range="minmax",
    steps=40_000,
    training_batch_size=256,
    training_optimizer="sgd",
    training_lr=1e-4,
    alpha_ce=1.0,
    alpha_feature=0.0,
    ema_decay=0.0,
    keep="trained",
    correct_statistics=False,
)
# of IntraQ's authors for CIFAR: 147 epochs of 200 steps; in 4 more, their code only finds the ranges
_STUDENT = replace(_PAPER, protocol="authors", steps=147 * 200, training_weight_decay=1e-4)
# of HAST's authors for CIFAR, whose images PLF and SynQ have as well
_HARD_IMAGES = GenerationConfig(
    images=5120,
    batch_size=256,
    iterations=1000,
    snapshots=1,
    noise="white",
    schedule=PLATEAU,
    patience=50,
    hast_lr=0.5,
    plf_lr=0.5,
    synq_lr=0.5,
)
_OF_AUTHORS = {
    "zeroq": RunConfig(methods=("zeroq",), generation=replace(_ONE_BATCH, patience=100), training=_CALIBRATED),
    "dsg": RunConfig(methods=("dsg",), generation=replace(_ONE_BATCH, patience=260), training=_CALIBRATED),
    "intraq": RunConfig(
        methods=("intraq",),
        generation=GenerationConfig(
            images=5120, batch_size=256, iterations=1000, snapshots=1, noise="white", schedule=PLATEAU, patience=50, intraq_lr=0.5
        ),
        training=_STUDENT,
    ),
    "hast": RunConfig(
        methods=("hast",),
        generation=_HARD_IMAGES,
        training=replace(_STUDENT, training_lr=1e-5),
    ),
    # the images alone: block-wise reconstruction, by which the authors quantize, is not part of this project
    "genie": RunConfig(
        methods=("genie",),
        generation=GenerationConfig(images=1024, batch_size=128, iterations=4000, snapshots=1, schedule=PLATEAU, patience=100),
    ),
    "plf": RunConfig(methods=("plf",), generation=_HARD_IMAGES, training=replace(_STUDENT, training_lr=1e-3)),
    # for ImageNet, where it was published: 97 epochs of 200 steps after 4 for the ranges
    "synq": RunConfig(
        methods=("synq",),
        generation=replace(_HARD_IMAGES, hard_crop=0.5),
        training=replace(_STUDENT, steps=97 * 200, training_batch_size=4, training_lr=1e-6, alpha_attention=4000.0),
    ),
    # of GDFQ and Qimera for CIFAR: 4 epochs of 200 iterations for the generator alone, 396 for both networks
    "gdfq": RunConfig(
        methods=("gdfq", "qimera", "dsg-g"),
        generation=GenerationConfig(images=5120, iterations=200, snapshots=10, schedule="constant", generator_batch_size=200),
        training=TrainingConfig(**_JOINT, steps=396 * 200, training_batch_size=200, training_lr=1e-4, training_weight_decay=1e-4),
        evaluation=EvaluationConfig(accuracy_checks=20),
    ),
    # of ZAQ: 300 epochs of 60 iterations, each with 5 steps of the student, at 6-bit weights and 8-bit activations
    "zaq": RunConfig(
        methods=("zaq",),
        generation=GenerationConfig(images=1280, iterations=60, snapshots=10, schedule="constant", generator_batch_size=256),
        training=TrainingConfig(
            **_JOINT, activation_bits=8, steps=300 * 60 * 5, training_batch_size=256, training_lr=0.1, training_weight_decay=5e-4
        ),
        evaluation=EvaluationConfig(accuracy_checks=20),
        bits=(6,),
    ),
    # of AdaDFQ and AdaSG for CIFAR: the epochs and rates of GDFQ with batches of 16
    "adadfq": RunConfig(
        methods=("adadfq", "adasg"),
        generation=GenerationConfig(images=5120, iterations=200, snapshots=10, schedule="constant", generator_batch_size=16),
        training=TrainingConfig(**_JOINT, steps=396 * 200, training_batch_size=16, training_lr=1e-4, training_weight_decay=1e-4),
        evaluation=EvaluationConfig(accuracy_checks=20),
    ),
    # of TexQ for CIFAR: 1,500 iterations for the centers, then the epochs of GDFQ, of which 500 iterations are for the generator alone
    "texq": RunConfig(
        methods=("texq",),
        generation=GenerationConfig(
            images=5120, iterations=500, snapshots=10, schedule="constant", generator_batch_size=128, texq_share=0.75
        ),
        training=TrainingConfig(**_JOINT, steps=79_500, training_batch_size=128, training_lr=1e-4, training_weight_decay=1e-4),
        evaluation=EvaluationConfig(accuracy_checks=20),
    ),
}

PRESETS: Mapping[str, RunConfig] = MappingProxyType(
    {
        "quick": RunConfig(
            generation=GenerationConfig(images=2048, iterations=50, snapshots=4),
            # chosen on the 8,000 test images that are not among the embedded 2,000; labels hurt (W3A3 86.0 with, 87.5 without)
            training=TrainingConfig(),
            steps_by_bits={3: 300, 4: 250, 5: 150},
            lr_by_bits={3: 1e-3, 4: 2e-4, 5: 1e-4},
        ),
        # more images or iterations did not help a network that is calibrated alone: chosen on 4,000 of the same 8,000 images
        "instant": RunConfig(
            methods=("mi-fgsm",),
            generation=GenerationConfig(images=256, iterations=50, snapshots=4),
            training=TrainingConfig(steps=0),
            bits=(4, 8),
        ),
        "imagenet": RunConfig(
            # after 60 iterations, L_BNS of EfficientNet-Lite0 is a quarter of what it was at the start; after 120, a fifth
            generation=GenerationConfig(images=512, iterations=120, snapshots=4, batch_size=32),
            training=TrainingConfig(training_batch_size=32),
            steps_by_bits={3: 300, 4: 250, 5: 150},
            lr_by_bits={3: 1e-3, 4: 2e-4, 5: 1e-4},
        ),
        "paper": RunConfig(
            generation=GenerationConfig(
                images=5120, iterations=500, snapshots=4, noise="white", bns_form="norms", mu=0.9, max_shift=2, flip=True
            ),
            training=_PAPER,
            evaluation=EvaluationConfig(accuracy_checks=20),
        ),
        **_OF_AUTHORS,
    }
)


SMALL = 64  # pixels of the longer side of an image, up to which `quick` is the preset to start from


def preset_for(size: Sequence[int]) -> RunConfig:
    """The preset to start from for a network with images of this size, height and width in pixels."""
    return PRESETS["quick" if max(size) <= SMALL else "imagenet"]


def preset(name: str) -> RunConfig:
    """The preset `name`. Raises UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


def _trains(config: RunConfig) -> bool:
    return any(config.training_for(bits).steps for bits in config.bits or (config.training.weight_bits,))


def nearest_preset(config: RunConfig, bits: int = 0) -> tuple[str, dict[str, Any]]:
    """The preset that differs from `config` in the fewest knobs, and these knobs with the values of `config`; bits: see `settings`.

    Presets of a method's authors are for runs of that method, and one without training is for runs without it.
    """
    own, trains = settings(config, bits=bits), _trains(config)
    different = {}
    for name, start in PRESETS.items():
        if name in _OF_AUTHORS and not set(start.methods) & set(config.methods):
            continue
        if trains and not _trains(start):
            continue
        theirs = settings(start, bits=bits)
        different[name] = {knob: value for knob, value in own.items() if knob in theirs and value != theirs[knob]}
    nearest = min(different, key=lambda name: len(different[name]))
    return nearest, different[nearest]
