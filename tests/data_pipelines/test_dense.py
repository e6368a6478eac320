"""Pictures with a label for every pixel: what is read, how it is cut, and layouts that do not fit."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines import dense
from data_pipelines.sources import DataError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def ade(tmp_path):
    """Two pictures a part, 6 x 8; the annotation of number i holds 0, 1 and i + 2."""
    for part in ("training", "validation"):
        for i in range(2):
            save(tmp_path / "images" / part / f"{i}.jpg", np.full((6, 8, 3), 100 * i, np.uint8))
            annotation = np.zeros((6, 8), np.uint8)
            annotation[:2], annotation[4:] = 1, i + 2
            save(tmp_path / "annotations" / part / f"{i}.png", annotation)
    return tmp_path


@pytest.fixture
def nyu(tmp_path):
    """Two pictures, 6 x 8, with depth in millimetres, and the lists of both parts."""
    for i in range(2):
        save(tmp_path / f"kitchen_{i}" / "rgb_0.png", np.full((6, 8, 3), 50 + i, np.uint8))
        depth = np.full((6, 8), 1234 + i, np.uint16)
        depth[0] = 0
        save(tmp_path / f"kitchen_{i}" / "depth_0.png", depth)
    lines = [f"/kitchen_{i}/rgb_0.png /kitchen_{i}/depth_0.png 518.8579" for i in range(2)]
    (tmp_path / "nyu_train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "nyu_test.txt").write_text(
        "kitchen_1/rgb_0.png kitchen_1/depth_0.png\nkitchen_0/rgb_0.png None 518.9\n"
    )
    return tmp_path


def test_classes_are_counted_from_0_and_0_counts_nowhere(ade):
    pairs = dense.segmentation_pairs(str(ade), "training", 3)
    assert [image.rsplit("/", 1)[1] for image, _ in pairs] == ["0.jpg", "1.jpg"]
    image, label = dense.Segmentation(3)(*pairs[1])
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8 and label.dtype == np.int32
    np.testing.assert_array_equal(label[:, 0], [0, 0, -1, -1, 2, 2])


def test_depth_is_in_metres_and_0_where_there_is_none(nyu):
    pairs = dense.depth_pairs(str(nyu), "nyu_train.txt", 1000.0)
    image, depth = dense.Depth(1000.0)(*pairs[1])
    assert image[0, 0].tolist() == [51] * 3 and depth.dtype == np.float32
    np.testing.assert_allclose(depth[:2, 0], [0.0, 1.235])
    assert len(dense.depth_pairs(str(nyu), "nyu_test.txt", 1000.0)) == 1  # a picture without depth is left out


def test_the_eigen_crop_is_of_rows_45_to_470_and_columns_41_to_600(tmp_path):
    save(tmp_path / "image.png", np.zeros((480, 640, 3), np.uint8))
    save(tmp_path / "depth.png", np.full((480, 640), 2000, np.uint16))
    _, depth = dense.Depth(1000.0, eigen_crop=True)(str(tmp_path / "image.png"), str(tmp_path / "depth.png"))
    rows, columns = np.nonzero(depth)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert (depth > 0).sum() == 426 * 560


def test_a_cut_keeps_picture_and_label_together():
    """The label is the picture's red channel: it is so after every cut, but for what lies beyond the picture."""
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 9, (5, 6)), np.ones((8, 8), int)).astype(np.int32)
    image = np.stack([label.astype(np.uint8) * 20] * 3, -1)
    cut = dense.Cut((32, 24), hflip=True)
    seen = {cut(image, label, -1, np.random.default_rng(i))[0].tobytes() for i in range(30)}
    assert len(seen) > 20
    for i in range(30):
        a, b = cut(image, label, -1, np.random.default_rng(i))
        assert a.shape == (32, 24, 3) and b.shape == (32, 24)
        np.testing.assert_array_equal(a[..., 0], b * 20)
    small = dense.Cut((32, 64), shorter=16, hflip=False)
    a, b = small(image, label, -1, np.random.default_rng(0))
    assert (b[16:] == -1).all() and (b[:, 19:] == -1).all() and (b[:16, :19] >= 0).all() and not a[16:].any()


