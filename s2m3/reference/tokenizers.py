"""Small tokenizers in the published file formats, for checkpoints of random weights.

Owns one writer for each kind: ``WRITERS[kind](directory, config)`` writes files that transformers reads like published
ones. Ids are below the configuration's vocabulary, and special tokens are where the model expects them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

Config = dict[str, Any]
_WORDS = ("a", "the", "photo", "of", "cat", "dog", "cup", "coffee", "what", "is", "this", "in", "picture", "horse")


def clip(directory: Path, config: Config) -> None:
    """CLIP's byte-level pairs; start and end are the last two ids, as published."""
    size = int(config["text_config"]["vocab_size"])
    letters = _letters()
    tokens = letters + [f"{letter}</w>" for letter in letters]
    merges: list[str] = []
    for word in _WORDS:
        left = ""
        for index, letter in enumerate(word):
            right = letter if index < len(word) - 1 else f"{letter}</w>"
            if left and left + right not in tokens:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    _write_byte_pairs(directory, tokens, size, ("<|startoftext|>", "<|endoftext|>"), merges)
    _write_config(directory, "CLIPTokenizer", model_max_length=config["text_config"]["max_position_embeddings"])


def bert(directory: Path, config: Config) -> None:
    """BERT's word pieces, lower case, the special tokens first."""
    size = int(config.get("text_config", config)["vocab_size"])
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters), *_WORDS[1:]]
    filled = _filled(tokens, size, "[unused{}]")
    (directory / "vocab.txt").write_text("\n".join(filled) + "\n", encoding="utf-8")
    _write_config(directory, "BertTokenizer", do_lower_case=True)


def siglip(directory: Path, config: Config) -> None:
    """SigLIP's sentence pieces: a small model, trained on a few words, of at most the configuration's vocabulary."""
    import sentencepiece  # noqa: PLC0415 - slow, and only for this kind

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(_WORDS), *(f"{a} {b}" for a in _WORDS for b in _WORDS)]),
        model_writer=made,
        vocab_size=min(int(config["text_config"]["vocab_size"]), 64),
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(made.getvalue())
    _write_config(directory, "SiglipTokenizer", model_max_length=config["text_config"]["max_position_embeddings"])


def gpt2(directory: Path, config: Config) -> None:
    """GPT-2's byte-level pairs; the end is the last id, as published."""
    size = int(config.get("decoder", config)["vocab_size"])
    _write_byte_pairs(directory, _letters(), size, ("<|endoftext|>",))
    _write_config(directory, "GPT2Tokenizer")


def prompted(directory: Path, config: Config) -> None:
    """Bytes, and the special tokens of a model that answers prompts, at the ids that its configuration says."""
    text = config["text_config"]
    image = config["image_token_index"] if "image_token_index" in config else config["image_token_id"]
    special = {"<s>": text["bos_token_id"], "</s>": text["eos_token_id"], "<image>": image}
    if config["model_type"] == "idefics3":  # its processor would add these behind the vocabulary
        special |= {"<fake_token_around_image>": image - 2, "<end_of_utterance>": image - 3}
    added = [
        {"id": index, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for token, index in sorted(special.items(), key=lambda each: each[1])
    ]
    free = (index for index in range(text["vocab_size"]) if index not in special.values())
    ids = special | dict(zip(_letters(), free, strict=False))  # letters first: none of the free ids is lost
    ids |= {f"<|unused-{index}|>": index for index in free}
    _write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": dict(sorted(ids.items(), key=lambda each: each[1])), "merges": []},
        },
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    _write_config(directory, "PreTrainedTokenizerFast", **names)


def whisper(directory: Path, config: Config) -> None:
    """Whisper's byte-level pairs, and its special tokens from the end of the text on, where published."""
    size, end = int(config["vocab_size"]), int(config["eos_token_id"])
    _write_byte_pairs(directory, _letters(), end + 1, ("<|endoftext|>",))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = {str(index): {"content": f"<|special-{index}|>"} | plain for index in range(end + 1, size)}
    _write_config(directory, "WhisperTokenizer", added_tokens_decoder=special)


def roberta(directory: Path, config: Config) -> None:
    """RoBERTa's byte-level pairs; its first four special tokens come first, the mask last, as published."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *_letters()]
    _write_byte_pairs(directory, tokens, int(config["text_config"]["vocab_size"]), ("<mask>",))
    _write_config(directory, "RobertaTokenizer")


WRITERS: Mapping[str, Callable[[Path, Config], None]] = {
    writer.__name__: writer for writer in (bert, clip, gpt2, prompted, roberta, siglip, whisper)
}
"""Kind -> its writer, which takes a directory and config.json."""


def _letters() -> list[str]:
    """The 256 characters that stand for the bytes in byte-level vocabularies."""
    return list(bytes_to_unicode().values())  # type: ignore[no-untyped-call]


def _write_byte_pairs(
    directory: Path, tokens: list[str], size: int, last: tuple[str, ...], merges: Sequence[str] = ()
) -> None:
    """Writes merges.txt, and vocab.json: tokens first, special ones at the very end, fillers between."""
    filled = [*_filled(tokens, size - len(last), "<|unused-{}|>"), *last]
    _write_json(directory / "vocab.json", {token: index for index, token in enumerate(filled)})
    lines = ["#version: 0.2", *merges]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _filled(tokens: list[str], size: int, filler: str) -> list[str]:
    if size < len(tokens):
        msg = f"a vocabulary with room for {size} tokens is too small for {len(tokens)}"
        raise ValueError(msg)
    return [*tokens, *(filler.format(index) for index in range(size - len(tokens)))]


def _write_config(directory: Path, kind: str, **fields: Any) -> None:  # noqa: ANN401 - JSON
    _write_json(directory / "tokenizer_config.json", {"tokenizer_class": kind, **fields})


def _write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - JSON
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
