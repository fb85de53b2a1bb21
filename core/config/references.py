"""Knobs of the references, whose images those of methods are compared with."""

from dataclasses import dataclass

from core.config.knobs import Checked, knob


@dataclass(frozen=True)
class ReferenceKnobs(Checked):
    """Knobs that only references have; part of GenerationConfig."""

    real_images: str = knob(
        "",
        "Folder of real images for the reference `real`, in one folder per class or without labels. It must have none of the evaluation "
        "images. Of the parts of a data set, such as train and val, the training images are used.",
        label="Folder of real images",
        paper="ImageNet and CIFAR training images",
        of=("real",),
    )
