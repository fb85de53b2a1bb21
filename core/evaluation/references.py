"""References for the diversity of synthetic images: the noise that generation starts from, and real images."""

import torch

from core.config import GenerationConfig
from core.data.image_sets import ImageSet
from core.data.labeled import UNREADABLE, EvaluationSet
from core.evaluation.diversity import evenly_spaced
from core.generation.noise import starting_noise
from core.generation.scale import in_usual_scale
from core.models.full_precision import FullPrecisionModel

NOISE, REAL = "noise", "real"
REFERENCE_IMAGES = 512  # of each: enough for two decimals of their mean cosine, measured within seconds


def noise_images(model: FullPrecisionModel, config: GenerationConfig, seed: int = 0) -> ImageSet:
    """The first REFERENCE_IMAGES noise images that a generation with this config starts from, as pixels, each a class of its own."""
    model, batches = in_usual_scale(model), list[torch.Tensor]()
    for index in range(len(config.batches)):
        if sum(map(len, batches)) >= REFERENCE_IMAGES:
            break
        batches.append(model.denormalize(starting_noise(model, config, index, seed)[0]).cpu())
    images = torch.cat(batches)[:REFERENCE_IMAGES]
    description = f"{len(images):,} images of the {config.noise} noise that generation starts from"
    return ImageSet(images, torch.arange(len(images)), {"description": description})


def real_images(evaluation_set: EvaluationSet) -> ImageSet:
    """At most REFERENCE_IMAGES of the evaluation images, evenly spaced over the set, at the network's size."""
    chosen = evenly_spaced(len(evaluation_set), REFERENCE_IMAGES).tolist()
    images, labels = map(torch.stack, zip(*evaluation_set.__getitems__(chosen)))
    read = labels != UNREADABLE
    some = "" if len(chosen) == len(evaluation_set) else f"{int(read.sum()):,} of "
    return ImageSet(images[read], labels[read], {"description": some + evaluation_set.description})
