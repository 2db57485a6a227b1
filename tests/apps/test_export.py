"""Exports, read by the very libraries that they are for: the same features everywhere."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import openjepa
from openjepa.apps.export import REFERENCE, export
from openjepa.errors import CheckpointError, UserError
from openjepa.formats.reference import write_reference
from openjepa.hub import load
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.models.vit import SIZES

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["tiny-32-p4", "small-56-p8"]


def heads(case: str) -> int:
    return int(json.loads((GOLDEN / f"{case}.json").read_text())["num_heads"])


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest feature."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def perturbed(name: str, *, depth: int | None = None, side: int = 32) -> IJEPA:
    """A model of a published size, no part of which is without effect."""
    size = SIZES[name]
    architecture = Architecture(
        image_size=(side, side), patch_size=(16, 16), in_channels=3, embed_dim=size.embed_dim,
        depth=depth or size.depth, num_heads=size.num_heads, mlp_ratio=size.mlp_ratio, predictor_dim=96,
        predictor_depth=1, predictor_heads=size.num_heads,
    )  # fmt: skip
    model = build_ijepa(architecture)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(model: IJEPA, folder: Path) -> Path:
    """As an authors' file, which `openjepa.load` takes."""
    write_reference(folder / "model.pth.tar", model.state_dict())
    return folder / "model.pth.tar"


