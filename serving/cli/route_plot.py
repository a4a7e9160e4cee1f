"""The picture of a route: the image once as it is, then for every layer what its tokens were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from stepwell.serving.engine.job import Array

if TYPE_CHECKING:
    from stepwell.models.image_input import ImageInput
    from stepwell.models.vit.explain import LayerMap

_COLUMNS = 5
_SKIPPED, _DROPPED = (0.05, 0.05, 0.15, 0.72), (1.0, 1.0, 1.0, 0.88)
_LEGEND = "bright: ran the layer    dark: skipped it    white: dropped    outlined: merged into one token"


def save_routes(
    document: Mapping[str, Any], pixels_3HW: Array, image_input: ImageInput, maps: Sequence[LayerMap], path: Path
) -> None:
    """Write the PNG. ``document`` is that of ``stepwell explain --json``; ``pixels`` are normalised."""
    num_rows = -(-(len(maps) + 1) // _COLUMNS)
    figure = Figure(figsize=(2.2 * _COLUMNS, 2.45 * num_rows + 0.7), layout="constrained")
    panels = list(figure.subplots(num_rows, _COLUMNS, squeeze=False).flatten())
    draw_routes(panels, picture_of(pixels_3HW, image_input), maps)
    best = document["classes"][0] if document["classes"] else None
    panels[0].set_title(f"{best['label']} {best['probability']:.0%}" if best else "image", fontsize=9)
    kept = f"{document['tokens_kept']} of {document['tokens']} tokens a layer"
    figure.suptitle(f"{document['model']} at {document['operating_point']}: {kept}\n{_LEGEND}", fontsize=9)
    figure.savefig(path, dpi=120)


def picture_of(pixels_3HW: Array, image_input: ImageInput) -> Array:
    """Normalised pixels -> colours, [H, W, 3] in 0..1."""
    colours: Array = pixels_3HW.transpose(1, 2, 0) * np.array(image_input.std) + np.array(image_input.mean)
    return colours.clip(0.0, 1.0)


def draw_routes(panels: Sequence[Axes], picture_HW3: Array, maps: Sequence[LayerMap]) -> None:
    """The image on the first panel, the layers on the next ones; further panels are cleared."""
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(picture_HW3, interpolation="nearest")
    for number, (panel, layer) in enumerate(zip(panels[1:], maps, strict=False), 1):
        draw_layer(panel, picture_HW3, layer)
        panel.set_title(f"layer {number}", fontsize=9)


def draw_layer(axes: Axes, picture_HW3: Array, layer: LayerMap) -> None:
    """One layer over the image."""
    height, width = picture_HW3.shape[:2]
    owner, ran = layer.owner.numpy(), layer.ran.numpy()
    shade = np.zeros((*owner.shape, 4))
    shade[~ran] = _SKIPPED
    shade[owner < 0] = _DROPPED
    extent = (0.0, float(width), float(height), 0.0)
    axes.imshow(picture_HW3, interpolation="nearest", extent=extent)
    axes.imshow(shade, interpolation="nearest", extent=extent)
    lines = outlines(owner) * np.array([width / owner.shape[1], height / owner.shape[0]])
    axes.add_collection(LineCollection(list(lines), colors="gold", linewidths=0.9))


def outlines(owner: Array) -> Array:
    """Edges around tokens that several patches share: [edges, 2 ends, (x, y)] in patches."""
    indices, counts = np.unique(owner, return_counts=True)
    shared = np.isin(owner, indices[(counts > 1) & (indices >= 0)])
    edges = []
    for axis in (0, 1):
        first, second = (np.take(owner, np.arange(a, owner.shape[axis] + b), axis) for a, b in ((0, -1), (1, 0)))
        either = np.take(shared, np.arange(owner.shape[axis] - 1), axis)
        either = either | np.take(shared, np.arange(1, owner.shape[axis]), axis)
        for row, column in np.argwhere((first != second) & either):
            start = (column, row + 1) if axis == 0 else (column + 1, row)
            end = (column + 1, row + 1)
            edges.append((start, end))
    return np.array(edges, float).reshape(-1, 2, 2)
