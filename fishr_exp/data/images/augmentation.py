"""DomainBed's augmentation: crops on the CPU as bytes, colors on the device of the batch.

The CPU's part is compiled, see `compiled.py`; the PyTorch code here is for CUDA devices.

    draw:     sizes -> box, flip, colors          one stream, a few numbers per image
    crop:     image, box, flip -> uint8 [3, S, S]  on the CPU, after reading
    finished: uint8 [n, 3, S, S] -> float32        on the device: colors, then ImageNet's scale

The chain is torchvision's `RandomResizedCrop(scale=(0.7, 1))`, `RandomHorizontalFlip`,
`ColorJitter(0.3, 0.3, 0.3, 0.3)`, `RandomGrayscale(0.1)` on Pillow images, with the same
distribution of all draws and the same rounding to whole levels after each step. Only the random
streams differ, and hues, which are exact here and in steps of 1/255 there.

Source:
    Gulrajani and Lopez-Paz 2021 (arXiv:2007.01434) and their code, for the chain.
"""  # fmt: skip

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fishr_exp.core.contracts import Minibatch

AREA, RATIO = (0.7, 1.0), (3 / 4, 4 / 3)  # of a crop, as a share of the image; width over height
STRENGTH = 0.3  # of brightness, contrast, saturation (factors 1 ± 0.3), hue (± 0.3 of a turn)
GRAY = 0.1  # probability
_ATTEMPTS = 10  # attempts to draw a crop, before the center is used

NORMALIZATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's mean and deviation
_MEAN, _STD = (torch.tensor(of).reshape(1, 3, 1, 1) for of in NORMALIZATION)
_SCALE, _OFFSET = 1 / (255 * _STD), _MEAN / _STD  # a product is cheaper than two quotients
_ON_CPU = _SCALE.flatten().numpy(), _OFFSET.flatten().numpy()


class Draws(NamedTuple):
    """The random draws for n images."""

    box: Tensor  # [n, 4], int64: top, left, height, width, in pixels
    flip: Tensor  # [n], bool
    colors: Tensor  # [n, 9], float32: brightness, contrast, saturation, hue; their order; gray


