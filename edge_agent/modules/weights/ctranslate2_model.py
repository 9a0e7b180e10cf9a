"""A CTranslate2 model of a weights file that was made in this process.

Owns the way through a temporary directory: the library loads files only. Knows no network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import ctranslate2
import torch

from broker.protocol.errors import ModuleRefused
from edge_agent.modules.weights import ctranslate2_file
from edge_agent.modules.weights.ctranslate2_file import ModelFile


def open_whisper(file: ModelFile, config: bytes, vocabulary: bytes, part: str) -> ctranslate2.models.Whisper:
    """The model of a file, in float32, with as many threads as torch has now.

    Args:
        file: The weights.
        config: The content of ``config.json``.
        vocabulary: The content of ``vocabulary.txt``.
        part: What the file is of, for sentences.

    Raises:
        ModuleRefused: the temporary directory has no room, or the library refuses the file.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="s2m3-") as name:
            temporary = Path(name)
            with (temporary / "model.bin").open("wb") as out:
                out.writelines(ctranslate2_file.chunks(file))
            (temporary / "config.json").write_bytes(config)
            (temporary / "vocabulary.txt").write_bytes(vocabulary)
            return ctranslate2.models.Whisper(
                name, device="cpu", compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
            )
    except OSError as error:
        raise ModuleRefused(
            f"the {part}'s file can't be written to {tempfile.gettempdir()} ({error.strerror or error}): "
            "free some room there, or set TMPDIR to another directory"
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:  # what the library raises for a file it doesn't like
        raise ModuleRefused(f"CTranslate2 {ctranslate2.__version__} can't load the {part}: {error}") from error
