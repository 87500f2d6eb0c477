"""Read what transformers saved: safetensors only, every weight there, and no code of a folder run.

A ``config.json`` may name Python files beside it (``auto_map``). transformers then asks on the
terminal whether to run them, and waits where nobody answers. Here the answer is always no.
"""

from __future__ import annotations

import os
from typing import Any

from subtok_data.errors import WeightsError

__all__ = ["read_model", "read_pretrained"]


def read_pretrained(kind: Any, name: str | os.PathLike[str], **options: Any) -> Any:
    """Read a configuration, processor or tokenizer of transformers.

    Parameters
    ----------
    kind : class
        With ``from_pretrained``.
    name : str or path
        Folder, or hub id.
    **options
        For ``from_pretrained``.

    Returns
    -------
    object
        As ``from_pretrained`` gives it.

    Raises
    ------
    WeightsError
        It needs Python code that comes with the folder. What transformers raises for other folders
        is left as it is.

    Examples
    --------
    >>> from transformers import AutoConfig
    >>> from subtok_data.boundary import DEFAULT_WEIGHTS
    >>> read_pretrained(AutoConfig, DEFAULT_WEIGHTS)
    Traceback (most recent call last):
    ...
    ValueError: The checkpoint you are trying to load has model type `subtok-lite` ...
    """
    try:
        return kind.from_pretrained(os.fspath(name), trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise WeightsError(
            f"{kind.__name__} {os.fspath(name)!r}: it needs Python code that comes with it "
            '("auto_map" in its configuration), and such code is never run; give a model, '
            "processor or tokenizer of a kind that transformers has itself"
        ) from error


def read_model(kind: Any, name: str | os.PathLike[str], **options: Any) -> Any:
    """Read a model of transformers, from safetensors.

    transformers fills weights that a file lacks with random numbers and a warning; here they are
    an error.

    Parameters
    ----------
    kind : class
        With ``from_pretrained``.
    name : str or path
        Folder, or hub id.
    **options
        For ``from_pretrained``.

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    WeightsError
        Missing or misshapen weights, or a model that needs code of its own.
    """
    model, report = read_pretrained(
        kind, name, use_safetensors=True, output_loading_info=True, **options
    )
    lacking = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
    if lacking:
        raise WeightsError(
            f"{kind.__name__} {os.fspath(name)!r}: {len(lacking)} weights are missing or have "
            f"another shape, the first are {lacking[:3]}; give the weights of that architecture"
        )
    return model.eval()
