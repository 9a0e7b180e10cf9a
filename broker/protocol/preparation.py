"""How an input becomes the arrays of a network, as frozen values: for pictures, texts and sounds.

Owns the fields, in the order in which they apply, and their limits. Doesn't know Pillow, tokenizers or files: the agent
has what computes them (``edge_agent/modules/inputs``). A task file may state them, and an exported module does.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from broker.protocol.sentences import described
from broker.protocol.values import Spec

MAX_SIDE = 4096  # pixels of a network's input
MAX_SHORTER = 1024  # pixels of a shorter side: the longer one may have 16 times as many
MAX_TOKENS = 8192  # of one text
MAX_SAMPLES = 96_000 * 600  # of a sound
MAX_BANDS = 1024
MAX_FRAMES = 65_536
MAX_SPECTRUM = 2**24  # numbers of a sound's spectrum, or of its mel bands' weights: 128 MiB each while it is prepared

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Sides = tuple[Side, Side]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Divisor = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Colours = tuple[Number, Number, Number]
FileName = Annotated[
    str,
    described(
        r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
        "is not the name of a file beside this one: use letters, digits, _, . and -, and no folder",
        max_length=128,
    ),
]
"""A file beside the weights: never a path."""
_Hz = Annotated[float, Field(ge=0, le=96_000)]
_Window = Annotated[int, Field(ge=2, le=65_536)]
_Token = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class PicturePreparation(Spec):
    """How a picture becomes pixels float32 (1, 3, height, width): red, green, blue.

    A user's own ONNX file may take them in another layout (``edge_agent/modules/families/onnx.py``).

    The fields apply in this order. All but ``scale`` may be left out.

    Args:
        centre: Share of the shorter side: only the square of so many pixels in the picture's centre is taken.
        shorter: Pixels of the shorter side after resizing; the sides keep their proportion.
        size: Height and width to which the picture is squeezed, instead of ``shorter``.
        resample: The filter that resizes, as Pillow calls it.
        crop: Height and width of the part that is then cut from the centre; outside of the picture it is black.
        scale: Factor of each number of the picture, which is 0 to 255.
        mean: What is then subtracted, for each colour.
        std: What the rest is divided by, for each colour.
    """

    centre: Annotated[float, Field(gt=0, le=1)] | None = None
    shorter: Annotated[int, Field(ge=1, le=MAX_SHORTER)] | None = None
    size: Sides | None = None
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"
    crop: Sides | None = None
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1 / 255
    mean: Colours = (0.0, 0.0, 0.0)
    std: tuple[Divisor, Divisor, Divisor] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _one_resize(self) -> Self:
        if self.shorter is not None and self.size is not None:
            raise ValueError("name one of shorter and size: a picture is resized once")
        return self


class TextPreparation(Spec):
    """How texts become tokens ``ids`` and ``mask`` int64 (n, t).

    Args:
        tokenizer: The file of the tokenizer, beside the weights: a ``tokenizer.json`` of the tokenizers library, or
            a ``.model`` of sentencepiece, which is read as SigLIP's.
        longest: The most tokens of a text; what is more is cut off.
        padded: Whether each text is padded to ``longest`` tokens, else to the longest of the n.
        joined: Whether all lines are one text, as of a question, else each line is a text.
        pad: The token that pads, where the file of the tokenizer names none.
    """

    tokenizer: FileName = "tokenizer.json"
    longest: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    padded: bool = False
    joined: bool = False
    pad: _Token | None = None


class SoundPreparation(Spec):
    """How a sound becomes features float32: the logarithm of its mel bands, frame by frame.

    The fields apply in this order.

    Args:
        rate_hz: Samples a second; another sound is resampled.
        most_s: Seconds of the longest sound that is read: a longer one is refused.
        least: Samples of the shortest one.
        samples: Samples that a sound is cut or filled to.
        fill: What fills it: zeros, whole repeats and then zeros, or repeats of which the last is cut.
        window: Samples of a frame, and ``hop`` from one frame to the next.
        fft: Samples of its transform, the frame and zeros; as the window by default.
        symmetric: Whether the Hann window ends at 0, as it begins.
        centred: Whether the first frame has the first sample in its middle; else the sound begins with it.
        without_mean: Whether a frame's mean is subtracted from it.
        emphasis: Share of each sample that is subtracted from the next one of its frame.
        bands: How many mel bands there are, from ``lowest_hz`` to ``highest_hz``.
        scale: The formula of mels. ``kaldi`` has its triangles straight in mels, the others in hertz.
        equal_area: Whether wider bands weigh less.
        log: The logarithm: natural, to base 10, or decibels.
        floor: The least energy of a band.
        frames: Frames to which the features are then cut, or filled with zeros.
        range: How far below the loudest band others may be; lower ones are raised.
        mean: What is then subtracted, and ``std`` what the rest is divided by.
        layout: The lengths of the features: (1, bands, frames), (1, frames, bands) or (1, 1, frames, bands).
    """

    rate_hz: Annotated[int, Field(ge=1000, le=96_000)]
    most_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    least: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    fill: Literal["zeros", "whole repeats", "repeats"] = "zeros"
    window: _Window
    hop: Annotated[int, Field(ge=1, le=65_536)]
    fft: _Window | None = None
    symmetric: bool = False
    centred: bool = True
    without_mean: bool = False
    emphasis: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bands: Annotated[int, Field(ge=1, le=MAX_BANDS)]
    lowest_hz: _Hz = 0.0
    highest_hz: _Hz
    scale: Literal["htk", "slaney", "kaldi"] = "slaney"
    equal_area: bool = True
    log: Literal["natural", "decimal", "decibel"] = "decimal"
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-10
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    range: Annotated[float, Field(gt=0, le=1e6)] | None = None
    mean: Number = 0.0
    std: Divisor = 1.0
    layout: Literal["bands x frames", "frames x bands", "1 x frames x bands"] = "bands x frames"

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.fft is not None and self.fft < self.window:
            raise ValueError(f"fft is {self.fft}, and must be at least the window, {self.window}")
        if not self.lowest_hz < self.highest_hz <= self.rate_hz / 2:
            raise ValueError(
                f"bands from {self.lowest_hz:g} to {self.highest_hz:g} Hz: write lowest_hz below highest_hz, and "
                f"highest_hz at most {self.rate_hz / 2:g}, half of rate_hz"
            )
        if self.samples is None and self.least < self.window:
            raise ValueError(f"least is {self.least}: write at least the window, {self.window}, or write samples")
        return self

    @model_validator(mode="after")
    def _is_small(self) -> Self:
        samples = self.samples if self.samples is not None else round(self.most_s * self.rate_hz)
        frames, frequencies = samples // self.hop + 1, (self.fft or self.window) // 2 + 1
        numbers = max(self.samples or 0, max(frames, self.bands) * max(frequencies, self.bands))
        if numbers > MAX_SPECTRUM:
            raise ValueError(
                f"{samples} samples in {frames} frames of {frequencies} frequencies and {self.bands} bands are "
                f"{numbers} numbers, at most {MAX_SPECTRUM} are allowed: write a larger hop, a shorter fft, fewer "
                "bands or fewer seconds"
            )
        return self


class Preparation(Spec):
    """How a module's one input is prepared: exactly one of a picture, texts, and a sound."""

    picture: PicturePreparation | None = None
    text: TextPreparation | None = None
    sound: SoundPreparation | None = None

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> Self:
        if sum(each is not None for each in (self.picture, self.text, self.sound)) != 1:
            raise ValueError("name exactly one of picture, text, sound")
        return self
