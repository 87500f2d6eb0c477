"""``SubobjectProcessor``: images and text to model inputs, as transformers' processors do."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from subtok_data.arguments import check_text, check_type
from subtok_data.batch import VISUAL_KEYS, PixelConfig
from subtok_data.data import SubobjectCollator
from subtok_data.devices import refuse_in_worker
from subtok_data.errors import ConfigError, SampleError
from subtok_data.hub import download_folder, is_hub_id, model_card, upload_folder
from subtok_data.images import DEFAULT_MAX_PIXELS
from subtok_data.integrations.chat_parts import template_with_parts
from subtok_data.integrations.processor_inputs import (
    fill_in,
    read_texts,
    share_out,
    tokenize_texts,
)
from subtok_data.segmenters import SegmenterLike
from subtok_data.text import TextConfig
from subtok_data.tokenizer import SubobjectTokenizer
from subtok_data.transformers_io import read_pretrained

__all__ = ["SubobjectProcessor"]

_FILE = "processor_config.json"
_HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*/*.safetensors")
"""Not the safetensors of a model that lies in the same repository."""
_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_KEYS = ("pixel_values", *VISUAL_KEYS)


class SubobjectProcessor(ProcessorMixin):
    """Make the inputs of a vision-language model from images and text.

    It goes wherever a processor of transformers goes: ``processing_class`` of ``Trainer`` and of
    TRL's trainers, collate functions, :class:`~transformers.AutoProcessor` once this class is
    imported. The model is one that :func:`use_subobject_tokens` adapted, with
    ``processor.image_token_id``.

    Parameters
    ----------
    subobject_tokenizer : SubobjectTokenizer
        How images become visual tokens.
    tokenizer : PreTrainedTokenizerBase
        Of the language model. Special tokens that it lacks are added to it; the model then needs
        ``resize_token_embeddings(len(processor.tokenizer))``.
    chat_template : str, optional
        By default the tokenizer's. One that knows text only is extended to take image parts.
    pixels : PixelConfig, optional
        Size, normalisation and dtype of ``pixel_values``.
    image_processor : transformers image processor, optional
        Read size, mean and std from it instead.
    image_token : str, optional
        Stands in the text where an image is, once; in ``input_ids`` once per visual token.
    start, end : str or None, optional
        Tokens around those of an image.
    shape_size : int, optional
        Also give ``visual_token_shapes`` on a grid of this side.
    max_pixels : int, optional
        Images with more pixels are refused before they are decoded.

    Attributes
    ----------
    image_token_id : int
        Id of ``image_token``.
    added_tokens : tuple of str
        Special tokens that the tokenizer lacked.

    Raises
    ------
    ConfigError
        An option of the wrong kind, or equal special tokens.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> from subtok_data import PatchSegmenter, SubobjectProcessor, SubobjectTokenizer
    >>> core = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "ball": 2}, unk_token="<pad>"))
    >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> words = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    >>> processor = SubobjectProcessor(SubobjectTokenizer(PatchSegmenter(32), size=64), words)
    >>> image = np.zeros((64, 64, 3), np.uint8)
    >>> inputs = processor(images=image, text="<image>a ball", return_tensors="pt")
    >>> processor.batch_decode(inputs["input_ids"])
    ['<|visual_start|> <image> <image> <image> <image> <|visual_end|> a ball']
    >>> inputs["num_visual_tokens"], inputs["pixel_values"].shape
    (tensor([4]), torch.Size([1, 3, 64, 64]))
    """

    def __init__(
        self,
        subobject_tokenizer: SubobjectTokenizer,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | dict[str, str] | None = None,
        pixels: PixelConfig | None = None,
        image_processor: Any = None,
        image_token: str = "<image>",
        start: str | None = "<|visual_start|>",
        end: str | None = "<|visual_end|>",
        shape_size: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        remedy = "give SubobjectTokenizer(…)"
        check_type("subobject_tokenizer", subobject_tokenizer, SubobjectTokenizer, remedy)
        remedy = 'give AutoTokenizer.from_pretrained("…"), the one of the language model'
        check_type("tokenizer", tokenizer, PreTrainedTokenizerBase, remedy)
        check_text("image_token", image_token, "the mark of an image in the text")
        text = TextConfig(
            tokenizer,
            messages="messages",
            image_mark=image_token,
            placeholder=image_token,
            start=start,
            end=end,
        )
        self.subobject_tokenizer = subobject_tokenizer
        self.image_token = image_token
        self.image_token_id = text.placeholder_id
        self.added_tokens = text.added_tokens
        self.start = start
        self.end = end
        self._collator = SubobjectCollator(
            subobject_tokenizer,
            pixels=pixels,
            image_processor=image_processor,
            shape_size=shape_size,
            max_pixels=max_pixels,
        )
        template: Any = chat_template or getattr(tokenizer, "chat_template", None)
        if isinstance(template, str):
            template = template_with_parts(template, tokenizer, image_token)
        elif template is not None:
            template = {
                name: template_with_parts(one, tokenizer, image_token)
                for name, one in template.items()
            }
        super().__init__(tokenizer, chat_template=template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """See ``transformers.ProcessorMixin``: the parts that it saves itself."""
        return ["tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        """Keys that a call may give, those of the text first."""
        return [*self.tokenizer.model_input_names, *_KEYS]

    @property
    def device(self) -> torch.device:
        """Where the boundary model runs."""
        return self.subobject_tokenizer.device

    def to(self, device: str | torch.device) -> SubobjectProcessor:
        """Move the boundary model, if there is one, and return the processor."""
        self.subobject_tokenizer.to(device)
        return self

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        **options: Any,
    ) -> BatchFeature:
        """Tokenize images and text.

        Parameters
        ----------
        images : image, list of images, or list of lists of images, optional
            Path, bytes, PIL image, array or tensor each. A list of lists has one entry per text,
            empty for those without images; a flat list is shared out by the marks in the texts.
        text : str or list of str, optional
            With ``image_token`` once where each image stands.
        videos, audio : None
            Not taken.
        **options
            Of the text tokenizer, directly or as ``text_kwargs``: ``padding``, ``truncation``,
            ``max_length``, ``return_tensors``, ….

        Returns
        -------
        BatchFeature
            ``input_ids``, ``attention_mask`` and what else the tokenizer gives, with one
            ``image_token_id`` per visual token; ``pixel_values`` and the visual keys of a batch
            (``docs/batch_format.md``), always tensors, on the CPU.

        Raises
        ------
        SampleError
            Images do not match the marks of their text, an image cannot be decoded, or truncation
            would cut visual tokens.
        ConfigError
            Neither images nor text, or values of the wrong kind.
        DeviceError
            The boundary model is on an accelerator, and this is a DataLoader worker.
        """
        for name, value in (
            ("videos", videos),
            ("audio", audio),
            ("images_kwargs", options.pop("images_kwargs", None)),
        ):
            if value:
                raise ConfigError(
                    f"{name}= is not taken: give images= and text=; how images are sized is "
                    "decided by SubobjectProcessor(pixels=…)"
                )
        options = {**options.pop("common_kwargs", {}), **options.pop("text_kwargs", {}), **options}
        texts = read_texts(text)
        if images is None and texts is None:
            raise ConfigError("give images=, text=, or both")
        flat, owners = share_out(images, texts, self.image_token)
        visual = self._visual(flat) if flat else {}
        if texts is None:
            return BatchFeature(visual)
        return BatchFeature({**self._encoded(texts, owners, visual, options), **visual})

    def _visual(self, images: list[Any]) -> dict[str, Any]:
        refuse_in_worker(self.device)
        raw = self._collator.worker.collate([{"image": image} for image in images])
        batch = self._collator.finish(raw)
        return {name: batch[name] for name in _KEYS if name in batch}

    def _encoded(
        self, texts: list[str], owners: list[int], visual: Any, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Token ids of the texts, with the visual tokens filled in."""
        want_offsets = options.pop("return_text_replacement_offsets", False)
        want_types = options.pop("return_mm_token_type_ids", False)
        inserted = (self.replace_image_token(visual, number) for number in range(len(owners)))
        expanded: list[str] = []
        offsets: list[list[dict[str, Any]]] = []
        for text in texts:
            changed, places = fill_in(text, self.image_token, inserted)
            expanded.append(changed)
            offsets.append(places)
        encoded = tokenize_texts(self.tokenizer, expanded, options)
        self._check_complete(encoded["input_ids"], owners, visual, options)
        if want_offsets:
            encoded["text_replacement_offsets"] = offsets
        if want_types:
            types = [self._is_visual(ids).astype(np.int64) for ids in encoded["input_ids"]]
            tensors = isinstance(encoded["input_ids"], torch.Tensor)
            encoded["mm_token_type_ids"] = (
                torch.from_numpy(np.stack(types)) if tensors else [row.tolist() for row in types]
            )
        return encoded

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Render a chat; see ``transformers.ProcessorMixin.apply_chat_template``.

        Raises
        ------
        ConfigError
            There is no chat template.
        """
        if self.chat_template is None and kwargs.get("chat_template") is None and not args:
            raise ConfigError(
                "neither the text tokenizer nor the processor has a chat template: give "
                'SubobjectProcessor(…, chat_template="…") one in Jinja, or take the tokenizer of '
                "an instruction-tuned model; text without roles goes to processor(text=…)"
            )
        return super().apply_chat_template(conversation, *args, **kwargs)

    def _is_visual(self, ids: Any) -> NDArray[np.bool_]:
        return np.asarray(ids) == self.image_token_id

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """Text in place of the mark of one image; a hook of ``transformers.ProcessorMixin``.

        Parameters
        ----------
        image_inputs : mapping
            With ``num_visual_tokens``.
        image_idx : int
            Which image.
        **kwargs
            Ignored.
        """
        del kwargs
        count = int(image_inputs["num_visual_tokens"][image_idx])
        return f"{self.start or ''}{self.image_token * count}{self.end or ''}"

    def _check_complete(
        self, input_ids: Any, owners: list[int], visual: Any, options: dict[str, Any]
    ) -> None:
        """Raise if truncation, or the tokenizer, lost placeholders."""
        counts = visual["num_visual_tokens"].tolist() if visual else []
        for number, ids in enumerate(input_ids):
            own = [count for owner, count in zip(owners, counts, strict=True) if owner == number]
            kept = int(self._is_visual(ids).sum())
            if kept != sum(own):
                raise SampleError(
                    f"{kept} of the {sum(own)} visual tokens of {len(own)} image(s) are left at "
                    f"max_length={options.get('max_length')}: raise max_length, or give the "
                    "SubobjectTokenizer fewer tokens (num_tokens, max_tokens)",
                    index=number,
                    stage="collate",
                )

    # --- folders ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Options as JSON values; tokenizers and chat template are saved beside them."""
        options = self._collator.options
        return {
            "processor_class": type(self).__name__,
            "image_token": self.image_token,
            "start": self.start,
            "end": self.end,
            "pixels": asdict(options.pixels),
            "shape_size": options.shape_size,
            "max_pixels": options.max_pixels,
        }

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write both tokenizers, the weights of the boundary model, options and chat template.

        Parameters
        ----------
        save_directory : str or Path
            Made if it does not exist. :meth:`from_pretrained` reads it, and so do
            ``SubobjectTokenizer.from_pretrained`` and ``AutoTokenizer.from_pretrained``.
        push_to_hub : bool, optional
            Not taken here; see :meth:`push_to_hub`.
        **kwargs
            Ignored: frameworks hand on options of other files.

        Returns
        -------
        list of str
            Files of the processor itself.
        """
        del kwargs
        if push_to_hub:
            raise ConfigError("push_to_hub=True is not taken: call processor.push_to_hub(name)")
        folder = Path(save_directory)
        self.subobject_tokenizer.save_pretrained(folder)
        return super().save_pretrained(str(folder))

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, name: str, **options: Any
    ) -> str:
        """Write the processor to a repository of the Hugging Face hub, with weights and a card.

        Parameters
        ----------
        name : str
            ``"user/name"``; created if there is none, else files are added: the repository may be
            that of the model.
        **options
            ``private``, ``token``, ``revision``, ``commit_message``, ``create_pr``, as
            ``huggingface_hub`` has them.

        Returns
        -------
        str
            Address of the commit.
        """
        card = model_card(
            "Makes inputs of a vision-language model with subobject tokens.",
            [
                "from subtok_data import SubobjectProcessor",
                'processor = SubobjectProcessor.from_pretrained("{{name}}")',
                f'inputs = processor(images="photo.jpg", text="{self.image_token}Who is this?")',
            ],
            {**self.to_dict(), "subobject_tokenizer": self.subobject_tokenizer.config()},
        )
        return upload_folder(self.save_pretrained, name, card, **options)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        segmenter: SegmenterLike | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> SubobjectProcessor:
        """Read what :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Parameters
        ----------
        pretrained_model_name_or_path : str or path
            A folder, or ``"user/name"`` of the hub.
        segmenter : Segmenter, optional
            In place of the saved one; needed where that is not one of the library's.
        device : str or torch.device, optional
            Where the boundary model runs.
        **options
            ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` for the
            hub. What else ``AutoProcessor`` hands on is ignored, ``trust_remote_code`` too: code is
            never run.

        Raises
        ------
        ConfigError
            No processor is saved there.
        WeightsError
            It cannot be had from the hub, or the text tokenizer needs Python code that comes with
            it.
        """
        name = os.fspath(pretrained_model_name_or_path)
        folder = Path(name)
        if not folder.exists() and is_hub_id(name):
            chosen = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
            folder = download_folder(name, patterns=_HUB_FILES, **chosen)
        if not (folder / _FILE).is_file():
            raise ConfigError(
                f"no processor in {name!r}: {_FILE} is missing; give a folder written by "
                "save_pretrained, or a name of the hub"
            )
        saved: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if saved.pop("processor_class", None) != cls.__name__:
            raise ConfigError(f"{str(folder / _FILE)!r} is not of a {cls.__name__}")
        tokenizer = read_pretrained(AutoTokenizer, folder)
        saved["pixels"] = PixelConfig(**saved["pixels"])
        subobjects = SubobjectTokenizer.from_pretrained(folder, segmenter=segmenter, device=device)
        return cls(subobjects, tokenizer, **saved)

    def __repr__(self) -> str:
        return (
            f"SubobjectProcessor({self.subobject_tokenizer!r}, {type(self.tokenizer).__name__}, "
            f"image_token={self.image_token!r}, start={self.start!r}, end={self.end!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        options = self._collator.options
        # A collator that is pickled loses its model: processes that unpickle make their own.
        return {
            **self.__dict__,
            "_collator": {
                "pixels": options.pixels,
                "shape_size": options.shape_size,
                "max_pixels": options.max_pixels,
            },
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._collator = SubobjectCollator(self.subobject_tokenizer, **state["_collator"])


class _ProcessorConfig(PreTrainedConfig):
    """Under which ``AutoProcessor`` knows the class: it finds it by name in saved processors."""

    model_type = "subobject-processor"


AutoProcessor.register(_ProcessorConfig, SubobjectProcessor, exist_ok=True)
