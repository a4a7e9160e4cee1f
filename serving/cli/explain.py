"""Show where a vision model spends its computation on an image: which patches ran, were merged, skipped or dropped,
layer by layer, at one token budget. Draws a picture and prints the counts.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.serving.cli.output import CommandError, add_json_option, print_json, say, table

if TYPE_CHECKING:
    from stepwell.models.vit.explain import LayerMap
    from stepwell.models.vit.model import ViT

HELP = "draw which tokens of an image a model keeps, merges or skips"
_TOP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``stepwell explain``."""
    parser.add_argument("model", metavar="MODEL", help="a directory, a hub id, or a shipped model such as routed-vit")
    parser.add_argument("image", metavar="IMAGE", type=Path, help="a PNG or JPEG file")
    parser.add_argument("--budget", type=float, metavar="B", help="share of tokens to keep, in (0, 1]")
    parser.add_argument("--operating-point", metavar="P", help="LADDER:LEVEL[@BUDGET]; default: the best within B")
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("routes.png"), help="the picture, as PNG")
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Compute, draw, print. Raises ValueError or CommandError for what cannot be explained."""
    document = explain(args.model, args.image, args.out, budget=args.budget, operating_point=args.operating_point)
    say(f"picture: {args.out}")
    if args.json:
        print_json(document | {"picture": str(args.out)})
    else:
        print(_text(document))


def explain(
    model: str, image: Path, out: Path, *, budget: float | None = None, operating_point: str | None = None
) -> dict[str, Any]:
    """Draw to ``out`` and return the document of ``--json``; errors as in :func:`run`."""
    from stepwell.models.loader import load_predictor, read_files
    from stepwell.models.vit.model import ViT
    from stepwell.serving.cli.route_plot import save_routes
    from stepwell.serving.engine.points import allowed_points, operating_points
    from stepwell.serving.hosted import unit_parameters
    from stepwell.serving.images import decode_image
    from stepwell.serving.predictor_runner import item_of

    files = read_files(model)
    if files.image_input is None:
        raise CommandError(f"model: {files.name} takes no images; give a vision transformer")
    pixels = decode_image(str(image), image.read_bytes(), files.image_input)
    vit = load_predictor(files)
    if not isinstance(vit, ViT):
        raise CommandError(f"model: {files.name} reduces no tokens; give a ViT, DeiT, DINOv2 or routed-vit")
    points = operating_points(files.ladders, unit_parameters(files.config))
    found = allowed_points(points, files.ladders, 0.0, operating_point, budget)
    point = max(found, key=lambda each: each.quality)
    item = item_of(pixels, files.ladders.level(point.name))
    maps = vit.explain(item)
    document = describe(vit, item, maps) | {"model": files.name, "operating_point": point.name}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_routes(document, pixels, files.image_input, maps, out)
    return document


def describe(model: ViT, item: Any, maps: Sequence[LayerMap]) -> dict[str, Any]:
    """What ran in each layer, and what came of it."""
    output = model.run([item], [name for name in ("logits",) if name in model.config.outputs])[0]
    return {
        "tokens": model.config.num_tokens(tuple(item.data.shape)),
        "tokens_kept": output.tokens_kept,
        "classes": _classes(model, output.tensors),
        "layers": [layer_counts(each) for each in maps],
    }


def layer_counts(layer: LayerMap) -> dict[str, int]:
    """Patches of one layer by what became of them."""
    owners = Counter(layer.owner.flatten().tolist())
    dropped = owners.pop(-1, 0)
    merged = sum(count for count in owners.values() if count > 1)
    ran = {int(owner) for owner, did in zip(layer.owner.flatten(), layer.ran.flatten(), strict=True) if did}
    return {
        "patches": layer.owner.numel(),
        "tokens_run": len(ran - {-1}),
        "skipped": int((~layer.ran & (layer.owner >= 0)).sum()),
        "merged": merged,
        "dropped": dropped,
    }


def _classes(model: ViT, tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The most likely ones; none for a model that does not classify whole images."""
    logits = tensors.get("logits")
    if logits is None or logits.dim() != 1:
        return []
    values, indices = logits.softmax(0).topk(min(_TOP, len(logits)))
    labels = model.config.labels
    return [
        {"class": i, "label": labels[i] if labels else str(i), "probability": round(p, 4)}
        for p, i in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def _text(document: dict[str, Any]) -> str:
    kept, tokens = document["tokens_kept"], document["tokens"]
    lines = [f"{document['model']} at {document['operating_point']}: {kept} of {tokens} tokens a layer, on average"]
    if document["classes"]:
        likely = ", ".join(f"{each['label']} {each['probability']:.0%}" for each in document["classes"])
        lines.append(f"most likely: {likely}")
    keys = list(document["layers"][0]) if document["layers"] else []
    rows = [[str(k), *(str(layer[key]) for key in keys)] for k, layer in enumerate(document["layers"], 1)]
    return "\n".join([*lines, "", table(["layer", *(key.replace("_", " ") for key in keys)], rows)])
