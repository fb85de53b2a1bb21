import numpy as np
import torch

from core.data.augment import crop_and_flip, cutmix, jitter_batch, resized_crops


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=6, size=8):
    return torch.arange(count * 3 * size * size, dtype=torch.float32).view(count, 3, size, size)


def test_jitter_is_a_cyclic_shift_and_an_optional_flip():
    images = pictures(1)
    possible = {}
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            for flip in (False, True):
                moved = np.roll(images.numpy(), (dy, dx), axis=(2, 3))
                possible[(moved[..., ::-1] if flip else moved).tobytes()] = (dy, dx, flip)
    generator = seeded()
    seen = {possible[jitter_batch(images, 2, True, generator).contiguous().numpy().tobytes()] for _ in range(600)}
    assert len(seen) == 50  # every shift, flipped and not


def test_jitter_is_the_same_for_all_images_and_differentiable():
    images = torch.cat([pictures(1)] * 3).requires_grad_(True)
    jittered = jitter_batch(images, 2, True, seeded(3))
    assert torch.equal(jittered[0], jittered[2])
    (jittered * pictures(3)).sum().backward()
    # the gradient of a pixel is the weight at its new position, so the sorted gradients are the weights
    assert torch.equal(images.grad.flatten().sort().values, pictures(3).flatten())


def test_disabled_jitter_is_the_identity_and_draws_as_many_numbers():
    images, one, other = pictures(), seeded(1), seeded(1)
    assert torch.equal(jitter_batch(images, 0, False, one), images)
    jitter_batch(images, 2, True, other)
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))


def test_cutmix_takes_one_rectangle_of_each_image_from_another():
    images, labels = pictures(6), torch.tensor([0, 1, 2, 3, 4, 4])
    owners = torch.arange(6).repeat_interleave(3 * 8 * 8)  # of each value, all of which differ
    areas = []
    for seed in range(60):
        mixed, shares = cutmix(images, labels, 5, seeded(seed))
        sources = owners[mixed.long().flatten()].view(6, 3, 8, 8)
        foreign = sources != torch.arange(6).view(6, 1, 1, 1)
        changed = foreign.any(dim=1).any(dim=0)  # pixels (8, 8)
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        area = len(rows) * len(columns)
        assert int(changed.sum()) == area  # a rectangle
        assert all(bool((image == changed).all()) or not bool(image.any()) for image in foreign)  # the same in all that are mixed
        # what stays where it is; whatever comes from another image comes from the same position
        assert torch.equal(mixed.long() % 192, images.long() % 192)
        for own, from_others, share in zip(labels.tolist(), sources, shares):
            expected = np.bincount(labels[from_others.flatten()], minlength=5) / from_others.numel()
            np.testing.assert_allclose(share.numpy(), expected, atol=1e-6)
            assert share[own] > 0 or area == 64
        areas.append(area / 64)
    assert min(areas) < 0.15
    assert max(areas) > 0.7
    assert 0.3 < np.mean(areas) < 0.6


def test_crops_are_taken_from_the_reflection_padded_image():
    images = pictures(40, 6)
    cropped = crop_and_flip(images, 2, True, seeded())
    offsets = set()
    for image, result in zip(images.numpy(), cropped.numpy()):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        found = [
            (y, x, flip)
            for y in range(5)
            for x in range(5)
            for flip in (False, True)
            if np.array_equal(result, padded[:, y : y + 6, x : x + 6][..., :: -1 if flip else 1])
        ]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 15  # random for each image


def test_crop_keeps_uint8_and_disabled_is_the_identity():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    assert crop_and_flip(images, 4, True, seeded()).dtype == torch.uint8
    assert torch.equal(crop_and_flip(images, 0, False, seeded()), images)


def test_crop_of_images_smaller_than_the_padding():
    assert crop_and_flip(pictures(2, 3), 8, True, seeded()).shape == (2, 3, 3, 3)


def test_crops_are_parts_of_a_picture_or_mirrored_ones():
    """Of a picture whose pixels are their own coordinates, from -1 to 1."""
    line = (torch.arange(16) + 0.5) / 8 - 1
    picture = torch.stack([line.expand(16, 16), line[:, None].expand(16, 16)])
    crops = resized_crops(picture.expand(200, 2, 16, 16), 0.25, torch.Generator().manual_seed(0))
    steps = crops.diff(dim=3)[:, 0, 8, 8], crops.diff(dim=2)[:, 1, 8, 8]  # 1/8 in the picture
    across, down = (step.abs() * 8 for step in steps)
    assert 0.4 < (steps[0] < 0).float().mean() < 0.6  # mirrored
    assert bool((steps[1] > 0).all())  # never upside down
    assert 0.25 - 1e-3 <= (across * down).min() < 0.35
    assert (across * down).max() <= 1 + 1e-3
    assert 3 / 4 - 1e-3 <= (across / down).min() < (across / down).max() <= 4 / 3 + 1e-3
    assert crops.abs().max() <= picture.abs().max()


def test_every_pixel_of_a_crop_is_a_weighted_mean_of_pixels():
    images = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    crops = resized_crops(images, 0.5, torch.Generator().manual_seed(2))
    crops.sum().backward()
    assert crops.shape == images.shape
    assert bool((images.grad >= -1e-6).all())
    assert torch.allclose(images.grad.sum(dim=(1, 2, 3)), torch.full((8,), 108.0))  # weights add up to 1
