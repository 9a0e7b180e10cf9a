"""Texts to tokens as a network takes them, by the values of ``TextPreparation`` and the file of a tokenizer.

Owns the two kinds of files that are read: ``tokenizer.json`` of the tokenizers library, of which transformers' own
tokenizers are wrappers, and a ``.model`` of sentencepiece with SigLIP's rules. Both give transformers' tokens. Knows no
network. The libraries are imported when the first tokenizer is made.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.preparation import TextPreparation
from broker.protocol.sizes import show_bytes
from broker.protocol.tensors import Array
from edge_agent.modules.inputs.notes import note_cut_text
from edge_agent.modules.panics import panics_as_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCEPIECE = ".model"
"""The suffix of a file of sentencepiece."""
MAX_FILE_BYTES = 64 * 2**20
MAX_GROWTH = 64
"""How much longer a normalizer may make a text; those that are known make 3 bytes of one."""
END, UNKNOWN = "</s>", "<unk>"
"""SigLIP's special tokens. The first one pads, too."""
PADS = ("[PAD]", "<pad>")
"""Tokens that pad by their name, where neither the file nor the preparation says which one does."""
_SPACE = "▁"  # how sentencepiece writes a blank
_SPECIALS = frozenset((END, UNKNOWN))
_SPECIAL = re.compile(f"({END}|{UNKNOWN})")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokens(Protocol):
    """A tokenizer with a preparation's rules."""

    def of(self, texts: Sequence[str]) -> dict[str, Array]:
        """``ids`` and ``mask`` int64 (n, t) of n texts."""

    def file(self) -> bytes:
        """The file from which ``read`` makes it again."""


def read(directory: Path, how: TextPreparation) -> Tokens:
    """The tokenizer of a file in a directory.

    Raises:
        ModuleRefused: it isn't there or makes no tokenizer.
        ImportError: a package is missing.
    """
    path = directory / how.tokenizer
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModuleRefused(f"{path} has more than {show_bytes(MAX_FILE_BYTES)}: it is not a tokenizer")
        content = path.read_bytes()
    except OSError as error:
        raise ModuleRefused(
            f"{path} can't be read ({error.strerror or type(error).__name__}): put the model's tokenizer there, or "
            "correct tokenizer in the preparation"
        ) from error
    try:
        return _made(content, how)
    except ImportError:
        raise
    except ModuleRefused as error:
        raise ModuleRefused(f"{path}: {error}") from error
    except Exception as error:  # the libraries raise Exception itself, or anything
        raise ModuleRefused(f"{path} makes no tokenizer ({first_line(error)}): fetch it again") from error


@panics_as_errors()
def _made(content: bytes, how: TextPreparation) -> Tokens:
    if how.tokenizer.endswith(SENTENCEPIECE):
        return SigLIPTokens(content, how)
    from tokenizers import Tokenizer  # noqa: PLC0415 - agents without texts start without it

    tokenizer = Tokenizer.from_str(content.decode())
    known = tokenizer.padding or {}
    named = how.pad or known.get("pad_token")
    pad = next((each for each in (named, *PADS) if each and tokenizer.token_to_id(each) is not None), None)
    if pad is None or named not in {None, pad}:
        raise ModuleRefused(f"it has no token {named or ' or '.join(PADS)} to pad texts: write pad: and its own token")
    return FastTokens(tokenizer, how, pad, side=known.get("direction", "right"))


