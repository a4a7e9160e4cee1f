"""What checkpoints call their tensors, and what the modules of this package call them.

One table a family, of fragments of dotted names. Where a checkpoint stores several matrices as one (timm's ``qkv``,
DINOv2's ``weights_in``), the name stands for several, one below the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_HF: Mapping[str, str] = {
    "embeddings.patch_embeddings.projection": "embeddings.projection",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm": "norm",
    "cls_classifier": "head.classifier",
    "distillation_classifier": "head.distillation",
    "classifier": "head.classifier",
}
_DINOV2: Mapping[str, str] = {
    "layer_scale1.lambda1": "scale1",
    "layer_scale2.lambda1": "scale2",
    "mlp.weights_in": "mlp.gate|mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
_TIMM: Mapping[str, str] = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.projection",
    "attn.qkv": "attention.q_proj|attention.k_proj|attention.v_proj",
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
    "fc_norm": "norm",
    "head_dist": "head.distillation",
    "head": "head.classifier",
}
_SEGFORMER: Mapping[str, str] = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.self.sr": "attention.reduction",
    "attention.self.layer_norm": "attention.reduction_norm",
    "attention.output.dense": "attention.o_proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "mlp.dwconv.dwconv": "mlp.dwconv",
    "layer_norm_1": "norm1",
    "layer_norm_2": "norm2",
    "decode_head.linear_fuse": "head.fuse",
    "decode_head.batch_norm": "head.norm",
    "decode_head.classifier": "head.classifier",
}
_STAGES = (
    (r"encoder\.patch_embeddings\.(\d+)\.proj\.", r"stages.\1.projection."),
    (r"encoder\.patch_embeddings\.(\d+)\.layer_norm\.", r"stages.\1.embedding_norm."),
    (r"encoder\.block\.(\d+)\.(\d+)\.", r"stages.\1.layers.\2."),
    (r"encoder\.layer_norm\.(\d+)\.", r"stages.\1.norm."),
    (r"decode_head\.linear_c\.(\d+)\.proj\.", r"head.projections.\1."),
)
_DPT = (
    (r"neck\.reassemble_stage\.readout_projects\.(\d+)\.0\.", r"neck.reassemble.\1.readout."),
    (r"neck\.reassemble_stage\.layers\.(\d+)\.", r"neck.reassemble.\1."),
    (r"neck\.convs\.(\d+)\.", r"neck.convolutions.\1."),
    (r"neck\.fusion_stage\.layers\.(\d+)\.", r"neck.fusion.\1."),
    (r"head\.head\.0\.", r"head.convolution."),
    (r"head\.head\.1\.", r"head.norm."),
    (r"head\.head\.4\.", r"head.classifier."),
)
_DPT_UNUSED = ("auxiliary_head.", "neck.fusion_stage.layers.0.residual_layer1.")
"""What helps training only, and the branch for a coarser plane where there is none."""
_LAYERS = {"timm": "blocks."}
_TABLES: Mapping[str, Mapping[str, str]] = {
    "vit": _HF,
    "deit": _HF,
    "dinov2": {**_HF, **_DINOV2},
    "timm": _TIMM,
    "segformer": _SEGFORMER,
}
_OURS = ("head.", "reducers.")
"""Parts of our own, stored under the module's names."""
_UNUSED = ("pooler.", "embeddings.mask_token")
"""Parts for pre-training that nothing here reads."""


def module_names(model_type: str, stored: str) -> tuple[str, ...]:
    """The module's name, or names, of a tensor that a checkpoint of this type calls ``stored``; none if unused."""
    name = stored.removeprefix(f"{model_type}.")
    if name.startswith(_UNUSED) or name.endswith(".num_batches_tracked"):
        return ()
    if model_type == "segformer":
        for pattern, ours in _STAGES:
            name = re.sub(f"^{pattern}", ours, name)
    if name.startswith(_OURS) and model_type != "timm":
        return (name,)
    layers = _LAYERS.get(model_type, "encoder.layer.")
    if name.startswith(layers):
        name = "layers." + name.removeprefix(layers)
    for fragment, ours in _TABLES[model_type].items():
        if _find(fragment, name):
            return tuple(_replace(fragment, each, name) for each in ours.split("|"))
    return (name,)


def dpt_names(stored: str) -> tuple[str, ...]:
    """As :func:`module_names`, of a checkpoint of DPT, whose backbone is called as ViT."""
    if stored.startswith("dpt."):
        return tuple(f"backbone.{name}" for name in module_names("vit", stored.removeprefix("dpt.")))
    if stored.startswith(_DPT_UNUSED) or stored.endswith(".num_batches_tracked"):
        return ()
    for pattern, ours in _DPT:
        stored = re.sub(f"^{pattern}", ours, stored)
    return (stored,)


def stored_name(name: str) -> str:
    """What Hugging Face's ViT calls the tensor that the module calls ``name``; the inverse of :func:`module_names`."""
    if name.startswith(_OURS):
        return name.removeprefix("head.") if name.startswith("head.classifier.") else name
    if name.startswith("layers."):
        name = "encoder.layer." + name.removeprefix("layers.")
    for stored, ours in _HF.items():
        if _find(ours, name):
            return f"vit.{_replace(ours, stored, name)}"
    return f"vit.{name}"


def _find(fragment: str, name: str) -> bool:
    return re.search(rf"(^|\.){re.escape(fragment)}(?=\.|$)", name) is not None


def _replace(fragment: str, by: str, name: str) -> str:
    return re.sub(rf"(^|\.){re.escape(fragment)}(?=\.|$)", rf"\g<1>{by}", name, count=1)
