"""The page of ``subtok demo --serve``: a photo, its tokens, and what decides them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from subtok_data.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from subtok_data.segment import Segmented
    from subtok_data.tokenizer import SubobjectTokenizer

__all__ = ["Photo", "build_page", "cut", "describe", "next_box", "serve"]

CONTROLS: tuple[str, ...] = ("strength", "count", "threshold")
_SCALE = 2
_CLICK_TOKEN, _CLICK_BOX = "show the token", "draw a box (two corners)"
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it is cut, and its boundary map: what does not change with the controls."""

    image: NDArray[np.uint8]
    boundary_map: NDArray[np.uint8]

    @classmethod
    def read(cls, tokenizer: SubobjectTokenizer, value: Any) -> Photo:
        """Resize an image and find its boundaries.

        Raises
        ------
        ConfigError
            If the tokenizer's segmenter has no boundary map.
        """
        tokens = tokenizer(value)
        if tokens.boundary_map is None:
            raise ConfigError(
                "subtok demo --serve shows boundary maps: leave out --segmenter, or give one that "
                "has them (epoc, sam-edges)"
            )
        return cls(tokens.image, tokens.boundary_map)


def cut(photo: Photo, control: str, value: float, boxes: Sequence[Box] = ()) -> Segmented:
    """Cut a photo by one control, with boxes as prompts.

    Parameters
    ----------
    photo : Photo
        H × W.
    control : {"strength", "count", "threshold"}
        Which of the three decides.
    value : float
        Of the control: strength from 0 to 1, number of tokens, threshold in (0, 1).
    boxes : sequence of (x0, y0, x1, y1)
        In pixels of the photo; each becomes a token.

    Returns
    -------
    Segmented

    Examples
    --------
    >>> import numpy as np
    >>> ridge = np.zeros((64, 64), np.uint8)
    >>> ridge[:, 30:34] = 255
    >>> photo = Photo(np.zeros((64, 64, 3), np.uint8), ridge)
    >>> cut(photo, "strength", 0.1).num_tokens, cut(photo, "count", 1).num_tokens
    (2, 1)
    """
    from subtok_data.images import image_size
    from subtok_data.segment import (
        Budget,
        PromptedPartitioner,
        Prompts,
        SegmentTask,
        WatershedPartitioner,
        add_prompts,
        segment_image,
    )

    if control not in CONTROLS:
        raise ConfigError(f"control={control!r}: expected one of {CONTROLS}")
    size = image_size(photo.image)
    partitioner: Any = WatershedPartitioner()
    budget = Budget()
    if control == "threshold":
        partitioner = WatershedPartitioner(threshold=value)
    elif control == "strength":
        budget = Budget(strength=value)
    else:
        budget = Budget(num_tokens=int(value))
    evidence: Any = {"boundary_map": photo.boundary_map}
    if boxes:
        partitioner = PromptedPartitioner(partitioner)
        evidence = add_prompts(evidence, Prompts.of(size, boxes=[list(box) for box in boxes]))
    return segment_image(SegmentTask(partitioner, budget), evidence, size)


