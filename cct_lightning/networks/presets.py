"""The published networks by name: plain values, no torch."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from cct_lightning.networks.options import Position


@dataclass(frozen=True)
class Variant:
    """What a name stands for. Shapes of the published networks: SHI-Labs/Compact-Transformers, Variants.md."""

    depth: int
    num_heads: int
    mlp_ratio: float
    embed_dim: int
    tokenizer: Literal["conv", "patch"]
    kernel_size: int
    num_conv_layers: int
    image_size: int
    num_classes: int
    position: Position
    pooling: str
    hidden_channels: int = 64  # of a CCT's tokenizer


# depth: heads, mlp_ratio, embed_dim
SHAPES = {2: (2, 1.0, 128), 4: (2, 1.0, 128), 6: (4, 2.0, 256), 7: (4, 2.0, 256), 14: (6, 3.0, 384)}
NAMES = """
vit_2_4_32 vit_2_4_32_sine vit_4_4_32 vit_4_4_32_sine vit_6_4_32 vit_6_4_32_sine vit_7_4_32 vit_7_4_32_sine
cvt_2_4_32 cvt_2_4_32_sine cvt_4_4_32 cvt_4_4_32_sine cvt_6_4_32 cvt_6_4_32_sine cvt_7_4_32 cvt_7_4_32_sine
cct_2_3x2_32 cct_2_3x2_32_sine cct_4_3x2_32 cct_4_3x2_32_sine cct_6_3x1_32 cct_6_3x1_32_sine cct_6_3x2_32 cct_6_3x2_32_sine
cct_7_3x1_32 cct_7_3x1_32_sine cct_7_3x1_32_c100 cct_7_3x1_32_sine_c100 cct_7_3x2_32 cct_7_3x2_32_sine
cct_7_7x2_224 cct_7_7x2_224_sine cct_14_7x2_224 cct_14_7x2_384 cct_14_7x2_384_fl
""".split()
CLASSES_BY_NAME = {"cct_14_7x2_224": 1000, "cct_14_7x2_384": 1000, "cct_14_7x2_384_fl": 102, "cct_7_7x2_224": 102, "cct_7_7x2_224_sine": 102}


def _variant(name: str) -> Variant:
    """Reads family_depth_kernel[xconvs]_size[_sine][_c100]."""
    match = re.fullmatch(r"(vit|cvt|cct)_(\d+)_(\d+)(?:x(\d))?_(\d+)(_sine)?(_c100|_fl)?", name)
    assert match is not None
    family, depth, kernel, convs, size, sine, data = match.groups()
    num_classes = CLASSES_BY_NAME.get(name, 100 if data == "_c100" else 10)
    return Variant(
        int(depth), *SHAPES[int(depth)], tokenizer="conv" if family == "cct" else "patch", kernel_size=int(kernel),
        num_conv_layers=int(convs or 1), image_size=int(size), num_classes=num_classes,
        position="sine" if sine else "learned", pooling="class_token" if family == "vit" else "seqpool",
    )  # fmt: skip


def describe_images(in_chans: int, image_size: tuple[int, int]) -> dict[str, Any]:
    """Describes images in the words of timm's ``pretrained_cfg``; mean and deviation are ImageNet's, where nobody knows the data's."""
    return {
        "url": "", "input_size": (in_chans, *image_size), "fixed_input_size": True, "interpolation": "bicubic",
        "crop_pct": 1.0 if min(image_size) < 224 else 0.9, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    }  # fmt: skip


VARIANTS: dict[str, Variant] = {name: _variant(name) for name in NAMES}
