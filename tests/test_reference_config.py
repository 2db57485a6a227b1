"""The authors' configuration files, as settings of ours."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import openjepa
from openjepa.errors import UserError
from openjepa.masks import make_masks
from openjepa.presets import preset
from openjepa.reference_config import from_reference_config, is_reference_config
from openjepa.settings import load_config

# The facts of their configs/in1k_vith14_ep300.yaml.
THEIRS: dict[str, Any] = {
    "data": {
        "batch_size": 128, "color_jitter_strength": 0.0, "crop_scale": [0.3, 1.0], "crop_size": 224,
        "image_folder": "imagenet_full_size/061417/", "num_workers": 10, "pin_mem": True, "root_path": "$$",
        "use_color_distortion": False, "use_gaussian_blur": False, "use_horizontal_flip": False,
    },
    "logging": {"folder": "$$", "write_tag": "jepa"},
    "mask": {
        "allow_overlap": False, "aspect_ratio": [0.75, 1.5], "enc_mask_scale": [0.85, 1.0], "min_keep": 10,
        "num_enc_masks": 1, "num_pred_masks": 4, "patch_size": 14, "pred_mask_scale": [0.15, 0.2],
    },
    "meta": {
        "copy_data": False, "load_checkpoint": False, "model_name": "vit_huge", "pred_depth": 12,
        "pred_emb_dim": 384, "read_checkpoint": None, "use_bfloat16": True,
    },
    "optimization": {
        "ema": [0.996, 1.0], "epochs": 300, "final_lr": 1.0e-06, "final_weight_decay": 0.4, "ipe_scale": 1.0,
        "lr": 0.001, "start_lr": 0.0002, "warmup": 40, "weight_decay": 0.04,
    },
}  # fmt: skip


def changed(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {**THEIRS, section: {**THEIRS[section], name: value}}


def test_their_recipe_is_our_preset() -> None:
    settings = from_reference_config(THEIRS, where="in1k.yaml")
    config = load_config(preset("reference"), changes=settings)
    ours = load_config(preset("reference"), changes={"data.batch_size": 128, "runtime.precision": "bfloat16"})
    parts = {"model", "masks"}
    assert config.model_dump(exclude=parts) == ours.model_dump(exclude=parts)
    assert make_masks("reference", grid=(16, 16), **config.masks.settings()) == make_masks(
        "reference", grid=(16, 16)
    )
    assert config.model.predictor_depth == 12


def test_other_files_are_ours() -> None:
    assert is_reference_config(THEIRS)
    assert not is_reference_config({"data": {"batch_size": 8}, "optim": {"lr": 1e-3}})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.use_gaussian_blur", True, r"not supported: data\.use_gaussian_blur=True; set .*=False"),
        ("mask.allow_overlap", True, r"not supported: mask\.allow_overlap=True"),
        ("optimization.ipe_scale", 1.25, r"not supported: optimization\.ipe_scale=1\.25"),
        ("meta.new_thing", 3, r"not supported: meta\.new_thing"),
        ("optimization.ema", 0.99, r"optimization\.ema=0\.99 can't be read"),
    ],
)
def test_what_we_have_not_is_named(key: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_reference_config(changed(key, value), where="in1k.yaml")


def test_it_trains(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    small = changed("data.batch_size", 4)
    small["data"] |= {"crop_size": 64, "num_workers": 0}
    small["mask"] = {**small["mask"], "patch_size": 8, "min_keep": 1}
    small["meta"] = {**small["meta"], "model_name": "vit_pico", "pred_depth": 1, "pred_emb_dim": 32}
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(small))
    openjepa.pretrain(
        data=tmp_path / "photos", out=tmp_path / "run", config=tmp_path / "theirs.yaml", steps=2,
        set=["log.tensorboard=false"],
    )  # fmt: skip
    told = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert told["masks"]["name"] == "reference"
    assert told["optim"]["name"] == "adamw"
    assert told["model"]["name"] == "vit_pico"
    with pytest.raises(UserError, match="brings its own preset"):
        openjepa.pretrain(
            data=tmp_path / "photos",
            out=tmp_path / "other",
            config=tmp_path / "theirs.yaml",
            preset="small",
            steps=2,
        )