@pytest.mark.parametrize("case", CASES)
def test_the_authors_files_through_transformers(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    golden = load_file(GOLDEN / f"{case}.safetensors")
    export(GOLDEN / f"{case}-before.pth.tar", to="hf", out=tmp_path / "hf", num_heads=heads(case))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        found = theirs(pixel_values=golden["step0.images"]).last_hidden_state
    assert difference(found, golden["step0.target_encoder_out"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "depth"),
    [("vit_tiny", None), ("vit_small", None), ("vit_base", None),
     pytest.param("vit_huge", 2, marks=pytest.mark.slow), pytest.param("vit_giant", 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_round_trips(name: str, depth: int | None, tmp_path: Path) -> None:
    """Ours to transformers and back, to timm, to the authors' and back: identical tensors, equal features."""
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")
    transformers.logging.disable_progress_bar()
    model = perturbed(name, depth=depth)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.target_encoder(images)
    path = saved(model, tmp_path)

    export(path, to="hf", out=tmp_path / "hf")
    back = load(tmp_path / "hf")
    for key, tensor in model.target_encoder.state_dict().items():
        assert torch.equal(back.target_encoder.state_dict()[key], tensor), key
        assert torch.equal(back.context_encoder.state_dict()[key], tensor), key
    for key, tensor in model.predictor.state_dict().items():
        assert torch.equal(back.predictor.state_dict()[key], tensor), key
    theirs = transformers.IJepaModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert difference(theirs(pixel_values=images).last_hidden_state, expected) < 1e-5

    export(path, to="timm", out=tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        assert difference(theirs.forward_features(images), expected) < 1e-5
        assert difference(theirs(images), expected.mean(1)) < 1e-5
    for file in (tmp_path / "hf" / "model.safetensors", tmp_path / "timm" / "model.safetensors"):
        assert file.stat().st_mode == file.with_name("config.json").stat().st_mode
    again = load(tmp_path / "timm")
    for key, tensor in model.target_encoder.state_dict().items():
        assert torch.equal(again.target_encoder.state_dict()[key], tensor), key
    assert again.shape.num_heads == model.shape.num_heads
    assert "target_encoder" in (tmp_path / "timm" / "config.json").read_text()
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["mean"]) == (0.485, 0.456, 0.406)
    assert tuple(data["input_size"]) == (3, 32, 32)

    export(path, to="reference", out=tmp_path / "reference")
    again = torch.load(tmp_path / "reference" / REFERENCE, weights_only=True)
    first = torch.load(path, weights_only=True)
    assert again.keys() == first.keys()
    for part in ("encoder", "target_encoder", "predictor"):
        assert list(again[part]) == list(first[part])
        assert all(torch.equal(again[part][key], tensor) for key, tensor in first[part].items())


@pytest.mark.parametrize("case", CASES)
def test_the_authors_files_and_back_with_their_optimiser(case: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{case}-after.pth.tar"
    theirs = torch.load(path, weights_only=True)
    export(path, to="reference", out=tmp_path / "out", num_heads=heads(case))
    ours = torch.load(tmp_path / "out" / REFERENCE, weights_only=True)
    assert ours.keys() == theirs.keys()
    for part in ("encoder", "target_encoder", "predictor"):
        assert list(ours[part]) == list(theirs[part])
        for key, tensor in theirs[part].items():
            assert torch.equal(ours[part][key], tensor), key
    for key in ("epoch", "loss", "batch_size", "world_size", "lr"):
        assert ours[key] == theirs[key], key
    assert ours["opt"]["state"].keys() == theirs["opt"]["state"].keys()
    for place, moments in theirs["opt"]["state"].items():
        for moment, tensor in moments.items():
            assert torch.equal(torch.as_tensor(ours["opt"]["state"][place][moment]), torch.as_tensor(tensor))
    for mine, other in zip(ours["opt"]["param_groups"], theirs["opt"]["param_groups"], strict=True):
        assert mine["params"] == other["params"]
        assert mine.get("WD_exclude", False) == other.get("WD_exclude", False)


def test_context_encoder_by_switch(tmp_path: Path) -> None:
    model = perturbed("vit_tiny", depth=2)
    path = saved(model, tmp_path)
    for which in ("target", "context"):
        export(path, to="hf", out=tmp_path / which, encoder=which)
        facts = json.loads((tmp_path / which / "openjepa.json").read_text())
        assert facts["encoder"] == which
        network = model.target_encoder if which == "target" else model.context_encoder
        assert torch.equal(
            load(tmp_path / which).target_encoder.blocks[0].mlp.fc1.weight,  # type: ignore[union-attr]
            network.blocks[0].mlp.fc1.weight,  # type: ignore[union-attr]
        )


def test_onnx_in_onnxruntime_and_torch_export(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = saved(model := perturbed("vit_tiny", depth=2), tmp_path)
    export(path, to="onnx", out=tmp_path / "onnx")
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "encoder.onnx"))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["openjepa"])
    assert facts["encoder"] == "target"
    assert facts["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    told = {"openjepa": ""}
    program = torch.export.load(tmp_path / "onnx" / "encoder.pt2", extra_files=told).module()
    assert json.loads(told["openjepa"]) == facts
    for num in (1, 5):
        images = torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(num))
        with torch.no_grad():
            expected = model.target_encoder(images)
            patches, embedding = program(images)
        found = session.run(["patches", "embedding"], {"images": images.numpy()})
        assert difference(torch.from_numpy(found[0]), expected) < 1e-5
        assert difference(torch.from_numpy(found[1]), expected.mean(1)) < 1e-5
        assert difference(patches, expected) < 1e-5
        assert difference(embedding, expected.mean(1)) < 1e-5


def test_a_linear_head_becomes_their_classifier(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    path = saved(perturbed("vit_tiny", depth=2), tmp_path)
    draw = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "images" / ("dark" if number % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 120, (32, 32, 3)) + (0 if number % 2 else 130)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    openjepa.evaluate(
        path, train=tmp_path / "images", test=tmp_path / "images", protocols=["logistic"],
        save_head=tmp_path / "head",
    )  # fmt: skip
    export(path, to="hf", out=tmp_path / "hf", head=tmp_path / "head")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.id2label == {0: "dark", 1: "light"}
    out = openjepa.predict(path, tmp_path / "images", head=tmp_path / "head", out=tmp_path / "classes.csv")
    chances = [float(line.rpartition(",")[2]) for line in out.read_text().splitlines()[1:]]
    files = sorted((tmp_path / "images").rglob("*.png"))
    model = load(tmp_path / "hf")
    assert model.preprocess is not None
    with torch.no_grad():
        logits = theirs(pixel_values=torch.cat([model.preprocess(file) for file in files])).logits
    assert logits.softmax(1).max(1).values.tolist() == pytest.approx(
        chances, abs=1e-2
    )  # bfloat16, where it pays
    labels = [theirs.config.id2label[int(place)] for place in logits.argmax(1)]
    assert [line.split(",")[1] for line in out.read_text().splitlines()[1:]] == labels


def test_the_image_processor_prepares_as_we_do(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(saved(perturbed("vit_tiny", depth=1), tmp_path), to="hf", out=tmp_path / "hf")
    low = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(low).resize((70, 70), Image.Resampling.BICUBIC)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")(photo, return_tensors="pt")
    model = load(tmp_path / "hf")
    assert model.preprocess is not None
    ours = model.preprocess(photo)
    assert theirs["pixel_values"].shape == ours.shape
    assert float((theirs["pixel_values"] - ours).abs().mean()) < 0.05  # another resize, the same picture


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _flip_a_bit(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-500] ^= 4
    file.write_bytes(content)


def _lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _other_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))


def _other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))


def _rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "openjepa.json").unlink()