def test_cuts_are_scaled_and_half_of_them_mirrored():
    image = np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (40, 1, 3))
    label = np.tile(np.arange(40, dtype=np.int32), (40, 1))
    spans, mirrored = [], []
    for i in range(60):
        _, found = dense.Cut((20, 20), 40, (0.5, 2.0))(image, label, -1, np.random.default_rng(i))
        row = found[0][found[0] >= 0]
        spans.append(abs(int(row[-1]) - int(row[0])))
        mirrored.append(row[0] > row[-1])
    assert min(spans) < 12 and max(spans) > 34 and 15 < sum(mirrored) < 45


def test_batches_come_in_the_given_order(ade):
    pairs = dense.segmentation_pairs(str(ade), "training", 3)
    order = np.array([0, 1, 1, 0, 0, 0])
    make = lambda seed: list(
        dense.training_batches(pairs, dense.Segmentation(3), dense.Cut((4, 4)), order, batch_size=2, seed=seed)
    )
    batches = make(0)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [1, 0], [0, 0]]
    assert batches[0]["image"].shape == (2, 4, 4, 3) and batches[0]["label"].shape == (2, 4, 4)
    for one, other in zip(batches, make(0), strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
    whole = list(dense.in_order(pairs, dense.Segmentation(3), [1, 0]))
    assert [int(example["index"]) for example in whole] == [1, 0] and whole[0]["label"].shape == (6, 8)


def test_a_wrong_layout_of_classes_is_one_line(ade, tmp_path):
    def refused(message):
        with pytest.raises(DataError) as error:
            for pair in dense.segmentation_pairs(str(ade), "training", 3):
                dense.Segmentation(3)(*pair)
        assert message in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    save(ade / "annotations/training/1.png", np.full((6, 8), 4, np.uint8))
    refused("1.png holds values up to 4 in mode L: an annotation is a picture of one channel with classes 0 to 3")
    save(ade / "annotations/training/1.png", np.zeros((6, 8, 3), np.uint8))
    refused("in mode RGB: an annotation is a picture of one channel")
    save(ade / "annotations/training/1.png", np.zeros((6, 7), np.uint8))
    refused("has (6, 8) pixels")
    (ade / "images/training/1.jpg").write_bytes(b"no picture")
    refused("1.jpg cannot be read as a picture")
    (ade / "annotations/training/1.png").unlink()
    text = refused("has no annotation")
    assert f"expected {ade}/images/training/NAME.jpg with {ade}/annotations/training/NAME.png" in text
    for path in (ade / "images/training").iterdir():
        path.unlink()
    refused("holds no picture: expected")
    (ade / "images/training").rmdir()
    refused("is no folder: expected")


def test_a_wrong_layout_of_depth_is_one_line(nyu):
    def refused(message, text=None):
        if text is not None:
            (nyu / "nyu_train.txt").write_text(text)
        with pytest.raises(DataError) as error:
            for pair in dense.depth_pairs(str(nyu), "nyu_train.txt", 1000.0):
                dense.Depth(1000.0, eigen_crop=eigen)(*pair)
        assert message in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    eigen = True
    refused("has (6, 8) pixels, the Eigen crop is one of (480, 640): leave it off")
    eigen = False
    refused("line 1: 'kitchen_0/rgb_0.png' names no depth", "kitchen_0/rgb_0.png\n")
    text = refused("there is no file", "kitchen_0/rgb_0.png kitchen_0/none.png\n")
    assert f"expected {nyu}/nyu_train.txt with lines 'IMAGE DEPTH'" in text and "1/1000 metres" in text
    refused("names no picture: expected", "\n")
    save(nyu / "kitchen_0/depth_0.png", np.zeros((6, 8), np.uint8))
    refused("has mode L: depth is a PNG of 16 bits", "kitchen_0/rgb_0.png kitchen_0/depth_0.png\n")
    (nyu / "nyu_train.txt").unlink()
    refused("nyu_train.txt is no file: expected")
