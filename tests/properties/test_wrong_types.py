"""What users pass by mistake: an error that names the value and what to do, or it works."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from helpers.tiny_tokenizers import word_tokenizer
from PIL import Image
from torchvision import transforms as classic

from subtok_data import (
    BatchPlan,
    EPOCSegmenter,
    ImageFiles,
    MixedDataset,
    PatchSegmenter,
    PixelConfig,
    PromptColumns,
    Prompts,
    SubobjectCollator,
    SubobjectDataset,
    SubobjectIterableDataset,
    SubobjectLoader,
    SubobjectTokenizer,
    SuperpixelSegmenter,
    TextConfig,
)
from subtok_data.errors import ConfigError, ImageError, PromptError, SubtokError

IMAGE = np.zeros((64, 64, 3), np.uint8)
ROWS = [{"image": IMAGE + np.uint8(40 * number), "label": number} for number in range(3)]
WORDS = word_tokenizer()
TOKENIZER = SubobjectTokenizer(PatchSegmenter(32), size=64)
SPLITS = DatasetDict({name: Dataset.from_dict({"a": [1]}) for name in ("train", "test")})
STREAMS = IterableDatasetDict({name: split.to_iterable_dataset() for name, split in SPLITS.items()})
BOX = [[0, 0, 10, 10]]


def load(dataset: Any = ROWS, tokenizer: Any = TOKENIZER, **options: Any) -> SubobjectLoader:
    return SubobjectLoader(dataset, tokenizer, executor="inline", prefetch_batches=0, **options)


def prompted(images: Any, prompts: Any) -> Any:
    return TOKENIZER(images, prompts=prompts)


def resumed(**changes: Any) -> None:
    loader = load()
    loader.load_state_dict({**loader.state_dict(), **changes})


def read(path: str) -> Any:
    return SubobjectTokenizer.from_pretrained(path)


Case = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]


def case(of: Callable[..., Any], *given: Any, words: str, **options: Any) -> Case:
    """A call, and words of the error: the value, and after it the remedy."""
    return of, given, options, words


TOKENIZERS = [
    case(SubobjectTokenizer, 64, words="the number 64.*num_tokens="),
    case(SubobjectTokenizer, "slic", words=r"the string 'slic'.*SuperpixelSegmenter\(\"slic\"\)"),
    case(SubobjectTokenizer, PatchSegmenter, words=r"class PatchSegmenter.*Segmenter\(…\)"),
    case(SubobjectTokenizer, size=(224, 224), words=r"\(224, 224\).*PixelConfig"),
    case(SubobjectTokenizer, size=224.0, words=r"size=224\.0: expected a whole number"),
    case(SubobjectTokenizer, size="224", words="size='224': expected a whole number"),
    case(SubobjectTokenizer, square="no", words="square='no': expected True or False"),
    case(SubobjectTokenizer, device="gpu", words="device='gpu'.*'cuda'"),
    case(EPOCSegmenter, 3, words="model is the number 3.*BoundaryModel"),
    case(EPOCSegmenter, torch.nn.Linear(1, 1), words=r"a Linear.*BoundaryModel\(network\)"),
    case(PatchSegmenter, (16, 16), words=r"patch=\(16, 16\): expected a whole number"),
    case(read, "no/such/folder", words=r"'no/such/folder'.*save_pretrained.*hub"),
    case(read, 3, words="name_or_folder is the number 3.*save_pretrained"),
    case(TOKENIZER, IMAGE, shape_size="8", words="shape_size='8': expected a whole number"),
]
DATASETS = [
    case(SubobjectDataset, SPLITS, words=r"a DatasetDict .*'train', 'test'.*dataset\['train'\]"),
    case(SubobjectDataset, STREAMS, words=r"IterableDatasetDict.*dataset\['train'\]"),
    case(SubobjectIterableDataset, STREAMS, words=r"IterableDatasetDict.*dataset\['train'\]"),
    case(SubobjectDataset, [], words=r"empty \(list of 0 rows\)"),
    case(SubobjectDataset, {}, words="a dict with the keys .*: give rows"),
    case(SubobjectDataset, list, words="the class list.*rows by index"),
    case(SubobjectDataset, None, words="None.*SubobjectIterableDataset"),
    case(SubobjectDataset, "user/name", words=r"'user/name'.*load_dataset\('user/name', split="),
    case(SubobjectIterableDataset, "photos", words="'photos'.*no stream.*SubobjectDataset"),
    case(SubobjectIterableDataset, 3, words="the number 3.*cannot be iterated"),
    case(SubobjectDataset, ROWS, transform="flip", words="the string 'flip'.*transforms v2"),
    case(SubobjectDataset, ROWS, transform=classic.ToTensor, words=r"class ToTensor.*Tensor\(…\)"),
    case(SubobjectDataset, ROWS, prompts="boxes", words=r"'boxes'.*PromptColumns\(boxes="),
    case(SubobjectDataset, ROWS, image_column=["image"], words="image_column is a list of 1"),
    case(SubobjectDataset, ROWS, max_pixels=0, words="max_pixels=0: expected a whole number"),
    case(SubobjectDataset, ROWS, seed="a", words="seed='a': expected a whole number"),
    case(ImageFiles, 3, words="the number 3.*path of a folder"),
    case(ImageFiles, "", words="the string ''.*path of a folder"),
    case(MixedDataset, SubobjectDataset(ROWS), [1], words="datasets is a SubobjectDataset.*list"),
    case(MixedDataset, [SubobjectDataset(ROWS)], 1, words="weights is the number 1.*list"),
    case(MixedDataset, [SubobjectDataset(ROWS)], ["a"], words="weight 'a' of dataset 0.*whole"),
    case(PromptColumns, boxes=["a"], words="boxes is a list of 1.*the name of a column"),
    case(PromptColumns, boxes="a", box_format="cxcywh", words="'cxcywh'.*'xyxy'"),
]
LOADERS = [
    case(load, TOKENIZER, ROWS, words=r"dataset is a SubobjectTokenizer.*\(dataset, tokenizer\)"),
    case(load, ROWS, ROWS, words=r"tokenizer is a list of 3.*SubobjectTokenizer\(…\)"),
    case(load, SPLITS, words=r"a DatasetDict .*dataset\['train'\]"),
    case(load, STREAMS, words=r"an IterableDatasetDict .*dataset\['train'\]"),
    case(load, [], words="dataset is empty"),
    case(load, text="gpt2", words=r"the string 'gpt2'.*TextConfig\(AutoTokenizer"),
    case(load, device="gpu", words="device='gpu'.*'cuda'"),
    case(load, transform=str, words=r"transform=.*SubobjectDataset\(dataset, transform=…\)"),
    case(load, num_tokens=9, words=r"num_tokens=.*SubobjectTokenizer\(num_tokens=…\)"),
    case(load, packing=True, words=r"packing=.*SubobjectCollator\(tokenizer, packing=…\)"),
    case(load, num_worker=1, words="no option 'num_worker'; did you mean 'num_workers'"),
    case(load, batch_size=2.5, words=r"batch_size=2\.5: expected a whole number"),
    case(load, num_workers=-1, words="num_workers=-1: expected a whole number"),
    case(load, segment_workers="2", words="segment_workers='2': expected a whole number"),
    case(load, seed=-1, words="seed=-1: expected a whole number"),
    case(load, timeout_s="3", words="timeout_s='3': expected a number above 0, in seconds"),
    case(load, max_restarts=-1, words="max_restarts=-1: expected a whole number"),
    case(load, plan={"by_length": True}, words=r"keys \['by_length'\].*BatchPlan"),
    case(load, tokenizer=None, collator=SubobjectCollator, words="the class SubobjectCollator"),
    case(load().load_state_dict, [1], words=r"a list of 1.*state_dict\(\)"),
    case(load().load_state_dict, "state", words=r"the string 'state'.*state_dict\(\)"),
    case(load().load_state_dict, {"version": 1}, words=r"lacks .*'batches'.*state_dict\(\)"),
    case(resumed, batches=-1, words="batches of the loader state=-1: expected"),
    case(resumed, epoch=-1, words="epoch of the loader state=-1: expected"),
    case(resumed, batches=1.5, words=r"batches of the loader state=1\.5: expected"),
    case(resumed, positions=[1], words="positions of the loader state is a list of 1"),
    case(resumed, identity=None, words="identity of the loader state is None"),
    case(BatchPlan, lengths="abc", words="the string 'abc'.*one whole number per sample"),
]
COLLATORS = [
    case(SubobjectCollator, None, words=r"tokenizer is None.*SubobjectTokenizer\(…\)"),
    case(SubobjectCollator, PatchSegmenter(), words="a PatchSegmenter.*SubobjectTokenizer"),
    case(SubobjectCollator, TOKENIZER, text="gpt2", words=r"'gpt2'.*TextConfig\("),
    case(SubobjectCollator, TOKENIZER, columns="label", words=r"columns=\['label'\]"),
    case(SubobjectCollator, TOKENIZER, pixels=224, words=r"the number 224.*PixelConfig\(size=…\)"),
    case(SubobjectCollator, TOKENIZER, pad_to_multiple_of=None, words="=None: expected a whole"),
    case(PixelConfig, size="a", words="size='a': expected a whole number"),
    case(PixelConfig, size=(1.5, 2), words=r"side of size=1\.5: expected a whole number"),
    case(PixelConfig, size=(1, 2, 3), words=r"\(1, 2, 3\).*height, width"),
    case(PixelConfig, mean=0.5, words=r"mean is the number 0\.5.*three values"),
    case(TextConfig, "gpt2", caption="text", words=r"'gpt2'.*AutoTokenizer\.from_pretrained"),
    case(TextConfig, WORDS, caption=["text"], words="caption is a list of 1.*name of a column"),
    case(TextConfig, WORDS, caption="a", max_length="a", words="max_length='a': expected a whole"),
]


def check(of: Callable[..., Any], given: Any, options: Any, words: str) -> None:
    with pytest.raises(SubtokError, match=f"(?s){words}") as caught:
        of(*given, **options)
    assert isinstance(caught.value, ValueError)


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize(
        ("of", "given", "options", "words"), cases, ids=[one[-1][:40] for one in cases]
    )


@named(TOKENIZERS)
def test_tokenizers_and_segmenters(of, given, options, words):
    check(of, given, options, words)


@named(DATASETS)
def test_datasets(of, given, options, words):
    check(of, given, options, words)


@named(LOADERS)
def test_loaders(of, given, options, words):
    check(of, given, options, words)


@named(COLLATORS)
def test_collators(of, given, options, words):
    check(of, given, options, words)


@pytest.mark.parametrize(
    "of",
    [
        SubobjectTokenizer,
        EPOCSegmenter,
        SubobjectDataset,
        SubobjectIterableDataset,
        SubobjectLoader,
        SubobjectCollator,
        MixedDataset,
        ImageFiles,
        PixelConfig,
        BatchPlan,
        PromptColumns,
        PatchSegmenter,
    ],
)
@pytest.mark.parametrize("wrong", [b"\0", object(), (), 1j, lambda: None, np.zeros((2, 2))])
def test_no_value_for_any_option_gives_another_error(of, wrong):
    """Each option alone, as a value of no use: an error of ours, or it is taken."""
    required = {
        SubobjectDataset: [ROWS],
        SubobjectIterableDataset: [ROWS],
        SubobjectLoader: [ROWS],
        SubobjectCollator: [TOKENIZER],
        MixedDataset: [[SubobjectDataset(ROWS)], [1]],
        ImageFiles: ["no such folder"],
    }.get(of, [])
    for name, parameter in list(inspect.signature(of).parameters.items())[len(required) :]:
        # What torch's DataLoader takes for itself, and processors, which are of no known class.
        if parameter.kind is parameter.VAR_KEYWORD or name in ("sampler", "batch_sampler"):
            continue
        if name in ("collator", "image_processor", "drop_last", "shuffle", "columns"):
            continue
        try:
            of(*required, **{name: wrong})
        except SubtokError:
            continue
        except Exception as error:
            raise AssertionError(f"{of.__name__}({name}={wrong!r})") from error


# --- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "prompts", "words"),
    [
        (IMAGE, BOX, r"a list of 1.*Prompts\.of\(\(64, 64\)"),
        (IMAGE, {"boxes": BOX}, r"keys \['boxes'\].*Prompts\.of\(\(64, 64\)"),
        ([IMAGE], Prompts.of((64, 64), boxes=BOX), "a Prompts: give a list"),
        ([IMAGE], {"boxes": BOX}, r"keys \['boxes'\]: give a list"),
        ([IMAGE], [BOX], r"prompts of image 0 are a list of 1.*Prompts\.of"),
    ],
)
def test_prompts_of_another_type(images, prompts, words):
    with pytest.raises(PromptError, match=words):
        prompted(images, prompts)


# --- images ------------------------------------------------------------------------------------


def meta() -> torch.Tensor:
    return torch.zeros(3, 32, 32, device="meta")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (meta(), "meta tensor has no values"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64).conj(), "dtype complex64"),
        (torch.zeros(3, 2, 2).to_sparse().sparse_resize_((3, 10**6, 10**6), 3, 0), "max_pixels"),
        (np.ma.masked_array(IMAGE, IMAGE == 0), "masked array.*filled"),
        (memoryview(IMAGE), "not an image in any format"),
        (None, "NoneType: give a path"),
        ({"image": IMAGE}, "'image': 'ndarray'"),
        (np.zeros((4, 4), "datetime64[s]"), "dtype datetime64"),
        (np.array([[None]]), "dtype object"),
    ],
)
def test_images_that_are_none(value, words):
    with pytest.raises(ImageError, match=words):
        TOKENIZER(value)


def test_a_released_memoryview():
    view = memoryview(b"content")
    view.release()
    with pytest.raises(ImageError, match="memoryview that cannot be read"):
        TOKENIZER(view)


def test_tensors_that_numpy_does_not_have():
    values = torch.linspace(0, 1, 5).expand(3, 4, 5)
    expected = TOKENIZER(values).image
    assert (TOKENIZER(values.to_sparse()).image == expected).all()
    assert (TOKENIZER(values.neg().neg()).image == expected).all()
    coarse = TOKENIZER(values.to(torch.float8_e4m3fn)).image
    assert np.abs(coarse.astype(int) - expected).max() <= 8


def test_memoryviews_of_other_layouts(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(path)
    content = path.read_bytes()
    spread = memoryview(b"".join(bytes([value, 0]) for value in content))[::2]
    assert (TOKENIZER(spread).image == TOKENIZER(path).image).all()


def test_collections_of_images():
    one = TOKENIZER(IMAGE).token_map
    for images in ([IMAGE] * 2, (IMAGE, IMAGE), (image for image in (IMAGE, IMAGE))):
        found = TOKENIZER(images)
        assert [tokens.token_map.tolist() for tokens in found] == [one.tolist()] * 2


# --- what works --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_folder_is_a_dataset(tmp_path, kind):
    for number in range(3):
        Image.fromarray(IMAGE).save(tmp_path / f"{number}.png")
    assert len(SubobjectDataset(kind(tmp_path))) == 3
    with load(kind(tmp_path), batch_size=2) as loader:
        assert [batch["path"] for batch in loader] == [["0.png", "1.png"], ["2.png"]]


def test_slices_of_a_dataset():
    dataset = SubobjectDataset(ROWS)
    assert [sample.index for sample in dataset[:2]] == [0, 1]
    assert [sample.index for sample in dataset[::-1]] == [2, 1, 0]
    assert dataset[5:] == []
    assert dataset[np.int64(-1)].index == 2
    for wrong in ([0, 1], "image", 1.0):
        with pytest.raises(TypeError, match=r"whole number or a slice.*Subset"):
            dataset[wrong]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_batch_sampler_without_length_or_end(depth):
    class Endless:
        def __iter__(self):
            return iter(lambda: [2, 0], None)

    class Short:
        def __iter__(self):
            return iter([[0, 1], [2]])

    options = {"executor": "inline", "prefetch_batches": depth}
    with SubobjectLoader(ROWS, TOKENIZER, batch_sampler=Short(), **options) as loader:
        assert [batch["sample_index"].tolist() for batch in loader] == [[0, 1], [2]]
    with SubobjectLoader(ROWS, TOKENIZER, batch_sampler=Endless(), **options) as loader:
        found = [batch["sample_index"].tolist() for batch in itertools.islice(loader, 5)]
    assert found == [[2, 0]] * 5


@pytest.mark.parametrize(
    "transform",
    [classic.ToTensor(), classic.Compose([classic.RandomCrop(8), classic.ToTensor()])],
)
def test_transforms_of_pillow_images(transform):
    with pytest.raises(ConfigError, match=r"tv_tensors\.Image.*leave out ToTensor.*v2"):
        SubobjectDataset(ROWS, transform=transform)[0]


def test_a_transform_that_returns_no_image():
    with pytest.raises(ImageError, match="the transform returned no image: .*NoneType"):
        SubobjectDataset(ROWS, transform=lambda _: None)[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("of", [SubobjectTokenizer, EPOCSegmenter, load])
def test_cuda_where_there_is_none(of):
    with pytest.raises(ConfigError, match="device='cuda', but torch finds no CUDA device"):
        of(device="cuda")
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        SubobjectCollator(TOKENIZER).finish(None, device="cuda")


def test_every_message_is_one_paragraph():
    """No message is cut, doubled or unfinished."""
    for of, given, options, _ in (*TOKENIZERS, *DATASETS, *LOADERS, *COLLATORS):
        with pytest.raises(SubtokError) as caught:
            of(*given, **options)
        assert re.fullmatch(r"\S.*\S", str(caught.value)), str(caught.value)


def test_representations_say_what_things_are(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "0.png")
    text = TextConfig(word_tokenizer(), caption="caption")
    shown = {
        "SubobjectDataset(list, 3 samples)": SubobjectDataset(ROWS),
        f"SubobjectDataset(ImageFiles('{tmp_path}'), 1 samples)": SubobjectDataset(tmp_path),
        "SubobjectIterableDataset(list)": SubobjectIterableDataset(ROWS),
        "SubobjectLoader(SubobjectDataset(list, 3 samples), SubobjectTokenizer(": load(),
        "text='caption', size=8)": SubobjectCollator(
            TOKENIZER, text=text, pixels=PixelConfig(size=8)
        ),
        "SuperpixelSegmenter(SuperpixelPartitioner(method='slic'": SuperpixelSegmenter(),
        "EPOCSegmenter(packaged weights, WatershedPartitioner(": EPOCSegmenter(),
    }
    for words, thing in shown.items():
        assert words in repr(thing)


def test_text_is_still_taken():
    text = TextConfig(word_tokenizer(), caption="caption")
    assert SubobjectCollator(TOKENIZER, text=text).text is text
