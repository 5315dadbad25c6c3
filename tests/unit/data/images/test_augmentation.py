"""DomainBed's chain beside torchvision's own, on Pillow images."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from fishr_exp.core._torchvision import torchvision
from fishr_exp.data.images import augmentation, compiled
from fishr_exp.data.images.augmentation import crop, draw, finished, gray, jitter_
from fishr_exp.data.images.decoding import Files
from fishr_exp.data.images.domain import ImageDomain

F = torchvision.transforms.functional
T = torchvision.transforms


@pytest.fixture
def image():
    """Smooth colors with some noise, 40 high and 56 wide."""
    y, x = np.mgrid[:40, :56]
    waves = [127 + 90 * np.sin(x / a + y / b) for a, b in ((7, 11), (-9, 5), (13, -8))]
    noise = np.random.default_rng(0).normal(0, 12, (40, 56, 3))
    return Image.fromarray((np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8))


def batch(*images):
    return torch.stack([torch.tensor(np.array(i)).permute(2, 0, 1) for i in images]).float()


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


# --- each step against torchvision's, with the same parameters --------------------------------


@pytest.mark.parametrize("factor", [0.7, 0.93, 1.0, 1.1, 1.3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_are_those_of_torchvision(image, name, factor):
    theirs = batch(getattr(F, f"adjust_{name}")(image, factor))
    ours = getattr(augmentation, f"{name}_")(batch(image), torch.full((1, 1, 1, 1), factor))
    away = (ours - theirs).abs()
    assert away.max() <= 1  # a level, where a product ends on a whole number
    assert (away > 0).float().mean() < 0.02


@pytest.mark.parametrize("shift", [-0.3, -0.07, 0.0, 0.2, 0.3])
def test_hues_are_those_of_hsv(image, shift):
    ours = augmentation.hue_(batch(image), torch.full((1, 1, 1, 1), shift))
    exact = F.adjust_hue(batch(image) / 255, shift) * 255  # of floats
    assert (ours - exact).abs().max() <= 0.51
    theirs = batch(F.adjust_hue(image, shift))  # Pillow's, in 255 steps of a turn
    away = (ours - theirs).abs()
    assert away.mean() < 2
    assert away.max() <= 16
    assert (ours - theirs).mean().abs() < 0.3


@pytest.mark.parametrize("rgb", [(0, 0, 0), (255, 255, 255), (9, 9, 9), (255, 0, 0), (0, 255, 255)])
def test_hues_of_corners(rgb):
    x = torch.tensor(rgb, dtype=torch.float32).reshape(1, 3, 1, 1)
    ours = augmentation.hue_(x, torch.full((1, 1, 1, 1), 0.25)).flatten() / 255
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    assert ours.tolist() == pytest.approx(colorsys.hsv_to_rgb((h + 0.25) % 1, s, v), abs=0.003)


def test_gray_is_that_of_pillow(image):
    away = (gray(batch(image)) - batch(image.convert("L").convert("RGB"))[:, :1]).abs()
    assert away.max() <= 1
    assert (away > 0).float().mean() < 0.002


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 40, 56), (3, 7, 30, 41), (20, 0, 12, 9)])
def test_cuts_are_those_of_torchvision(image, box, flip):
    ours = torch.empty(3, 24, 24, dtype=torch.uint8)
    crop(np.array(image), (40, 56), box, flip, ours)
    theirs = F.resized_crop(image, *box, [24, 24])
    theirs = batch(F.hflip(theirs) if flip else theirs)[0]
    assert (ours.float() - theirs).abs().max() <= 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(24, 24), (7, 90), (40, 56)])
@pytest.mark.parametrize("box", [(0, 0, 40, 56), (3, 7, 30, 41), (20, 0, 12, 9), (39, 55, 1, 1)])
def test_resized_bytes_are_pillows(image, box, size, flip):
    top, left, height, width = box
    ours = np.empty((3, *size), np.uint8)
    compiled.resize(np.array(image), *box, flip, ours)
    # Rows first: Pillow from version 13 on takes columns first where an image is much too high.
    part = image.crop((left, top, left + width, top + height))
    for shape in ((size[1], height), size[::-1]):
        part = part.resize(shape, Image.Resampling.BILINEAR)
    theirs = np.asarray(part)[:, :: -1 if flip else 1].transpose(2, 0, 1)
    assert np.array_equal(ours, theirs)


def test_a_box_of_a_shrunk_image_is_where_it_was(image):
    box = (4, 14, 28, 35)
    small = np.array(image.resize((28, 28), Image.Resampling.BILINEAR))
    there, here = (torch.empty(3, 16, 16, dtype=torch.uint8) for _ in range(2))
    crop(np.array(image), (40, 56), box, False, there)
    crop(small, (40, 56), box, False, here)
    other = torch.empty_like(here)
    crop(small, (28, 28), (4, 14, 24, 14), False, other)  # the same numbers would be another place
    near, far = ((x.float() - there.float()).abs().mean() for x in (here, other))
    assert near < 12 < far
    sides = torch.tensor([[40, 56]]).expand(500, 2)
    for top, left, height, width in draw(sides, stream()).box.tolist():
        t, s, h, w = augmentation._scaled((top, left, height, width), (40, 56), (28, 28))
        assert t >= 0 <= s
        assert t + h <= 28 >= s + w
        edges = zip((t, s, t + h, s + w), (top, left, top + height, left + width), strict=True)
        for (ours, exact), extent in zip(edges, (40, 56, 40, 56), strict=True):
            assert abs(ours - exact * 28 / extent) <= 0.51  # rounded to a stored pixel
    assert augmentation._scaled((99, 99, 1, 1), (100, 100), (2, 2)) == (1, 1, 1, 1)


# --- draws ------------------------------------------------------------------------------------

N = 4000


@pytest.mark.parametrize("size", [(60, 60), (40, 56), (30, 200), (200, 30), (1, 1), (2, 3)])
def test_crops_have_the_distribution_of_torchvision(image, size):
    height, width = size
    ours = draw(torch.tensor([size]).expand(N, 2), stream()).box.double()
    picture = Image.new("L", (width, height))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = T.RandomResizedCrop.get_params
        theirs = torch.tensor(
            [params(picture, [0.7, 1.0], [3 / 4, 4 / 3]) for _ in range(N)], dtype=torch.float64
        )
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: (b[:, 3] / b[:, 2]).log(),
               lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2]):  # fmt: skip
        one, two = of(ours), of(theirs)
        spread = float(two.std())
        assert one.mean() == pytest.approx(
            float(two.mean()), abs=5 * spread * (2 / N) ** 0.5 + 1e-9
        )
        assert float(one.std()) == pytest.approx(spread, rel=0.1, abs=1e-9)


def test_colors_are_drawn_evenly():
    draws = draw(torch.tensor([[8, 8]]).expand(N, 2), stream())
    factors, order, gray = draws.colors.split((4, 4, 1), 1)
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert ((factors - middle).abs() <= 0.3).all()
    assert torch.allclose(factors.mean(0), middle, atol=0.015)
    assert torch.allclose(factors.std(0), torch.full((4,), 0.6 / 12**0.5), atol=0.01)
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24  # all orders
    assert ((counts / N - 1 / 24).abs() < 0.015).all()
    assert gray.mean() == pytest.approx(0.1, abs=0.02)
    assert draws.flip.float().mean() == pytest.approx(0.5, abs=0.03)


def test_draws_are_a_function_of_the_stream():
    sizes = torch.tensor([[8, 9]]).expand(5, 2)
    one, two, other = (draw(sizes, stream(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.colors, other.colors)


# --- the whole chain --------------------------------------------------------------------------


def test_pixels_have_the_distribution_of_torchvisions_chain(image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    labels = torch.zeros(1, dtype=torch.int64)
    domain = ImageDomain("one", Files([str(path)]), labels, image_size=24, augment=True)
    count = 1500
    ours = domain.read(torch.zeros(count, dtype=torch.int64), stream()).x
    chain = T.Compose(
        [
            T.RandomResizedCrop(24, scale=(0.7, 1.0)),
            T.RandomHorizontalFlip(),
            T.ColorJitter(0.3, 0.3, 0.3, 0.3),
            T.RandomGrayscale(),
            T.ToTensor(),
            T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([chain(image) for _ in range(count)])
    # Of an image: mean and deviation of each channel, and what neighbours differ by.
    for of in (
        lambda x: x.mean((2, 3)),
        lambda x: x.std((2, 3)),
        lambda x: x.diff(dim=3).abs().mean((2, 3)),
        lambda x: x.diff(dim=1).std((2, 3)),
    ):
        one, two = of(ours), of(theirs)
        error = two.std(0) * (2 / count) ** 0.5
        assert ((one.mean(0) - two.mean(0)).abs() < 5 * error).all()
        assert torch.allclose(one.std(0), two.std(0), rtol=0.12)
    # Of a pixel: over the draws.
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 6 * float(theirs.std(0).max()) * (
        2 / count
    ) ** 0.5
    assert (ours.std(0) / theirs.std(0)).log().abs().mean() < 0.05


def test_compiled_colors_are_those_of_pytorch(image):
    x = batch(*[image.rotate(3 * i) for i in range(100)])
    colors = draw(torch.tensor([[40, 56]]).expand(100, 2), stream()).colors
    slow = x.clone()
    jitter_(slow, colors)
    scale = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1) * 255
    offset = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1) * 255
    fast = finished(x.to(torch.uint8), colors) * scale + offset
    away = (fast - slow).abs()  # levels
    assert away.max() < 7  # a product that rounds to the other side can move a hue
    assert (away > 0.01).float().mean() < 1e-4
    plain = finished(x.to(torch.uint8)) * scale + offset
    assert (plain - x).abs().max() < 0.01


def test_a_batch_at_once_is_its_images_one_by_one(image):
    x = batch(*[image.rotate(10 * i) for i in range(40)])
    colors = draw(torch.tensor([[40, 56]]).expand(40, 2), stream()).colors
    at_once = x.clone()
    jitter_(at_once, colors)
    for part, own in zip(x.split(1), colors.split(1), strict=True):
        jitter_(part, own)
    assert torch.equal(at_once, x)


def test_colors_do_not_depend_on_threads(image):
    big = torch.tensor(np.array(image.resize((500, 400)))).permute(2, 0, 1)[None]
    colors = draw(torch.tensor([[400, 500]]), stream()).colors
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(finished(big, colors))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.gpu
def test_a_device_colors_as_the_cpu_does(image):
    x = batch(*[image.rotate(10 * i) for i in range(40)]).to(torch.uint8)
    colors = draw(torch.tensor([[40, 56]]).expand(40, 2), stream()).colors
    here, there = finished(x, colors), finished(x.cuda(), colors).cpu()
    away = (here - there).abs() * 0.226 * 255
    assert away.max() < 3  # levels: a product may round to the other side, at several steps
    assert (away > 0.5).float().mean() < 0.005
