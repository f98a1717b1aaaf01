"""Folders of pairs, generated pairs, and what each says about bad input."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ragrad_ext.detection.data import datasets as data
from ragrad_ext.detection.data.datasets import PairedFolder, Scenes, collate, open_data

W, H = 40, 20


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pairs of 40 x 20 pixels: 1D with two objects, 2N with one, 3N with none."""
    for name in ("visible", "infrared", "labels"):
        (tmp_path / name).mkdir()
    for i, name in enumerate(("1D", "2N", "3N")):
        Image.fromarray(pixels(i, H, W, 3)).save(tmp_path / "visible" / f"{name}.png")
        Image.fromarray(pixels(i + 10, H, W)).save(tmp_path / "infrared" / f"{name}.png")
    (tmp_path / "labels" / "1D.txt").write_text("0 0.5 0.5 0.5 0.5\n2 0.25 0.5 0.5 1.0\n")
    (tmp_path / "labels" / "2N.txt").write_text("1 0.1 0.2 0.1 0.2\n\n")
    (tmp_path / "labels" / "3N.txt").write_text("")
    (tmp_path / "classes.txt").write_text("person\nbicycle\ncar\n")
    (tmp_path / "train.txt").write_text("2N\n1D\n")
    (tmp_path / "val.txt").write_text("3N\n")
    return tmp_path


# ---- a folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
def test_folder_by_hand(folder: Path, cache: bool) -> None:
    dataset = PairedFolder(folder, None, cache=cache)
    assert dataset.classes == ("person", "bicycle", "car")
    assert dataset.ids == ["1D", "2N", "3N"]
    assert dataset.conditions == ["day", "night", "night"]
    image, target = dataset[0]
    assert image.dtype == torch.float32
    expected = np.concatenate([pixels(0, H, W, 3), pixels(10, H, W)[..., None]], 2)
    assert np.array_equal((image * 255).round().numpy(), expected.transpose(2, 0, 1))
    assert target["boxes"].tolist() == [[10, 5, 30, 15], [0, 0, 20, 20]]
    assert target["labels"].tolist() == [1, 3]
    assert (target["image_id"], target["condition"]) == (0, "day")
    assert target["degradation"].isnan().tolist() == [True, True]
    assert dataset[2][1]["boxes"].shape == (0, 4)
    assert dataset[2][1]["labels"].dtype == torch.int64


def test_splits_keep_the_order_of_their_lists(folder: Path) -> None:
    assert PairedFolder(folder, "train").ids == ["2N", "1D"]
    assert PairedFolder(folder, "val").ids == ["3N"]
    assert [t["image_id"] for _, t in PairedFolder(folder, "train")] == [0, 1]


def test_samples_are_the_callers_to_change(folder: Path) -> None:
    for dataset in (PairedFolder(folder, None), Scenes(1)):
        image, target = dataset[0]
        before = image.clone(), target["boxes"].clone()
        image.zero_()
        target["boxes"].zero_()
        again, same = dataset[0]
        assert torch.equal(again, before[0])
        assert torch.equal(same["boxes"], before[1])


def test_infrared_of_three_channels_becomes_grey(folder: Path) -> None:
    grey = pixels(10, H, W)
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(folder / "infrared" / "1D.png")
    image = PairedFolder(folder, None)[0][0]
    assert image.shape == (4, H, W)
    assert np.array_equal((image[3] * 255).round().numpy(), grey)


def test_suffixes_may_differ_within_a_pair_and_other_files_are_left(folder: Path) -> None:
    (folder / "infrared" / "1D.png").rename(folder / "infrared" / "1D.PNG")
    (folder / "infrared" / "notes.md").write_text("")
    assert len(PairedFolder(folder, None)) == 3


def test_label_folders(folder: Path) -> None:
    (folder / "labels").rename(folder / "labels_fusion")
    assert len(PairedFolder(folder, None)[0][1]["labels"]) == 2
    (folder / "labels_fusion").rename(folder / "labels_visible")
    assert len(PairedFolder(folder, None, "labels_visible")[0][1]["labels"]) == 2
    with pytest.raises(
        FileNotFoundError, match=r"labels or labels_fusion.*name one of: labels_vis"
    ):
        PairedFolder(folder, None)
    with pytest.raises(FileNotFoundError, match=r"no folder mine in .*name one of: labels_visible"):
        PairedFolder(folder, None, "mine")