def draw(sizes: Tensor, stream: torch.Generator) -> Draws:
    """Draw the augmentation of images of `sizes` ([n, 2], height and width) from `stream`."""
    n = len(sizes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(
            n, *shape, generator=stream, dtype=torch.float64
        )  # [n, *shape]

    box = _boxes(
        sizes,
        uniform(*AREA, _ATTEMPTS),
        uniform(math.log(RATIO[0]), math.log(RATIO[1]), _ATTEMPTS).exp(),
        uniform(0, 1, 2),
    )
    flip = uniform(0, 1) < 0.5
    factors = uniform(1 - STRENGTH, 1 + STRENGTH, 4)
    factors[:, 3] -= 1  # of hue: a shift
    order = uniform(0, 1, 4).argsort(1)
    gray = uniform(0, 1, 1) < GRAY
    return Draws(box, flip, torch.cat([factors, order, gray], 1).to(torch.float32))


def _boxes(sizes: Tensor, areas: Tensor, ratios: Tensor, places: Tensor) -> Tensor:
    """Return the first crop [n, 4] of each image's attempts [n, 10] that fits."""
    whole = sizes.to(torch.float64)  # [n, 2]
    area = areas * whole.prod(1, keepdim=True)
    shapes = torch.stack([(area / ratios).sqrt(), (area * ratios).sqrt()], 2).round()  # [n, 10, 2]
    fits = ((shapes > 0) & (shapes <= whole[:, None])).all(2)  # [n, 10]
    first = fits.int().argmax(1)
    shape = shapes[torch.arange(len(sizes)), first]  # [n, 2]
    top_left = (places * (whole - shape + 1)).floor()
    # The center, as wide or as high as the ratios allow, for images that are too long.
    height, width = whole.unbind(1)
    longest = torch.stack(
        [(width / RATIO[0]).round().minimum(height), (height * RATIO[1]).round().minimum(width)], 1
    ).clamp_min(1)
    none = ~fits.any(1, keepdim=True)
    shape = torch.where(none, longest, shape)
    top_left = torch.where(none, ((whole - longest) / 2).floor(), top_left)
    return torch.cat([top_left, shape], 1).long()


def crop(
    pixels: np.ndarray, size: tuple[int, int], box: Sequence[int], flip: bool, to: Tensor
) -> None:
    """Crop a box of an image and write it, resized, into a batch.

    Args:
        pixels: The image [h, w, 3], uint8; possibly shrunk.
        size: Height and width of the image for which the box was drawn. If it was shrunk, the box
            is scaled and rounded to pixels.
        box: Top, left, height and width.
        flip: Whether to flip horizontally.
        to: The output [3, S, S], uint8.
    """
    if pixels.shape[:2] != size:
        box = _scaled(box, size, pixels.shape)
    from fishr_exp.data.images.compiled import resize  # slow import

    top, left, height, width = box
    resize(np.ascontiguousarray(pixels), top, left, height, width, flip, to.numpy())


def _scaled(box: Sequence[int], size: tuple[int, int], shape: Sequence[int]) -> tuple[int, ...]:
    start, length = [], []
    for first, extent, there, here in zip(box[:2], box[2:], size, shape, strict=False):
        begin = min(round(first * here / there), here - 1)
        start.append(begin)
        length.append(max(1, round((first + extent) * here / there) - begin))
    return (*start, *length)


class Pixels(NamedTuple):
    """A minibatch before the transfer to the device: a quarter of the bytes, not yet converted."""

    x: Tensor  # [n, 3, S, S], uint8
    y: Tensor  # [n], int64
    colors: Tensor | None = None  # [n, 9], `Draws.colors`; stays on the CPU

    def to(self, device: torch.device) -> Minibatch:
        """Move to the device, and color and scale the images there."""
        x, y = self.x.to(device, non_blocking=True), self.y.to(device, non_blocking=True)
        return Minibatch(finished(x, self.colors), y)


def finished(x: Tensor, colors: Tensor | None = None) -> Tensor:
    """Color images and scale them by ImageNet's mean and deviation.

    Args:
        x: Images [n, 3, H, W], uint8.
        colors: `Draws.colors` [n, 9], on the CPU; None: no change of colors.

    Returns:
        Images [n, 3, H, W], float32.
    """
    if x.device.type == "cpu":
        from fishr_exp.data.images.compiled import finish

        done = torch.from_numpy(np.empty(x.shape, np.float32))  # NumPy asks for huge pages: a
        # minibatch of fresh memory takes longer to map by small ones than to fill.
        drawn = torch.empty(0, 9) if colors is None else colors
        given = (x.contiguous().numpy(), drawn.contiguous().numpy())
        finish(*given, *_ON_CPU, done.numpy())
        return done
    done = x.to(torch.float32)
    if colors is not None:
        jitter_(done, colors)
    return done.mul_(_SCALE.to(x.device)).sub_(_OFFSET.to(x.device))


def jitter_(x: Tensor, colors: Tensor) -> None:
    """Change the colors of images [n, 3, H, W], whole levels 0..255 as floats, in place.

    Args:
        x: The images.
        colors: `Draws.colors` [n, 9].
    """
    drawn = colors.tolist()
    factors = colors[:, :4].to(x.device, non_blocking=True).T.reshape(4, -1, 1, 1, 1)
    for stage in range(4):
        for kind, change_ in enumerate((brightness_, contrast_, saturation_, hue_)):
            rows = [i for i, own in enumerate(drawn) if own[4 + stage] == kind]
            _at_rows(change_, x, factors[kind], rows)
    _at_rows(_gray_, x, factors[0], [i for i, own in enumerate(drawn) if own[8]])


def _at_rows(
    change_: Callable[[Tensor, Tensor], Tensor], x: Tensor, factor: Tensor, rows: list[int]
) -> None:
    if len(rows) == len(x):
        change_(x, factor)
    elif rows:
        index = torch.tensor(rows).to(x.device, non_blocking=True)
        x[index] = change_(x[index], factor[index])


def gray(x: Tensor) -> Tensor:
    """Return the luminance [n, 1, H, W] of images."""
    red, green, blue = x.split(1, 1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114).add_(0.5).floor_()


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images [n, 3, H, W] with black; factor [n, 1, 1, 1]."""
    return x.mul_(factor).clamp_(max=255).floor_()


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images with their mean luminance."""
    # Sums of whole levels are exact in float32 along a row, and in float64 over the image: they
    # do not depend on the number of threads.
    rows = gray(x).sum(3, keepdim=True).to(torch.float64)  # [n, 1, H, 1]
    mean = rows.sum(2, keepdim=True).div_(x[0, 0].numel()).add_(0.5).floor_().to(x.dtype)
    return x.mul_(factor).add_(mean - mean * factor).clamp_(0, 255).floor_()


def saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images with their luminance."""
    return torch.lerp(gray(x), x, factor, out=x).clamp_(0, 255).floor_()


def _gray_(x: Tensor, _: Tensor) -> Tensor:
    return x.copy_(gray(x))


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hues of images by `shift` [n, 1, 1, 1], at most a third of a turn.

    With top and low the largest and the least channel, and chroma c = top − low, the hue of HSV
    times c, in sixths of a turn, needs neither division nor cases: it is the angle from red,

        h = ± (c − (red − low) + (green − low) + (blue − low)),  + where green >= blue,

    and a channel whose own hue lies at angle a (0, 2, −2) is

        low + clamp(| |h + 6·shift·c − a·c| − 3c | − c, 0, c).
    """
    red, green, blue = x.split(1, 1)
    low = torch.minimum(red, green)
    top = torch.maximum(red, green)
    low, top = torch.minimum(low, blue, out=low), torch.maximum(top, blue, out=top)
    side = green - blue
    angle = (green + blue).sub_(red).add_(top).sub_(low, alpha=2)
    chroma = top.sub_(low)
    angle = torch.copysign(angle, side, out=side).addcmul_(chroma, 6 * shift)
    torch.addcmul(angle, chroma, _ANGLES.to(x.device), out=x)  # [n, 3, H, W]
    x.abs_().sub_(chroma, alpha=3).abs_()
    torch.clamp(x, chroma, 2 * chroma, out=x)
    return x.add_(low.sub_(chroma).add_(0.5)).floor_()


_ANGLES = torch.tensor([0.0, -2.0, 2.0]).reshape(1, 3, 1, 1)
