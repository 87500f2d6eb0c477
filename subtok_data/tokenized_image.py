"""``TokenizedImage``: what the tokenizer gives for one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from subtok_data.annotations import TOKEN_CATEGORY, coco_categories
from subtok_data.segment import Evidence, RLEMasks, Segmented, label_image, label_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TokenizedImage"]


@dataclass(frozen=True, eq=False)
class TokenizedImage:
    """One image and its tokens, in pixels of the resized image.

    Attributes
    ----------
    image : (H, W, 3) uint8 ndarray
        The image, resized.
    token_map : (H, W) int16 or int32 ndarray
        Token of each pixel, 0 to N - 1.
    num_tokens : int
        N, at least 1.
    areas : (N,) int64 ndarray
        Pixels of each token; they sum to H · W.
    boxes : (N, 4) int32 ndarray
        x0, y0, x1, y1, half-open.
    centers : (N, 2) float32 ndarray
        Mean (y, x); the center of the first pixel is at (0.5, 0.5).
    boundary_map : (H, W) uint8 ndarray or None
        Boundary probability × 255, for segmenters that have one.
    token_fields : dict of str to (N,) ndarray
        What the segmenter knows of each token: class, score, prompt …
    source_size : (int, int)
        Height and width before resizing, after EXIF orientation.
    prompt_tokens : (P,) int64 ndarray or None
        With prompts: the token that fits each of them best.
    """

    image: NDArray[np.uint8]
    token_map: NDArray[Any]
    num_tokens: int
    areas: NDArray[np.int64]
    boxes: NDArray[np.int32]
    centers: NDArray[np.float32]
    boundary_map: NDArray[np.uint8] | None
    token_fields: dict[str, NDArray[Any]]
    source_size: tuple[int, int]
    shapes: NDArray[np.bool_] | None = field(default=None, repr=False)
    prompt_tokens: NDArray[np.int64] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        image: NDArray[np.uint8],
        segmented: Segmented,
        evidence: Evidence,
        source_size: tuple[int, int],
    ) -> TokenizedImage:
        """Join an image with its tokens and the evidence that decided them."""
        return cls(
            image=image,
            token_map=segmented.token_map,
            num_tokens=segmented.num_tokens,
            areas=segmented.geometry.areas,
            boxes=segmented.geometry.boxes,
            centers=segmented.geometry.centers,
            boundary_map=evidence.get("boundary_map"),
            token_fields=dict(segmented.token_fields),
            source_size=source_size,
            shapes=segmented.shapes,
            prompt_tokens=segmented.prompt_tokens,
        )

    def __len__(self) -> int:
        return self.num_tokens

    def __repr__(self) -> str:
        height, width = self.token_map.shape
        return f"TokenizedImage(num_tokens={self.num_tokens}, height={height}, width={width})"

    def plot(self) -> Figure:
        """Draw image, boundary map, token outlines and mean-colour reconstruction.

        Returns
        -------
        matplotlib.figure.Figure
            Shown by notebooks; ``figure.savefig(path)`` writes it.
        """
        from subtok_data.viz import plot_tokens

        return plot_tokens(self)

    def to_label_image(self, *, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """Return a label image: token k is label k + 1, and 0 is no token.

        That is what scikit-image (``regionprops``), napari and others take for labels.

        Parameters
        ----------
        size : (int, int), optional
            Height and width in pixels, ``tokens.source_size`` for that of the file; by default that
            of ``image``. Each pixel has the label of the pixel under its centre.

        Returns
        -------
        (H, W) int32 ndarray
            0 only where ``overflow="drop"`` left pixels to no token.

        Raises
        ------
        ConfigError
            If a token would have no pixel at that size.

        Examples
        --------
        >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
        >>> tokenizer = SubobjectTokenizer(PatchSegmenter(1), size=None)
        >>> tokens = tokenizer(np.zeros((1, 2, 3), np.uint8))
        >>> tokens.to_label_image().tolist(), tokens.to_label_image(size=(2, 4)).tolist()
        ([[1, 2]], [[1, 1, 2, 2], [1, 1, 2, 2]])
        """
        return label_image(self.token_map, self.num_tokens, size)

    def to_coco(
        self,
        *,
        size: tuple[int, int] | None = None,
        image_id: int = 1,
        file_name: str = "",
        first_id: int = 1,
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the tokens as COCO annotations: boxes, areas and compressed run lengths.

        Parameters
        ----------
        size : (int, int), optional
            See :meth:`to_label_image`.
        image_id, file_name
            Of the image's entry.
        first_id : int, optional
            Id of the first annotation; the others follow.

        Returns
        -------
        dict
            ``"images"``, ``"annotations"`` and ``"categories"``, ready for ``json.dump`` and
            ``pycocotools.coco.COCO``; lists of several images can be joined. Annotation
            ``first_id + k`` is token k. Where the segmenter knows classes they are the categories,
            −1 for none; else there is one category.

        Raises
        ------
        ConfigError
            If a token would have no pixel at that size.

        Examples
        --------
        >>> from subtok_data import PatchSegmenter, SubobjectTokenizer
        >>> tokenizer = SubobjectTokenizer(PatchSegmenter(32), size=None)
        >>> tokens = tokenizer(np.zeros((32, 64, 3), np.uint8))
        >>> annotation = tokens.to_coco(file_name="a.png")["annotations"][1]
        >>> annotation["bbox"], annotation["area"], annotation["segmentation"]["size"]
        ([32, 0, 32, 32], 1024, [32, 64])
        """
        from pycocotools import mask as coco

        labels = self.to_label_image(size=size)
        height, width = labels.shape
        masks = self._masks(labels)
        classes = self.token_fields.get("class")
        boxes, areas = masks.boxes, masks.areas
        annotations: list[dict[str, Any]] = []
        for token in range(self.num_tokens):
            runs: Any = {"size": [height, width], "counts": masks.runs(token).tolist()}
            packed: Any = coco.frPyObjects(runs, height, width)
            x0, y0, x1, y1 = (int(side) for side in boxes[token])
            annotations.append(
                {
                    "id": first_id + token,
                    "image_id": image_id,
                    "category_id": TOKEN_CATEGORY if classes is None else int(classes[token]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(areas[token]),
                    "segmentation": {"size": [height, width], "counts": packed["counts"].decode()},
                    "iscrowd": 0,
                }
            )
        return {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "annotations": annotations,
            "categories": coco_categories(classes),
        }

    def to_supervision(self, *, size: tuple[int, int] | None = None) -> Any:
        """Return the tokens as ``supervision.Detections``, with dense masks.

        Parameters
        ----------
        size : (int, int), optional
            See :meth:`to_label_image`.

        Returns
        -------
        supervision.Detections
            N detections with ``xyxy``, ``mask`` (N, H, W) bool, and ``data["token"]``; ``class_id``
            where the segmenter knows classes, else the token's number, so that annotators give each
            token a colour.

        Raises
        ------
        ModuleNotFoundError
            The package ``supervision`` is not installed.
        ConfigError
            If a token would have no pixel at that size.
        """
        try:
            supervision: Any = import_module("supervision")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_supervision() needs the package supervision: "
                "pip install 'subtok-data[supervision]'",
                name=error.name,
            ) from error
        labels = self.to_label_image(size=size)
        tokens = np.arange(self.num_tokens)
        detections: Any = supervision.Detections(
            xyxy=self._masks(labels).boxes.astype(np.float32),
            mask=labels == tokens[:, None, None] + 1,
            class_id=np.asarray(self.token_fields.get("class", tokens), np.int64),
            data={"token": tokens},
        )
        return detections

    def _masks(self, labels: NDArray[np.int32]) -> RLEMasks:
        runs = label_runs(labels, range(1, self.num_tokens + 1))
        return RLEMasks.from_runs(runs, (labels.shape[0], labels.shape[1]))