def test_conditions_from_the_file_or_all(folder: Path) -> None:
    (folder / "conditions.txt").write_text("1D fog\n2N night\n3N fog\n4X unused\n")
    assert PairedFolder(folder, None).conditions == ["fog", "night", "fog"]
    (folder / "conditions.txt").unlink()
    for kind, end in (("visible", "png"), ("infrared", "png"), ("labels", "txt")):
        (folder / kind / f"3N.{end}").rename(folder / kind / f"30.{end}")
    assert PairedFolder(folder, None).conditions == ["all"] * 3


def test_boxes_that_rounding_pushed_over_the_border_are_cut_back(folder: Path) -> None:
    (folder / "labels" / "1D.txt").write_text("0 0.950001 0.5 0.1 1.0005")
    assert PairedFolder(folder, None)[0][1]["boxes"][0, 1:].tolist() == [0, W, H]


def test_large_folders_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, read = PairedFolder(folder, None), PairedFolder(folder, None, cache=False)
    monkeypatch.setattr(data, "CACHE_BYTES", 3 * 4 * W * H - 1)
    large, images = PairedFolder(folder, None), [image for image, _ in kept]
    shutil.rmtree(folder / "visible")
    assert all(torch.equal(kept[i][0], image) for i, image in enumerate(images))
    for dataset in (read, large):
        with pytest.raises(ValueError, match="cannot be decoded"):
            dataset[0]


def test_images_that_do_not_fit_into_shared_memory_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("No space left on device")

    dataset = PairedFolder(folder, None)
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(ValueError, match=r"do not fit into shared memory .*No space.*--jobs 1"):
        dataset.share_memory_()


