import torch

from core.config import GenerationConfig, MachineConfig
from core.data.labeled import EvaluationSet, embedded_images, load_evaluation_set
from core.evaluation.references import REFERENCE_IMAGES, noise_images, real_images
from core.generation.sources.pixels import SignedMomentumImages


def test_noise_images_are_those_that_batches_start_from(embedded):
    config = GenerationConfig(images=20, snapshots=2, batch_size=4, iterations=4, noise="white")
    noise = noise_images(embedded, config, 5)
    source = SignedMomentumImages(embedded, config, MachineConfig(seed=5))
    started = []
    for index in range(len(config.batches)):
        source.start_batch(index)
        started.append(embedded.denormalize(source.current().detach()))
    assert torch.equal(noise.images, torch.cat(started))
    assert noise.images.shape == (10, 3, 32, 32)
    assert "10 images of the white noise" in noise.manifest["description"]
    assert len(noise.labels.unique()) == 10


def test_number_of_noise_images_is_limited(embedded):
    noise = noise_images(embedded, GenerationConfig(images=4000, snapshots=4, batch_size=300, iterations=4))
    assert len(noise) == REFERENCE_IMAGES


def test_real_images_are_spread_over_the_evaluation_set(embedded):
    images, labels = embedded_images()
    real = real_images(load_evaluation_set("embedded", embedded.spec))
    assert len(real) == REFERENCE_IMAGES
    assert torch.equal(real.images[0], images[0])
    assert torch.equal(real.images[-1], images[-1])
    assert (real.labels[0], real.labels[-1]) == (labels[0], labels[-1])
    assert real.labels.bincount().min() > 30  # for each of ten classes
    assert real.manifest["description"] == "512 of the first 2,000 CIFAR-10 test images (embedded)"


def test_real_images_without_labels_are_classes_of_their_own():
    real = real_images(EvaluationSet(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), None, "five images", 32))
    assert (len(real), real.labels.tolist()) == (5, [0, 1, 2, 3, 4])


def test_few_real_images_are_all_used_at_the_image_size_of_the_network():
    evaluation_set = EvaluationSet(torch.randint(0, 256, (7, 3, 40, 40), dtype=torch.uint8), range(7), "seven images", 32)
    real = real_images(evaluation_set)
    assert real.images.shape == (7, 3, 32, 32)
    assert real.labels.tolist() == list(range(7))
    assert real.manifest["description"] == "seven images"
