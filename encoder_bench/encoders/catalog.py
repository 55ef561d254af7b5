"""The named encoders: one record each, and nothing but facts.

What belongs here: data. Parameters, width and depth are those of the architecture (a test builds
each on the meta device and counts); data and licence are as the authors' papers and model cards
state them; a revision that has not been verified is left open and shown as `unpinned`.
"""

from __future__ import annotations

from encoder_bench.encoders.spec import EncoderSpec, Supervision

_FAMILIES: dict[str, tuple[str, Supervision, str, str, str, str]] = {
    # family: display, supervision, data, images, licence, paper
    "deit": ("DeiT", "fully", "ImageNet-1k", "1.28M", "Apache-2.0", "2012.12877"),
    "clip": ("CLIP", "weakly", "WIT", "400M", "MIT", "2103.00020"),
    "siglip": ("SigLIP", "weakly", "WebLI", "n/a", "Apache-2.0", "2303.15343"),
    "mae": ("MAE", "self", "ImageNet-1k", "1.28M", "CC-BY-NC-4.0", "2111.06377"),
    "dino": ("DINO", "self", "ImageNet-1k", "1.28M", "Apache-2.0", "2104.14294"),
    "dinov2": ("DINOv2", "self", "LVD-142M", "142M", "Apache-2.0", "2304.07193"),
}

_ROWS: tuple[tuple[str, str, str, str, int, int, int, int, int], ...] = (
    # name, family, size, repository, parameters, width, depth, patch, resolution
    ("deit-ti", "deit", "ViT-Ti/16", "facebook/deit-tiny-patch16-224", 5524416, 192, 12, 16, 224),
    ("deit-s", "deit", "ViT-S/16", "facebook/deit-small-patch16-224", 21665664, 384, 12, 16, 224),
    ("deit-b", "deit", "ViT-B/16", "facebook/deit-base-patch16-224", 85798656, 768, 12, 16, 224),
    ("clip-b32", "clip", "ViT-B/32", "openai/clip-vit-base-patch32", 87456000, 768, 12, 32, 224),
    ("clip-b", "clip", "ViT-B/16", "openai/clip-vit-base-patch16", 85799424, 768, 12, 16, 224),
    ("clip-l", "clip", "ViT-L/14", "openai/clip-vit-large-patch14", 303179776, 1024, 24, 14, 224),
    (
        "clip-l-336",
        "clip",
        "ViT-L/14@336",
        "openai/clip-vit-large-patch14-336",
        303507456,
        1024,
        24,
        14,
        336,
    ),
    (
        "siglip-b",
        "siglip",
        "ViT-B/16",
        "google/siglip-base-patch16-224",
        92884224,
        768,
        12,
        16,
        224,
    ),
    (
        "siglip-l",
        "siglip",
        "ViT-L/16@256",
        "google/siglip-large-patch16-256",
        315956224,
        1024,
        24,
        16,
        256,
    ),
    (
        "siglip-so400m",
        "siglip",
        "SO400M/14@384",
        "google/siglip-so400m-patch14-384",
        428225600,
        1152,
        27,
        14,
        384,
    ),
    ("mae-b", "mae", "ViT-B/16", "facebook/vit-mae-base", 85798656, 768, 12, 16, 224),
    ("mae-l", "mae", "ViT-L/16", "facebook/vit-mae-large", 303301632, 1024, 24, 16, 224),
    ("mae-h", "mae", "ViT-H/14", "facebook/vit-mae-huge", 630764800, 1280, 32, 14, 224),
    ("dino-s", "dino", "ViT-S/16", "facebook/dino-vits16", 21665664, 384, 12, 16, 224),
    ("dino-s8", "dino", "ViT-S/8", "facebook/dino-vits8", 21670272, 384, 12, 8, 224),
    ("dino-b", "dino", "ViT-B/16", "facebook/dino-vitb16", 85798656, 768, 12, 16, 224),
    ("dino-b8", "dino", "ViT-B/8", "facebook/dino-vitb8", 85807872, 768, 12, 8, 224),
    ("dinov2-s", "dinov2", "ViT-S/14", "facebook/dinov2-small", 22056576, 384, 12, 14, 224),
    ("dinov2-b", "dinov2", "ViT-B/14", "facebook/dinov2-base", 86580480, 768, 12, 14, 224),
    ("dinov2-l", "dinov2", "ViT-L/14", "facebook/dinov2-large", 304368640, 1024, 24, 14, 224),
    ("dinov2-g", "dinov2", "ViT-g/14", "facebook/dinov2-giant", 1136480768, 1536, 40, 14, 224),
)

_TINY_PARAMETERS = {
    "deit": 1223296,
    "clip": 1223168,
    "siglip": 1222784,
    "mae": 1223040,
    "dino": 1223040,
    "dinov2": 1224704,
}
TINY_FAMILIES = tuple(_TINY_PARAMETERS)


def _released() -> list[EncoderSpec]:
    specs = []
    for name, family, size, repository, parameters, width, depth, patch, resolution in _ROWS:
        display, supervision, data, images, licence, paper = _FAMILIES[family]
        specs.append(
            EncoderSpec(
                name=name,
                display_name=f"{display} {size}",
                family=family,
                source="hf",
                locator=repository,
                supervision=supervision,
                pretraining_data=data,
                pretraining_images=images,
                parameters=parameters,
                width=width,
                depth=depth,
                patch=patch,
                resolution=resolution,
                licence=licence,
                paper=paper,
            )
        )
    return specs


def _tiny() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name=f"tiny-{family}",
            display_name=f"tiny {_FAMILIES[family][0]}",
            family=family,
            source="bundled",
            locator=f"tiny-{family}",
            supervision=_FAMILIES[family][1],
            pretraining_data="scenes",
            pretraining_images="see card",
            parameters=_TINY_PARAMETERS[family],
            width=128,
            depth=6,
            patch=8,
            resolution=64,
            licence="Apache-2.0",
            paper=_FAMILIES[family][5],
        )
        for family in TINY_FAMILIES
    ]


CATALOG: dict[str, EncoderSpec] = {spec.name: spec for spec in [*_tiny(), *_released()]}