def _miss_a_key(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.pop("layernorm.weight"))


def _have_one_too_many(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.update({"pooler.dense.weight": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (_truncate, r"model\.safetensors: missing, or not as it was written"),
        (_flip_a_bit, r"model\.safetensors: missing, or not as it was written"),
        (_lose_weights, r"model\.safetensors: missing"),
        (_other_kind, r"model_type is 'vit'; only 'ijepa'"),
        (_other_width, r"mlp\.fc1\.weight: expected \(100, 192\), found \(768, 192\)"),
        (_miss_a_key, r"missing: context_encoder\.norm\.weight"),
        (_have_one_too_many, r"unexpected: context_encoder\.pooler\.dense\.weight"),
    ],
)
def test_folders_that_are_not_whole_are_refused(break_it: Any, words: str, tmp_path: Path) -> None:
    export(saved(perturbed("vit_tiny", depth=1), tmp_path), to="hf", out=tmp_path / "hf")
    break_it(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "hf")


def test_heads_must_be_those_recorded(tmp_path: Path) -> None:
    export(saved(perturbed("vit_tiny", depth=1), tmp_path), to="hf", out=tmp_path / "hf")
    with pytest.raises(CheckpointError, match="recorded with 3 heads, --num-heads says 6"):
        load(tmp_path / "hf", num_heads=6)
    with pytest.raises(CheckpointError, match="--num-heads"):
        export(GOLDEN / "tiny-32-p4-before.pth.tar", to="hf", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pth.tar").write_bytes(pickle.dumps(Evil()))
    torch.save({"encoder": Evil()}, tmp_path / "evil2.pth.tar")
    for name in ("evil.pth.tar", "evil2.pth.tar"):
        with pytest.raises(CheckpointError, match="could run code"):
            export(tmp_path / name, to="hf", out=tmp_path / "hf")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_of_the_authors_is_refused(tmp_path: Path) -> None:
    whole = (GOLDEN / "tiny-32-p4-before.pth.tar").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 8
    for name, content in (("short", whole[:-2000]), ("flipped", bytes(flipped))):
        (tmp_path / f"{name}.pth.tar").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"\.pth\.tar: (can't be read|refused)"):
            load(tmp_path / f"{name}.pth.tar", num_heads=3)


def test_a_half_written_export_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = saved(perturbed("vit_tiny", depth=1), tmp_path), tmp_path / "hf"

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("openjepa.formats.exported.save_file", fail)
        with pytest.raises(UserError, match="No space left on device"):
            export(path, to="hf", out=out)
    assert not list(tmp_path.glob("hf*"))
    export(path, to="hf", out=out)
    with pytest.raises(UserError, match="--overwrite"):
        export(path, to="hf", out=out)
    export(path, to="timm", out=out, overwrite=True)
    assert not (out / "openjepa.json").exists()
    shutil.rmtree(out)


def test_a_head_of_several_layers_has_no_home(tmp_path: Path) -> None:
    path = saved(perturbed("vit_tiny", depth=4), tmp_path)
    for number in range(24):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 + 150 * (number % 2), 5 * number, 99)).save(folder / f"{number}.png")
    data: dict[str, Any] = {
        "train": tmp_path / "images",
        "test": tmp_path / "images",
        "protocols": ["linear"],
    }
    fast = ["linear.min_steps=20", "linear.epochs=2"]
    openjepa.evaluate(path, **data, set=[*fast, "linear.layers=1"], save_head=tmp_path / "one")
    export(path, to="hf", out=tmp_path / "hf", head=tmp_path / "one")
    head = json.loads((tmp_path / "one" / "head.json").read_text())
    (tmp_path / "one" / "head.json").write_text(json.dumps({**head, "num_layers": 4}))
    with pytest.raises(UserError, match=r"--set linear\.layers=1"):
        export(path, to="hf", out=tmp_path / "other", head=tmp_path / "one")
    (tmp_path / "one" / "head.json").write_text(json.dumps({**head, "pooling": "grid3"}))
    with pytest.raises(UserError, match=r"sees the patches pooled by grid3, and .* their mean"):
        export(path, to="hf", out=tmp_path / "other", head=tmp_path / "one")
    (tmp_path / "one" / "head.json").write_text(json.dumps({**head, "weights_sha256": "0"}))
    with pytest.raises(CheckpointError, match="whose weights are others"):
        export(path, to="hf", out=tmp_path / "other", head=tmp_path / "one")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "tensorrt"}, "--to 'tensorrt': expected hf, timm, onnx, reference"),
        ({"to": "hf", "encoder": "both"}, "--encoder 'both'"),
        ({"to": "timm", "head": "x"}, "--head goes with --to hf"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        export(tmp_path / "none", out=tmp_path / "out", **options)


def test_a_run_of_ours_goes_on_in_the_authors_code(tmp_path: Path) -> None:
    """What it needs: AdamW's moments of each trained parameter, in the authors' four groups, and the epoch."""
    draw = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    small = ["data.image_size=32", "data.batch_size=4", "model.embed_dim=16", "model.depth=1", "model.num_heads=2",
             "model.predictor_dim=8", "model.predictor_depth=1", "log.tensorboard=false"]  # fmt: skip
    for name in ("adamw", "muon"):
        openjepa.pretrain(
            data=tmp_path / "photos",
            out=tmp_path / name,
            preset="small",
            steps=6,
            set=[*small, f"optim.name={name}"],
        )
        export(tmp_path / name, to="reference", out=tmp_path / f"{name}-theirs")
    told = torch.load(tmp_path / "adamw-theirs" / REFERENCE, weights_only=True)
    assert (told["epoch"], told["batch_size"]) == (3, 4)
    parts = [torch.nn.ParameterDict(), torch.nn.ParameterDict()]
    for part, name in zip(parts, ("encoder", "predictor"), strict=True):
        for key, tensor in told[name].items():
            part[key.replace(".", "/")] = torch.nn.Parameter(tensor, requires_grad="pos_embed" not in key)
    matrices = [[p for key, p in part.items() if p.ndim != 1 and "bias" not in key] for part in parts]
    vectors = [[p for key, p in part.items() if p.ndim == 1 or "bias" in key] for part in parts]
    theirs = torch.optim.AdamW([{"params": params} for params in (*matrices, *vectors)])
    theirs.load_state_dict(told["opt"])
    assert all((p in theirs.state) == p.requires_grad for part in parts for p in part.values())
    first = parts[0]["module/patch_embed/proj/weight"]
    assert theirs.state[first]["exp_avg"].shape == first.shape
    assert float(theirs.state[first]["step"]) == 6
    anew = torch.load(tmp_path / "muon-theirs" / REFERENCE, weights_only=True)
    assert anew["opt"]["state"] == {}