class FastTokens:
    """A tokenizer of the tokenizers library. ``pad`` is the token that pads at ``side``.

    Raises:
        ModuleRefused: its file makes a long text, or many tokens, of a short one.
    """

    def __init__(self, tokenizer: Tokenizer, how: TextPreparation, pad: str, *, side: str = "right") -> None:
        _require_bounds(tokenizer, how)
        self._tokenizer = tokenizer
        self._longest, self._cut = how.longest, (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(how.longest, direction=self._cut)
        tokenizer.enable_padding(
            direction=side,
            pad_id=tokenizer.token_to_id(pad),
            pad_token=pad,
            length=how.longest if how.padded else None,
        )

    def of(self, texts: Sequence[str]) -> dict[str, Array]:
        """As ``Tokens`` says."""
        found = self._tokenizer.encode_batch(list(texts))
        for number, (text, each) in enumerate(zip(texts, found, strict=True), start=1):
            places = [place for place in each.offsets if place != (0, 0)]  # which special tokens have
            if each.overflowing and places:
                unread = text[places[-1][1] :] if self._cut == "right" else text[: places[0][0]]
                note_cut_text(number, self._longest, unread.strip())
        return {
            "ids": np.array([each.ids for each in found]),
            "mask": np.array([each.attention_mask for each in found]),
        }

    def file(self) -> bytes:
        """As ``Tokens`` says."""
        return self._tokenizer.to_str().encode()


def _require_bounds(tokenizer: Tokenizer, how: TextPreparation) -> None:
    """Refuse a file that makes more of a text than a pass is made for: what a request costs is known by its text."""
    if (added := tokenizer.num_special_tokens_to_add(is_pair=False)) >= how.longest:
        raise ModuleRefused(f"the tokenizer adds {added} tokens to each text, and a text has at most {how.longest}")
    steps = [json.loads(tokenizer.normalizer.__getstate__())] if tokenizer.normalizer else []
    growth, before = 1, 0
    while steps:
        step = steps.pop()
        steps += step.get("normalizers", ())
        before += len(step.get("prepend", "").encode())
        growth *= max(1, len(step.get("content", "").encode()))
    if growth > MAX_GROWTH or before > MAX_GROWTH:
        reason = f"the tokenizer's normalizer makes a text more than {MAX_GROWTH} times as long: fetch its file again"
        raise ModuleRefused(reason)


class SigLIPTokens:
    """SigLIP's tokenizer: lower case, without punctuation, by a model of sentencepiece."""

    def __init__(self, model: bytes, how: TextPreparation) -> None:
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415 - only SigLIP needs it

        self._model: Any = SentencePieceProcessor(model_proto=model)
        self._how = how
        self._before = len(self._model.encode(UNKNOWN))
        self._end = int(self._model.piece_to_id(END))

    def of(self, texts: Sequence[str]) -> dict[str, Array]:
        """As ``Tokens`` says."""
        found = [self._ids(text, number) for number, text in enumerate(texts, start=1)]
        length = self._how.longest if self._how.padded else max(map(len, found))
        ids, mask = np.full((len(found), length), self._end), np.zeros((len(found), length), np.int64)
        for index, each in enumerate(found):
            ids[index, : len(each)], mask[index, : len(each)] = each, 1
        return {"ids": ids, "mask": mask}

    def file(self) -> bytes:
        """As ``Tokens`` says."""
        return bytes(self._model.serialized_model_proto())

    def _ids(self, text: str, number: int) -> list[int]:
        pieces, read = self._pieces(text), self._how.longest - 1
        if unread := "".join(pieces[read:]).removesuffix(END):
            note_cut_text(number, self._how.longest, unread.replace(_SPACE, " ").strip())
        ids = [int(self._model.piece_to_id(piece)) for piece in pieces[:read]]
        return ids if ids[-1:] == [self._end] else [*ids, self._end]

    def _pieces(self, text: str) -> list[str]:
        """The pieces of a text; a special token in it is one piece."""
        found: list[str] = []
        for part in _SPECIAL.split(_SPACE + text.replace(_SPACE, " ")):
            found += [part] if part in _SPECIALS else self._plain(part)
        return found[1:] if found[:1] == [_SPACE] and not _SPECIALS.isdisjoint(found[1:2]) else found

    def _plain(self, text: str) -> list[str]:
        """The pieces of a text without special tokens; with one before it, sentencepiece adds no blank of its own."""
        plain = " ".join(text.lower().translate(_NO_PUNCTUATION).split())
        found: list[str] = self._model.encode(UNKNOWN + plain, out_type=str)
        return found[self._before :] if len(found) >= self._before else found