# ---- bad folders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", r"1D.txt:2: found '0 0.5 0.5 0.5'; write 'class cx cy w h'"),
        ("0 0.5 0.5 0.5 0.5 0.9", "1D.txt:2: found .*write 'class cx cy w h'"),
        ("car 0.5 0.5 0.5 0.5", "1D.txt:2: found 'car 0.5 0.5 0.5 0.5'"),
        ("3 0.5 0.5 0.5 0.5", r"1D.txt:2: class 3, but classes.txt has 3 \(0 to 2\)"),
        ("-1 0.5 0.5 0.5 0.5", "1D.txt:2: class -1, but"),
        ("0 0.9 0.5 0.5 0.5", "1D.txt:2: box 0.9 0.5 0.5 0.5 is empty or leaves the image"),
        ("0 20 10 8 4", "1D.txt:2: box 20 10 8 4 is empty or leaves.*relative to it"),
        ("0 0.5 0.5 0 0.5", "1D.txt:2: box 0.5 0.5 0 0.5 is empty"),
        ("0 nan 0.5 0.5 0.5", "1D.txt:2: box nan 0.5 0.5 0.5 is empty or leaves"),
    ],
)
def test_bad_label_lines(folder: Path, line: str, message: str) -> None:
    (folder / "labels" / "1D.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(ValueError, match=message):
        PairedFolder(folder, None)


def test_missing_twins(folder: Path) -> None:
    (folder / "infrared" / "1D.png").unlink()
    with pytest.raises(ValueError, match=r"infrared: no image of id '1D', but the other image"):
        PairedFolder(folder, None)
    with pytest.raises(ValueError, match=r"infrared: no image of id '1D', but train.txt lists it"):
        PairedFolder(folder, "train")
    assert len(PairedFolder(folder, "val")) == 1  # which does not need it
    (folder / "visible" / "2N.png").unlink()
    with pytest.raises(ValueError, match=r"visible: no image of id '2N'"):
        PairedFolder(folder, None)


def test_missing_label_file(folder: Path) -> None:
    (folder / "labels" / "3N.txt").unlink()
    with pytest.raises(
        ValueError, match=r"3N.txt: no such file; an image without objects has an e"
    ):
        PairedFolder(folder, None)


def test_pairs_of_two_sizes(folder: Path) -> None:
    Image.fromarray(pixels(0, H, W + 2)).save(folder / "infrared" / "2N.png")
    with pytest.raises(ValueError, match=r"2N.png: 42x20 pixels where .*2N.png has 40x20; align"):
        PairedFolder(folder, None, cache=False)


def test_more_than_eight_bits(folder: Path) -> None:
    Image.fromarray(pixels(0, H, W).astype(np.uint16) * 100).save(folder / "infrared" / "2N.png")
    with pytest.raises(ValueError, match=r"2N.png: pixels of more than 8 bits \(I;16\); convert"):
        PairedFolder(folder, None)


def test_not_an_image(folder: Path) -> None:
    (folder / "visible" / "1D.png").write_text("no image")
    with pytest.raises(ValueError, match=r"visible/1D.png: not a readable image; replace it"):
        PairedFolder(folder, None, cache=False)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(folder: Path, suffix: str) -> None:
    """Its header is fine: found at once where images are kept, else when it is read."""
    (folder / "visible" / "1D.png").unlink()
    path = folder / "visible" / f"1D.{suffix}"
    Image.fromarray(pixels(0, H, W, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=rf"1D.{suffix}: cannot be decoded .*; replace it"):
        PairedFolder(folder, None)
    dataset = PairedFolder(folder, None, cache=False)
    with pytest.raises(ValueError, match=rf"1D.{suffix}: cannot be decoded"):
        dataset[0]


def test_one_id_twice(folder: Path) -> None:
    Image.fromarray(pixels(0, H, W, 3)).save(folder / "visible" / "1D.jpg")
    with pytest.raises(ValueError, match=r"1D.png: 1D.jpg has the same id; keep one"):
        PairedFolder(folder, None)
    (folder / "visible" / "1D.jpg").unlink()
    (folder / "train.txt").write_text("1D\n2N\n1D\n")
    with pytest.raises(ValueError, match=r"train.txt: id '1D' is listed more than once"):
        PairedFolder(folder, "train")


def test_bad_conditions(folder: Path) -> None:
    (folder / "conditions.txt").write_text("1D fog\n2N very dark\n3N fog\n")
    with pytest.raises(
        ValueError, match=r"conditions.txt:2: found '2N very dark'(.|\n)*for id '2N'"
    ):
        PairedFolder(folder, None)


def test_problems_are_listed_together(folder: Path) -> None:
    (folder / "labels" / "1D.txt").write_text("x\n" * 4)
    (folder / "infrared" / "3N.png").unlink()
    (folder / "visible" / "2N.png").write_text("")
    with pytest.raises(ValueError, match=r"cannot be used as it is") as error:
        PairedFolder(folder, None)
    lines = str(error.value).splitlines()
    assert len(lines) == 7  # the folder, five problems, how many more
    assert "3N" in lines[1]
    assert "2N.png" in lines[2]
    assert "1D.txt:1" in lines[3]
    assert lines[-1] == "- ... and 1 more"


def test_missing_parts(folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no file .*test.txt; write one id per line; .*--split all"
    ):
        PairedFolder(folder, "test")
    (folder / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train.txt is empty; write one id per line"):
        PairedFolder(folder, "train")
    (folder / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*classes.txt; write one class name per"):
        PairedFolder(folder, None)
    (folder / "classes.txt").write_text("person\n")
    (folder / "infrared").rename(folder / "thermal")
    with pytest.raises(FileNotFoundError, match=r"no folder .*infrared; pairs are in visible/ and"):
        PairedFolder(folder, None)
    (folder / "infrared").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*infrared; they end in .jpg"):
        PairedFolder(folder, None)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; pass 'scenes' or a folder"):
        open_data(folder / "nowhere", "train")


# ---- scenes ----------------------------------------------------------------------------------


def test_scenes_samples() -> None:
    dataset = Scenes(7, seed=3, size=(128, 96))
    assert len(dataset) == 7
    assert dataset.classes == ("person", "bicycle", "car")
    assert dataset.conditions[:6] == ["day", "night", "fog", "crossover", "glare", "day"]
    samples = list(dataset)
    assert len(samples) == 7
    for i, (image, target) in enumerate(samples):
        assert image.shape == (4, 96, 128)
        assert image.dtype == target["boxes"].dtype == target["degradation"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert (target["image_id"], target["condition"]) == (i, dataset.conditions[i])
        assert target["degradation"].shape == (2,)
        assert 0 <= image.min() <= image.max() <= 1


def test_generated_and_kept_are_the_same() -> None:
    kept, painted = Scenes(4, seed=1), Scenes(4, seed=1, cache=False)
    for i in (3, 0, 3):
        (a, first), (b, second) = kept[i], painted[i]
        assert torch.equal(a, b)
        assert torch.equal(first["boxes"], second["boxes"])
    assert kept.image(3) is kept.image(3)
    assert painted.image(3) is not painted.image(3)


def test_forced_degradation() -> None:
    dataset = Scenes(5, degradation=(None, 0.9))
    natural = Scenes(5)
    for i in range(5):
        forced = dataset[i][1]["degradation"]
        assert forced[1] == pytest.approx(0.9)
        assert forced[0] == natural[i][1]["degradation"][0]


def test_train_and_val_never_share_a_scene() -> None:
    seen = [
        dataset.image(i).numpy().tobytes()
        for seed in (0, 1)
        for split in ("train", "val")
        for dataset in [open_data(None, split, n=5, seed=seed)]
        for i in range(5)
    ]
    assert len(set(seen)) == 20
    again = open_data("scenes", "val", n=5)
    assert again.image(2).numpy().tobytes() == seen[7]


def test_bad_scenes() -> None:
    with pytest.raises(ValueError, match=r"n is the number of scenes, at least 1, found 0"):
        Scenes(0)
    with pytest.raises(ValueError, match=r"unknown condition 'rain'"):
        Scenes(3, conditions=("day", "rain"))
    with pytest.raises(ValueError, match=r"at least 96 pixels"):
        Scenes(3, size=(64, 64))
    with pytest.raises(ValueError, match=r"degradation of ir"):
        Scenes(3, degradation=(None, 2.0))
    with pytest.raises(ValueError, match=r"splits train and val, found None"):
        open_data("scenes", None)
    with pytest.raises(IndexError, match=r"image 3 of 3"):
        Scenes(3)[3]


def test_collate() -> None:
    images, targets = collate([Scenes(2)[0], Scenes(2, size=(128, 96))[1]])
    assert [i.shape for i in images] == [(4, 128, 160), (4, 96, 128)]
    assert [t["image_id"] for t in targets] == [0, 1]


# ---- real pairs ------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(("split", "count"), [("train", 218), ("val", 72), (None, 290)])
def test_msrs(real_data: Path, split: str | None, count: int) -> None:
    dataset = open_data(real_data / "msrs", split, cache=False)
    assert len(dataset) == count
    assert dataset.classes == ("person", "bicycle", "car")
    assert set(dataset.conditions) == {"day", "night"}
    assert dataset[0][0].shape == (4, 288, 384)
    targets = [dataset.target(i) for i in range(count)]
    if split is None:
        labels = Counter(k for t in targets for k in t["labels"].tolist())
        assert labels == {1: 717, 2: 98, 3: 365}
        assert sum(not len(t["labels"]) for t in targets) == 27
    for target in targets:
        boxes = target["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([384, 288, 384, 288])).all()


@pytest.mark.data
def test_msrs_labels_of_one_modality(real_data: Path) -> None:
    """The infrared labels hold more at night than the visible ones."""
    counts = [
        sum(
            len(dataset.target(i)["labels"])
            for i, condition in enumerate(dataset.conditions)
            if condition == "night"
        )
        for name in ("labels_visible", "labels_infrared")
        for dataset in [open_data(real_data / "msrs", None, labels=name, cache=False)]
    ]
    assert counts[1] > 2 * counts[0]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "classes"), [("llvip", 12, 1), ("flir", 2, 3), ("vedai", 6, 9)]
)
def test_samples(real_data: Path, name: str, count: int, classes: int) -> None:
    dataset = open_data(real_data / "samples" / name, None)
    assert (len(dataset), len(dataset.classes)) == (count, classes)
    assert set(dataset.conditions) == {"all"}
    for image, target in dataset:
        assert image.shape[0] == 4
        assert len(target["labels"]) == len(target["boxes"])
    with pytest.raises(FileNotFoundError, match=r"no file .*train.txt"):
        open_data(real_data / "samples" / name, "train")