def describe(found: Segmented, x: int, y: int) -> str:
    """Say which token is at a pixel: its number, area and box.

    Examples
    --------
    >>> import numpy as np
    >>> photo = Photo(np.zeros((16, 32, 3), np.uint8), np.zeros((16, 32), np.uint8))
    >>> describe(cut(photo, "strength", 0.5), 3, 2)
    'token 0 of 1: 512 pixels (100.0 % of the photo), box x 0 to 32, y 0 to 16'
    """
    height, width = found.token_map.shape
    token = int(found.token_map[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
    area = int(found.geometry.areas[token])
    x0, y0, x1, y1 = (int(side) for side in found.geometry.boxes[token])
    words = (
        f"token {token} of {found.num_tokens}: {area} pixels ({area / (height * width):.1%} of the "
        f"photo), box x {x0} to {x1}, y {y0} to {y1}"
    ).replace("%", " %")
    prompted = found.token_fields.get("prompt")
    return words if prompted is None or prompted[token] < 0 else f"{words}; from a box"


def next_box(corner: tuple[int, int] | None, x: int, y: int) -> tuple[tuple[int, int] | None, Any]:
    """Take a click: the first is a corner, the second makes a box of it.

    Returns
    -------
    corner : (x, y) or None
        Waiting for another.
    box : (x0, y0, x1, y1) or None
        Half-open, with both corners inside.

    Examples
    --------
    >>> next_box(None, 9, 2), next_box((9, 2), 4, 7)
    (((9, 2), None), (None, (4, 2, 10, 8)))
    """
    if corner is None:
        return (x, y), None
    (x0, x1), (y0, y1) = sorted((corner[0], x)), sorted((corner[1], y))
    return None, (x0, y0, x1 + 1, y1 + 1)


def _draw(photo: Photo, found: Segmented, boxes: Sequence[Box], token: int | None) -> Any:
    """Outlines, enlarged; boxes in blue; one token lit."""
    import numpy as np

    from subtok_data.viz import outline_image

    image = photo.image
    if token is not None:
        lit = found.token_map == token
        image = np.where(lit[..., None], image // 2 + np.uint8(127), image // 2)
    drawn = outline_image(image, found.token_map, scale=_SCALE)
    for box in boxes:
        x0, y0, x1, y1 = (_SCALE * side for side in box)
        for part in (
            np.s_[y0 : y0 + 3, x0:x1],
            np.s_[max(y1 - 3, 0) : y1, x0:x1],
            np.s_[y0:y1, x0 : x0 + 3],
            np.s_[y0:y1, max(x1 - 3, 0) : x1],
        ):
            drawn[part] = (40, 120, 255)
    return drawn


def build_page(tokenizer: SubobjectTokenizer, photo: Any) -> Any:
    """Build the page.

    Parameters
    ----------
    tokenizer : SubobjectTokenizer
        With a boundary model.
    photo : image
        Shown at the start.

    Returns
    -------
    gradio.Blocks

    Raises
    ------
    ModuleNotFoundError
        Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        gradio: Any = import_module("gradio")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "subtok demo --serve needs the package gradio: pip install 'subtok-data[demo]'",
            name=error.name,
        ) from error
    from subtok_data.viz import boundary_image

    start = Photo.read(tokenizer, photo)

    def show(seen: Any, control: str, values: Sequence[float], boxes: Any) -> Any:
        value = dict(zip(CONTROLS, values, strict=True))[control]
        found = cut(seen, control, value, boxes)
        words = f"{found.num_tokens} tokens, {len(boxes)} from boxes"
        return found, _draw(seen, found, boxes, None), words

    def take(image: Any, control: str, *values: float) -> Any:
        if image is None:
            image = photo
        seen = Photo.read(tokenizer, image)
        found, drawn, words = show(seen, control, values, [])
        return seen, found, [], None, drawn, boundary_image(seen.boundary_map), words

    def change(seen: Any, boxes: Any, control: str, *values: float) -> Any:
        return show(seen, control, values, boxes)

    def clear(seen: Any, control: str, *values: float) -> Any:
        return [], None, *show(seen, control, values, [])

    def click(
        event: Any, seen: Any, found: Any, boxes: Any, corner: Any, action: str, control: str,
        *values: float,
    ) -> Any:  # fmt: skip
        x, y = (int(side) // _SCALE for side in event.index)
        if action == _CLICK_TOKEN:
            token = int(found.token_map[y, x])
            return found, boxes, corner, _draw(seen, found, boxes, token), describe(found, x, y)
        corner, box = next_box(corner, x, y)
        if box is None:
            words = f"first corner at x {x}, y {y}: click the opposite one"
            return found, boxes, corner, _draw(seen, found, boxes, None), words
        boxes = [*boxes, box]
        found, drawn, words = show(seen, control, values, boxes)
        return found, boxes, corner, drawn, words

    # Gradio hands the event to the parameter that is annotated with its class.
    click.__annotations__["event"] = gradio.SelectData
    # Without its button that shares an image with another server.
    plain: Any = {"interactive": False, "buttons": ["download", "fullscreen"]}
    first, first_drawn, first_words = show(start, "strength", (0.4, 60, 0.1), [])
    with gradio.Blocks(title="Subobject tokens", analytics_enabled=False) as page:
        gradio.Markdown("# Subobject tokens")
        seen, found = gradio.State(start), gradio.State(first)
        boxes, corner = gradio.State([]), gradio.State(None)
        with gradio.Row():
            with gradio.Column(scale=1):
                image = gradio.Image(start.image, label="photo", type="numpy", sources=["upload"])
                control = gradio.Radio(CONTROLS, value="strength", label="what decides")
                sliders = [
                    gradio.Slider(0, 1, 0.4, step=0.01, label="strength"),
                    gradio.Slider(1, 400, 60, step=1, label="count"),
                    gradio.Slider(0.01, 0.9, 0.1, step=0.01, label="threshold"),
                ]
                actions = [_CLICK_TOKEN, _CLICK_BOX]
                action = gradio.Radio(actions, value=_CLICK_TOKEN, label="a click on the tokens")
                button = gradio.Button("remove the boxes")
            with gradio.Column(scale=2):
                outlines = gradio.Image(first_drawn, label="tokens", **plain)
                words = gradio.Textbox(first_words, label="what is there", interactive=False)
                boundary = gradio.Image(
                    boundary_image(start.boundary_map), label="boundary map", **plain
                )
        settings = [control, *sliders]
        taken = [seen, found, boxes, corner, outlines, boundary, words]
        image.change(take, [image, *settings], taken, show_progress="minimal")
        for one in settings:
            inputs = [seen, boxes, *settings]
            one.change(change, inputs, [found, outlines, words], trigger_mode="always_last")
        button.click(clear, [seen, *settings], [boxes, corner, found, outlines, words])
        outlines.select(
            click,
            [seen, found, boxes, corner, action, *settings],
            [found, boxes, corner, outlines, words],
        )
    return page


def serve(tokenizer: SubobjectTokenizer, photo: Any, port: int, *, block: bool = True) -> str:
    """Serve the page on this machine alone, until it is interrupted.

    Returns
    -------
    str
        Its address.
    """
    page = build_page(tokenizer, photo)
    gradio: Any = import_module("gradio")
    # Names of fonts alone: those of the default theme come from another server.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port or None,
        share=False,
        quiet=True,
        theme=theme,
        footer_links=[],
        prevent_thread_lock=True,
    )
    print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return str(address)
