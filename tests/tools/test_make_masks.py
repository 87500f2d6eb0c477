"""The script that makes labels, and MobileSAM as a decoder."""

from __future__ import annotations

import os
from pathlib import Path

import make_masks
import numpy as np
import pytest
import torch
from make_masks import mask_options
from mobilesam import MobileSAM
from PIL import Image

from subtok_data.errors import WeightsError
from subtok_data.training import read_masks


class FakeSAM:
    """Finds a disk of six pixels around each point, and a better rated one without an edge."""

    def __init__(self, *args, **options) -> None:
        self.calls = 0

    def encode(self, crops):
        self.calls += len(crops)
        return [crop.shape[:2] for crop in crops]

    def decode(self, embedding, points):
        height, width = embedding
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        disks = [20 * (6 - torch.hypot(x - px, y - py)) for px, py in points]
        logits = torch.stack([torch.stack([one, one * 0.001, one]) for one in disks])
        return logits, torch.tensor([0.9, 0.95, 0.5]).expand(len(points), 3)

    def upscale(self, embedding, logits):
        return logits


def test_masks_pass_the_filters_once():
    image = np.zeros((60, 80, 3), np.uint8)
    masks = make_masks.make_masks(image, FakeSAM(), mask_options(2))
    # Four points; the unstable copies have gone although their predicted IoU is higher.
    assert masks.size == (60, 80)
    assert masks.scores.tolist() == pytest.approx([0.9] * 4)
    assert (masks.fields["stability"] >= 0.8).all()
    union = np.sum([masks.mask(index) for index in range(4)], axis=0)
    assert union.max() == 1
    assert union[15, 20] == union[45, 60] == 1


def test_a_folder_is_labelled_and_finished_photos_are_skipped(tmp_path, monkeypatch, capsys):
    fake = FakeSAM()
    monkeypatch.setattr(make_masks, "MobileSAM", lambda *args, **options: fake)
    photos = tmp_path / "photos"
    photos.mkdir()
    for stem in ("a", "b"):
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(photos / f"{stem}.png")
    command = [str(photos), str(tmp_path / "masks"), "--model", "x", "--points", "2"]
    threads = str(torch.get_num_threads())
    assert make_masks.main([*command, "--threads", threads]) == 0
    assert [read_masks(tmp_path / "masks" / f"{stem}.npz").size for stem in "ab"] == [(40, 50)] * 2
    (tmp_path / "masks" / "a.npz").unlink()
    assert make_masks.main([*command, "--threads", threads]) == 0
    assert fake.calls == 3
    (tmp_path / "empty").mkdir()
    assert make_masks.main([str(tmp_path / "empty"), *command[1:], "--threads", threads]) == 2
    assert "no photos in" in capsys.readouterr().err
    assert make_masks.main([str(tmp_path / "none"), *command[1:], "--threads", threads]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"encoder\.onnx is missing"):
        MobileSAM(tmp_path)


@pytest.mark.slow
@pytest.mark.data
def test_the_batched_decoder_is_the_exported_one(data_dir: Path):
    """Needs the model: SUBTOK_MOBILESAM names the folder of encoder.onnx and sam.onnx."""
    if "SUBTOK_MOBILESAM" not in os.environ:
        pytest.skip("MobileSAM is absent: set SUBTOK_MOBILESAM to its folder")
    import onnxruntime

    folder = Path(os.environ["SUBTOK_MOBILESAM"])
    model = MobileSAM(folder)
    image = np.asarray(Image.open(next((data_dir / "photos" / "open").glob("kodak*"))))
    (embedding,) = model.encode([image])
    points = np.array([[200.0, 150.0], [400.0, 300.0]])
    logits, ious = model.decode(embedding, points)
    session = onnxruntime.InferenceSession(str(folder / "sam.onnx"))
    for index, point in enumerate(points):
        inputs = {
            "image_embeddings": embedding.features.T.reshape(1, 256, 64, 64).numpy(),
            "point_coords": np.stack([point * embedding.scale, np.zeros(2)])[None],
            "point_labels": np.array([[1, -1]]),
            "mask_input": np.zeros((1, 1, 256, 256)),
            "has_mask_input": np.zeros(1),
            "orig_im_size": np.array(image.shape[:2]),
        }
        named = {name: value.astype(np.float32) for name, value in inputs.items()}
        masks, iou = session.run(["low_res_masks", "iou_predictions"], named)
        # It returns one mask, its choice: one of the three, or the one for a clear prompt.
        best = int(np.abs(ious[index].numpy() - iou[0, 0]).argmin())
        assert ious[index, best].item() == pytest.approx(float(iou[0, 0]), abs=1e-3)
        np.testing.assert_allclose(logits[index, best].numpy(), masks[0, 0], atol=0.05)
