"""From pixels to floats on the CPU, compiled by Numba: images are resized, then colored.

One image at a time, so that it stays in the cache, and without the interpreter lock, so that
threads run in parallel. Pillow and `augmentation.jitter_` are the references: resized bytes are
Pillow's, bit for bit (rows before columns, as Pillow does all images up to version 12, and later
ones all but very tall ones), and colors are those of `jitter_`, except for occasional differences
of one level where float32 rounds a product differently.

    resize: uint8 [h, w, 3], box, flip -> uint8 [3, H, W]
    finish: uint8 [n, 3, H, W], colors -> float32 [n, 3, H, W]
"""  # fmt: skip
# mypy: disable-error-code="operator,return-value"
# For mypy, NumPy's float32 is not a float.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import float32 as f32
from numba import types, uintp


def _can_keep() -> bool:
    """Whether Numba finds a folder for its compiled code: next to this file, or the user's."""
    try:
        numba.njit(cache=True)(lambda: None)
    except RuntimeError:
        return False
    return True


# Numbers are finite; sums and products are rounded one by one, as written.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": _can_keep(),
    "error_model": "numpy",
    "fastmath": {"nnan", "ninf", "nsz"},
}
_compiled = numba.njit(**_OPTIONS)


def _array(kind: types.Type, dimensions: int, *, written: bool = False) -> types.Array:
    return types.Array(kind, dimensions, "C", readonly=not written)


_u8, _int = types.uint8, types.int64
_BITS = 22  # of the weights, whole multiples of 2^-22 as Pillow's; a sum of levels fits into int32
_HALF = 1 << (_BITS - 1)


