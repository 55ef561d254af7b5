"""The zoo by name: the data, budget and folders that `python -m zoo` and `make zoo` use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from encoder_bench.base.errors import UnknownNameError
from encoder_bench.base.hashing import hash_json
from encoder_bench.base.paths import cache_dir
from encoder_bench.base.progress import Reporter
from zoo.architecture import OBJECTIVES, ObjectiveName
from zoo.pool import ImagePool
from zoo.schedule import Budget

ENCODER_BUDGET = Budget(steps=1300, images_per_step=192)
"""The same for all six, but for the learning rate, which is the objective's; in bfloat16.

Each took 1.5 to 4 minutes on an H200 that four to eight others shared."""
LANGUAGE_BUDGET = Budget(steps=1000, images_per_step=16, learning_rate=2e-3, warmup_fraction=0.05)
"""Of the tiny language model; its images are written pages."""
HELD_OUT_PAGES = 64
"""Of each layout, on which the language model is measured at every checkpoint."""
POOL_IMAGES = {"train": 60_000, "probe": 3_000, "held-out": 1_000}


@dataclass(frozen=True, slots=True)
class Pools:
    """The images of a comparison, drawn or read once for all objectives."""

    train: ImagePool
    probe: ImagePool
    held_out: ImagePool
    tokenizer: Any


def bundled_folder(kind: Literal["encoders", "llm"], name: str) -> Path:
    """Return where the weights of a name ship: `bundled/encoders/tiny-deit` and so on."""
    return Path(str(resources.files("encoder_bench"))) / "bundled" / kind / name


def open_pools(
    data: str, reporter: Reporter, *, images: dict[str, int] | None = None, seed: int = 0
) -> Pools:
    """Draw `scenes` (`images` of each pool), or read a folder of captioned images in COCO's layout.

    Raises:
        DataError: the folder is missing, malformed or too small.
    """
    if data != "scenes":
        from encoder_bench.data.folder import open_data
        from zoo.folder_pool import folder_pools

        pools, tokenizer = folder_pools(open_data(data), reporter)
    else:
        from zoo.language import build_tokenizer_of_grammar
        from zoo.scene_pool import scene_pool

        tokenizer = build_tokenizer_of_grammar()
        pools = {
            name: scene_pool(name, count, tokenizer=tokenizer, reporter=reporter, seed=seed)
            for name, count in (images or POOL_IMAGES).items()
        }
    return Pools(pools["train"], pools["probe"], pools["held-out"], tokenizer)


def pretrain(
    objective: str,
    *,
    data: str = "scenes",
    budget: Budget = ENCODER_BUDGET,
    output: Path | None = None,
    reporter: Reporter,
    seed: int = 0,
    device: torch.device | None = None,
    pools: Pools | None = None,
) -> dict[str, Any]:
    """Pretrain one encoder by its objective, write weights and card, and return the card; resumes.

    `data` is `scenes` or a folder of captioned images in COCO's layout, unless `pools` are given.
    The bundled folder is written by default, on a GPU where there is one.

    Raises:
        UnknownNameError: not an objective.
        DataError: the folder is missing, malformed or too small.
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    from zoo.encoder import pretrain_encoder

    name = _objective(objective)
    pools = pools or open_pools(data, reporter, seed=seed)
    key = hash_json([name, budget.as_json(), seed, pools.train.description, len(pools.tokenizer)])[
        :16
    ]
    return pretrain_encoder(
        name,
        budget,
        train_pool=pools.train,
        probe_pool=pools.probe,
        test_pool=pools.held_out,
        tokenizer=pools.tokenizer,
        output=output or bundled_folder("encoders", f"tiny-{name}"),
        work=cache_dir("pretrain", f"{name}-{key}"),
        reporter=reporter,
        seed=seed,
        device=device or default_device(),
    )


def zoo(
    *,
    data: str = "scenes",
    budget: Budget = ENCODER_BUDGET,
    language_budget: Budget = LANGUAGE_BUDGET,
    output: Path | None = None,
    reporter: Reporter,
    seed: int = 0,
    images: dict[str, int] | None = None,
    held_out_pages: int = HELD_OUT_PAGES,
    device: torch.device | None = None,
) -> list[dict[str, Any]]:
    """Pretrain the tiny language model and all six encoders on one budget; resumes.

    `output` gets `encoders/` and `llm/`; the package's own folder by default.

    Returns:
        The cards of the encoders.
    """
    root = output or bundled_folder("llm", "x").parent.parent
    pretrain_llm(
        budget=language_budget,
        output=root / "llm" / "tiny-llama",
        reporter=reporter,
        seed=seed,
        held_out_pages=held_out_pages,
        device=device,
    )
    pools = open_pools(data, reporter, images=images, seed=seed)
    return [
        pretrain(
            name,
            budget=budget,
            output=root / "encoders" / f"tiny-{name}",
            reporter=reporter,
            seed=seed,
            device=device,
            pools=pools,
        )
        for name in OBJECTIVES
    ]


def pretrain_llm(
    *,
    budget: Budget = LANGUAGE_BUDGET,
    output: Path | None = None,
    reporter: Reporter,
    seed: int = 0,
    held_out_pages: int = HELD_OUT_PAGES,
    device: torch.device | None = None,
) -> None:
    """Pretrain the tiny language model and write weights and card; resumes.

    Raises:
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    from zoo.language import pretrain_language_model
    from zoo.written_scenes import shipped_prompts

    prompts = shipped_prompts()
    key = hash_json([budget.as_json(), seed, asdict(prompts)])[:16]
    pretrain_language_model(
        budget,
        work=cache_dir("pretrain", f"tiny-llama-{key}"),
        output=output or bundled_folder("llm", "tiny-llama"),
        prompts=prompts,
        reporter=reporter,
        seed=seed,
        held_out_count=held_out_pages,
        device=device or default_device(),
    )


def default_device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _objective(name: str) -> ObjectiveName:
    for known in OBJECTIVES:
        if known == name:
            return known
    raise UnknownNameError("objective", name, OBJECTIVES)
