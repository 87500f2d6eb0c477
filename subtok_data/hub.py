"""The Hugging Face hub: folders of files that are data, never code, there and back.

The hub is the one of ``HF_ENDPOINT``; accounts, caches and offline mode are those of
``huggingface_hub``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from subtok_data.errors import ConfigError, WeightsError

__all__ = ["commit_folder", "download_folder", "is_hub_id", "model_card", "upload_folder"]

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_PATTERNS = ("*.json", "*.safetensors")
_DATA = frozenset({".json", ".safetensors", ".jinja", ".txt", ".model"})
_CARD_FILE = "README.md"
_NAME = "{{name}}"
"""Stands in a card for the full name of the repository."""


def is_hub_id(name: object) -> bool:
    """Return whether a value may name a repository of the hub.

    Examples
    --------
    >>> is_hub_id("user/name"), is_hub_id("./name"), is_hub_id("a/b/c"), is_hub_id(Path("a/b"))
    (True, False, False, False)
    """
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None


def download_folder(name: str, *, patterns: Sequence[str] = _PATTERNS, **options: Any) -> Path:
    """Download a repository, without Python files and pickles.

    Parameters
    ----------
    name : str
        ``"user/name"``.
    patterns : sequence of str, optional
        Files to take; configurations and safetensors by default.
    **options
        Of ``huggingface_hub.snapshot_download``: ``revision``, ``token``, ``cache_dir``,
        ``local_files_only``, ``force_download``.

    Returns
    -------
    Path
        A folder of the cache.

    Raises
    ------
    WeightsError
        Offline, unknown, private or gated.
    """
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **options)
        )
    except Exception as error:  # the hub's client has a type for each reason
        raise WeightsError(
            f"{name!r} is no local folder and cannot be had from the hub: {error}"
        ) from error


def upload_folder(save: Callable[[Path], object], name: str, card: str, **options: Any) -> str:
    """Write a folder and commit it to a model's repository, which is created if there is none.

    Parameters
    ----------
    save : callable
        ``save(folder)`` writes the files.
    name, card, **options
        As :func:`commit_folder` has them.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    ConfigError
        There are files that are not data only: TorchScript, ONNX, pickles. What the hub refuses is
        raised as ``huggingface_hub`` raises it.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder)
        _refuse_code(folder, name)
        return commit_folder(folder, name, card, **options)


def commit_folder(
    folder: Path,
    name: str,
    card: str,
    *,
    repo_type: str = "model",
    ignore: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Commit a folder to a repository, which is created if there is none.

    Parameters
    ----------
    folder : Path
        With the files; nothing is written there.
    name : str
        ``"user/name"``, or a name in the account of the token.
    card : str
        Becomes ``README.md``, unless the repository has one; ``{{name}}`` in it is filled in.
    repo_type : {"model", "dataset"}, optional
        Kind of the repository.
    ignore : sequence of str, optional
        Patterns of files that stay here.
    private : bool, optional
        Of a new repository.
    token : str or bool, optional
        By default that of ``hf auth login``.
    revision : str, optional
        Branch.
    commit_message : str, optional
        Of the commit.
    create_pr : bool, optional
        Open a pull request instead of committing.

    Returns
    -------
    str
        Address of the commit. Files that are there already and have not changed are not sent again.

    Raises
    ------
    ConfigError
        The name is a path. What the hub refuses is raised as ``huggingface_hub`` raises it.
    """
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    _refuse_paths(name)
    api = huggingface_hub.HfApi(token=token)
    full_name = api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    content: dict[str, str | bytes] = {
        file: str(folder / file)
        for file in filter_repo_objects(sorted(files), ignore_patterns=list(ignore))
    }
    if not api.file_exists(full_name, _CARD_FILE, repo_type=repo_type, revision=revision):
        content[_CARD_FILE] = card.replace(_NAME, full_name).encode()
    commit = api.create_commit(
        full_name,
        [huggingface_hub.CommitOperationAdd(*one) for one in content.items()],
        commit_message=commit_message or "Upload with subtok-data",
        repo_type=repo_type,
        revision=revision,
        create_pr=create_pr,
    )
    return str(commit.commit_url)


def _refuse_paths(name: object) -> None:
    if not isinstance(name, str) or re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is None:
        raise ConfigError(
            f"{name!r} is no name of a repository: give 'user/name'; a folder is written by "
            "save_pretrained(folder)"
        )


def _refuse_code(folder: Path, name: str) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    wrong = [str(path.relative_to(folder)) for path in files if path.suffix not in _DATA]
    if wrong:
        raise ConfigError(
            f"not uploaded to {name!r}: {wrong} can hold code, and only {sorted(_DATA)} are read "
            "from the hub again; give a segmenter whose weights are safetensors"
        )


def model_card(what: str, code: Sequence[str], details: Mapping[str, Any]) -> str:
    """Write the card of a repository.

    Parameters
    ----------
    what : str
        One sentence.
    code : sequence of str
        Lines of Python that use it; ``{{name}}`` is the repository.
    details : mapping
        Configuration, as JSON values.

    Examples
    --------
    >>> print(model_card("A tokenizer.", ['read("{{name}}")'], {"size": 64})[:70])
    ---
    library_name: subtok-data
    tags:
    - subobject-tokens
    ---
    <BLANKLINE>
    # {{name}}
    """
    lines = [
        *("---", "library_name: subtok-data", "tags:", "- subobject-tokens", "---", ""),
        *(f"# {_NAME}", "", what, "", "```bash", "pip install subtok-data", "```", ""),
        *("```python", *code, "```", "", "Configuration:", ""),
        *("```json", json.dumps(details, indent=2), "```", ""),
    ]
    return "\n".join(lines)