@_compiled
def _taps(start: int, length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first place [size], number [size] and weights of the pixels under each output."""
    scale = length / size
    support = max(scale, 1.0)
    inverse = 1 / support
    first, count = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.zeros((size, 2 * int(np.ceil(support)) + 1), np.int32)
    exact = np.empty(weights.shape[1], np.float64)
    for x in range(size):
        center = (x + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        first[x], count[x] = start + low, min(int(center + support + 0.5), length) - low
        total = 0.0
        for t in range(count[x]):
            exact[t] = max(0.0, 1 - abs((low + t - center + 0.5) * inverse))
            total += exact[t]
        for t in range(count[x]):
            weights[x, t] = int(exact[t] / total * (1 << _BITS) + 0.5)
    return first, count, weights


@_compiled
def _across(
    pixels: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    weights: np.ndarray,
    flip: bool,
    wide: np.ndarray,
) -> None:
    """Resize the rows of an image [h, w, 3] to whole levels in `wide` [3, h, W]."""
    size = wide.shape[2]
    # In float64, which holds these sums exactly and multiplies faster, where nothing is vectorized.
    shares = weights / float(1 << _BITS)
    line = np.empty(pixels.shape[1] * 3, np.float64)
    for y in range(len(pixels)):
        source = pixels[y].reshape(len(line))
        for i in range(len(line)):
            line[i] = source[i]
        for x in range(size):
            red = green = blue = 0.5
            at = uintp(3 * first[x])  # unsigned: not checked for being negative
            for t in range(count[x]):
                weight = shares[x, t]
                red += weight * line[at]
                green += weight * line[at + uintp(1)]
                blue += weight * line[at + uintp(2)]
                at += uintp(3)
            to = uintp(size - 1 - x if flip else x)
            wide[0, y, to] = np.uint8(red)
            wide[1, y, to] = np.uint8(green)
            wide[2, y, to] = np.uint8(blue)


# With signatures, both are compiled, or loaded, when this is imported.
@numba.njit(
    types.void(_array(_u8, 3), _int, _int, _int, _int, types.boolean, _array(_u8, 3, written=True)),
    **_OPTIONS,
)
def resize(
    pixels: np.ndarray, top: int, left: int, height: int, width: int, flip: bool, out: np.ndarray
) -> None:
    """Crop a box of an image and resize it like Pillow's antialiased bilinear filter.

    Args:
        pixels: The image [h, w, 3], uint8.
        top: First row of the box, in pixels, like the other three.
        left: First column.
        height: Rows.
        width: Columns.
        flip: Whether to flip horizontally.
        out: The output [3, H, W], uint8.
    """
    rows, columns = out.shape[1], out.shape[2]
    first_x, count_x, weight_x = _taps(left, width, columns)
    first_y, count_y, weight_y = _taps(0, height, rows)
    wide = np.empty((3, height, columns), np.uint8)
    _across(pixels[top : top + height], first_x, count_x, weight_x, flip, wide)
    line = np.empty(columns, np.int32)
    for channel in range(3):
        for y in range(rows):
            line[:] = _HALF
            for t in range(count_y[y]):
                weight, row = weight_y[y, t], wide[channel, first_y[y] + t]
                for x in range(columns):
                    line[x] += weight * row[x]
            for x in range(columns):
                out[channel, y, x] = line[x] >> _BITS


@_compiled
def _luminance(red: float, green: float, blue: float) -> float:
    return np.floor(red * f32(0.299) + green * f32(0.587) + blue * f32(0.114) + f32(0.5))


@_compiled
def _copy(
    r: np.ndarray,
    g: np.ndarray,
    b: np.ndarray,
    to_r: np.ndarray,
    to_g: np.ndarray,
    to_b: np.ndarray,
) -> None:
    for x in range(len(r)):
        to_r[x] = r[x]
    for x in range(len(g)):
        to_g[x] = g[x]
    for x in range(len(b)):
        to_b[x] = b[x]


@_compiled
def _channel(angle: float, chroma: float, base: float) -> float:
    """Return the level of the channel whose own hue lies `angle` away, times chroma."""
    return np.floor(base + min(max(abs(abs(angle) - f32(3) * chroma), chroma), f32(2) * chroma))


@_compiled
def _change(
    r: np.ndarray, g: np.ndarray, b: np.ndarray, kind: int, colors: np.ndarray, mean: float
) -> None:
    """Apply one stage of the chain to a row of whole levels, [W] each."""
    factor = colors[kind]
    if kind == 0:
        for x in range(len(r)):
            r[x] = np.floor(min(r[x] * factor, f32(255)))
            g[x] = np.floor(min(g[x] * factor, f32(255)))
            b[x] = np.floor(min(b[x] * factor, f32(255)))
    elif kind == 1:
        offset = mean - mean * factor
        for x in range(len(r)):
            r[x] = np.floor(min(max(r[x] * factor + offset, f32(0)), f32(255)))
            g[x] = np.floor(min(max(g[x] * factor + offset, f32(0)), f32(255)))
            b[x] = np.floor(min(max(b[x] * factor + offset, f32(0)), f32(255)))
    elif kind == 2:
        rest = f32(1) - factor
        for x in range(len(r)):
            gray = _luminance(r[x], g[x], b[x])
            r[x] = np.floor(min(max(r[x] - (r[x] - gray) * rest, f32(0)), f32(255)))
            g[x] = np.floor(min(max(g[x] - (g[x] - gray) * rest, f32(0)), f32(255)))
            b[x] = np.floor(min(max(b[x] - (b[x] - gray) * rest, f32(0)), f32(255)))
    else:  # see `augmentation.hue_`
        turn = f32(6) * factor
        for x in range(len(r)):
            low, top = min(r[x], g[x], b[x]), max(r[x], g[x], b[x])
            chroma = top - low
            angle = g[x] + b[x] - r[x] + top - f32(2) * low
            angle = (angle if g[x] >= b[x] else -angle) + chroma * turn
            base = low - chroma + f32(0.5)
            r[x] = _channel(angle, chroma, base)
            g[x] = _channel(angle - f32(2) * chroma, chroma, base)
            b[x] = _channel(angle + f32(2) * chroma, chroma, base)


@_compiled
def _gray(r: np.ndarray, g: np.ndarray, b: np.ndarray) -> None:
    for x in range(len(r)):
        gray = _luminance(r[x], g[x], b[x])
        r[x] = gray
        g[x] = gray
        b[x] = gray


@numba.njit(**{**_OPTIONS, "fastmath": True})  # sums of whole levels are exact in any order
def _sum_of_gray(r: np.ndarray, g: np.ndarray, b: np.ndarray) -> float:
    total = f32(0)
    for x in range(len(r)):
        total += _luminance(r[x], g[x], b[x])
    return total


@_compiled
def _color(image: np.ndarray, colors: np.ndarray) -> None:
    """Change the colors of an image [3, H, W], uint8, in place, as `jitter_` does."""
    order = colors[4:8]
    contrast_at = 0  # the stage of contrast, which needs the mean of the whole image
    for stage in range(4):
        if order[stage] == 1:
            contrast_at = stage
    columns = image.shape[2]
    r = np.empty(columns, np.float32)  # a row at a time
    g = np.empty(columns, np.float32)
    b = np.empty(columns, np.float32)
    total = 0.0
    for y in range(image.shape[1]):
        _copy(image[0, y], image[1, y], image[2, y], r, g, b)
        for stage in range(contrast_at):
            _change(r, g, b, int(order[stage]), colors, f32(0))
        total += _sum_of_gray(r, g, b)
        _copy(r, g, b, image[0, y], image[1, y], image[2, y])
    mean = f32(np.floor(total / (image.shape[1] * columns) + 0.5))
    for y in range(image.shape[1]):
        _copy(image[0, y], image[1, y], image[2, y], r, g, b)
        for stage in range(contrast_at, 4):
            _change(r, g, b, int(order[stage]), colors, mean)
        if colors[8]:
            _gray(r, g, b)
        _copy(r, g, b, image[0, y], image[1, y], image[2, y])


@numba.njit(
    types.void(
        _array(_u8, 4), _array(f32, 2), _array(f32, 1), _array(f32, 1), _array(f32, 4, written=True)
    ),
    **_OPTIONS,
)
def finish(
    images: np.ndarray, colors: np.ndarray, scale: np.ndarray, offset: np.ndarray, out: np.ndarray
) -> None:
    """Color images, unless `colors` is empty, and scale each channel: level · scale − offset.

    Args:
        images: [n, 3, H, W], uint8.
        colors: `Draws.colors` [n, 9], float32; or [0, 9].
        scale: [3], float32.
        offset: [3], float32.
        out: The output [n, 3, H, W], float32.
    """
    for n in range(len(images)):
        image = images[n].copy()
        if len(colors):
            _color(image, colors[n])
        for channel in range(3):
            for y in range(image.shape[1]):
                row, to = image[channel, y], out[n, channel, y]
                for x in range(len(row)):
                    to[x] = f32(row[x]) * scale[channel] - offset[channel]
