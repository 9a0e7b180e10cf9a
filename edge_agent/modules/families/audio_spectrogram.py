"""Sound beside CLIP: the Audio Spectrogram Transformer (Gong et al. 2021, arXiv:2104.01778), and what aligns it.

    part             weights                             takes                     gives, and the answer
    encoder          ``audio_spectrogram_transformer.``  a sound's wav bytes       ``pooled`` float32 (1, d)
    projection       ``audio_projection.``               ``pooled``                ``audio_embeds`` float32 (1, e)
    alignment_head   CLIP's ``logit_scale``              ``audio_embeds``,         ``logits`` float32 (1, n) of the
                                                         ``image_embeds``,         texts for the sound, ``similarity``
                                                         ``text_embeds``, texts    float32 (1, 1) of sound and picture

AST was trained to name AudioSet's sounds: nothing published maps it into CLIP's space. The projection does, and it is
the user's to train on pairs of sounds and captions; it lies in the models directory under ``local``, with a config.json
of ``model_type`` s2m3-audio-projection, ``width`` d and ``projected`` e. Towers and projections of picture and text are
CLIP's own modules, held once. AST's classifier over AudioSet's labels is not held.

AST hears the first 10.24 seconds: longer sounds are cut, shorter ones padded, as its feature extractor does.
"""

from __future__ import annotations

from pydantic import JsonValue, ValidationError
from torch import Tensor
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.preparation import SoundPreparation
from edge_agent.modules import SCORES
from edge_agent.modules.families import contrast, vit
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.inputs.answers import Ranked
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary, tower

MOST_S = 60.0  # seconds of the longest sound that is read
PROJECTION = "s2m3-audio-projection"
_WINDOW = 400  # samples of the shortest sound that has a spectrum, 25 ms


def ast_config(config: Config) -> ASTConfig:
    """The encoder's configuration, from the whole classifier's; its labels don't matter."""
    gone = {"id2label", "label2id", "dtype", "torch_dtype", "architectures"}
    return ASTConfig(**{name: value for name, value in config.items() if name not in gone})


def align(network: contrast.Head, audio_embeds: Tensor, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
    """A sound, a picture (1, e) and n texts (n, e) to ``logits`` (1, n) of the texts and ``similarity`` (1, 1)."""
    sound, picture, texts = (
        each / each.norm(dim=-1, keepdim=True) for each in (audio_embeds, image_embeds, text_embeds)
    )
    logits = sound @ texts.t() * network.get_parameter("logit_scale").exp()
    return {"logits": logits, "similarity": sound @ picture.t(), SCORES: logits.float().softmax(dim=1)}


def preparation(made: ASTFeatureExtractor) -> SoundPreparation:
    """The rules of a feature extractor: Kaldi's bands, whatever package is installed."""
    return SoundPreparation(
        rate_hz=made.sampling_rate,
        most_s=MOST_S,
        least=_WINDOW,
        window=_WINDOW,
        hop=160,
        fft=512,
        symmetric=True,
        centred=False,
        without_mean=True,
        emphasis=0.97,
        bands=made.num_mel_bins,
        lowest_hz=20.0,
        highest_hz=made.sampling_rate // 2,
        scale="kaldi",
        equal_area=False,
        log="natural",
        floor=1.192092955078125e-07,
        frames=made.max_length,
        mean=made.mean if made.do_normalize else 0.0,
        std=made.std * 2 if made.do_normalize else 1.0,
        layout="frames x bands",
    )


def _sound_steps(checkpoint: Checkpoint) -> steps.Steps:
    made = prepare.processor(checkpoint, ASTFeatureExtractor)
    try:
        return steps.Steps((steps.Sound(preparation=preparation(made)),))
    except ValidationError as error:
        path = checkpoint.repository.required(prepare.PREPROCESSOR)
        raise ModuleRefused(f"{path} makes no feature extractor ({first_line(error)}): fetch it again") from error


def _encoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    wanted = f"{prepare.TOWER} patch_size qkv_bias frequency_stride time_stride max_length num_mel_bins"
    extractor = prepare.processor(checkpoint, ASTFeatureExtractor)
    sounds = prepare.fields(extractor, "sampling_rate num_mel_bins max_length do_normalize mean std")
    return prepare.identity(ast_config, wanted)(checkpoint) | {"sounds": sounds}


def _projected(config: Config) -> int:
    return int(config.get("projection_dim", 512))


def _alignment_steps(checkpoint: Checkpoint) -> steps.Ranking:
    """The texts, best for the sound first, and how well the picture fits it, from -1 to 1."""
    width = _projected(checkpoint.config)
    return steps.Ranking(
        needs=(
            steps.Arrays(shapes={"audio_embeds": (1, width)}),
            steps.Arrays(shapes={"image_embeds": (1, width)}),
        ),
        width=width,
        result=Ranked(also=("similarity",)),
    )


PARTS: model_parts.Parts = {
    "encoder": model_parts.Part(
        prefixes={"audio-spectrogram-transformer": [{"audio_spectrogram_transformer.": ""}]},
        build=lambda config: ASTModel(ast_config(config)),
        identity=_encoder_identity,
        steps=_sound_steps,
        forwards=tower(
            "pooled",
            "pooler_output",
            "One sound of 10.24 seconds, or padded to them.",
            lambda network: {"features": (1, network.config.max_length, network.config.num_mel_bins)},
            features="input_values",
        ),
        renames=vit.RENAMES,
    ),
    "projection": contrast.projection(
        {PROJECTION: [{"audio_projection.": "audio_projection."}]},
        "audio_projection",
        "audio_embeds",
        lambda config: (config["width"], config["projected"]),
        "One sound.",
    ),
    "alignment_head": model_parts.Part(
        prefixes={"clip": [{"logit_scale": "logit_scale"}]},
        build=lambda config: contrast.Head(_projected(config), {"logit_scale": ()}),
        identity=lambda _: {},
        steps=_alignment_steps,
        forwards=ordinary(
            align,
            "One sound, one picture and four texts.",
            lambda network: {
                "audio_embeds": (1, network.width),
                "image_embeds": (1, network.width),
                "text_embeds": (contrast.TEXTS, network.width),
            },
        ),
    ),
}

load = model_parts.loader(PARTS)
