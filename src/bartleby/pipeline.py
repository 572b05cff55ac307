"""TextDiffusionPipeline: writes, edits, fills in and interpolates texts by denoising BART latents.

A diffusers pipeline of a BART, its tokenizer, a denoiser and a noise scheduler; the statistics that
normalise the latents and the lengths of the training texts are part of its configuration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from transformers import BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerBase

from bartleby.autoencoder import Autoencoder, DecodeSettings
from bartleby.checkpoints import read_json, realigned
from bartleby.compressor import Compressor
from bartleby.defaults import settings_from
from bartleby.denoisers import TokenTransformer, load_denoiser
from bartleby.denoisers.build import has_own_class
from bartleby.drafts import NOISE, Callback, Draft, Writer
from bartleby.errors import UserError, first_line
from bartleby.latents import STATISTICS_FILE, LatentStatistics
from bartleby.loading import (
    BUNDLED,
    COMPRESSOR,
    check_weights,
    generator_folder,
    load_autoencoder,
    model_folder,
)
from bartleby.messages import say
from bartleby.planning import Planner
from bartleby.precision import chosen_device
from bartleby.run_folder import (
    DENOISER,
    LENGTHS_FILE,
    SAMPLING_FILE,
    SCHEDULER,
    finished_record,
    is_run,
)
from bartleby.sampling import SamplingSettings
from bartleby.tokenization import decode_ids
from bartleby.writing_decoder import DECODER_FILE, decoder_weights, load_decoder

PIPELINE_FILE = "model_index.json"
PARTS = ("bart", "tokenizer", "denoiser", "scheduler")
EDITING_CANDIDATES, EDITING_MIN_P = 16, 0.1


@dataclass
class TextDiffusionOutput(BaseOutput):
    """texts: what was written, in order.  lengths: latents of each: tokens, <s> and </s> included, or compressed."""

    texts: list[str]
    lengths: list[int]


class TextDiffusionPipeline(DiffusionPipeline):
    """Text from noise. Calling it writes new texts; `edit`, `infill` and `interpolate` start from given ones.

    Text i depends on `seed` and i alone, not on how many are written or how they are batched. `settings` are the
    model's own unless given: `default_settings` of a new text, `editing_settings` of the others; `decoding` is greedy
    search, or drawing at the settings' decoder_temperature, unless given.
    """

    _optional_components: ClassVar[list[str]] = [COMPRESSOR]

    def __init__(
        self,
        bart: BartForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        denoiser: ModelMixin,
        scheduler: DDPMScheduler,
        window: int = 128,
        latent_statistics: dict[str, Any] | None = None,
        length_counts: list[int] | None = None,
        sampling: dict[str, Any] | None = None,
        compressor: Compressor | None = None,
    ):
        """latent_statistics: as `LatentStatistics.to_json`; None for raw latents.

        length_counts: how many training texts have 0, 1, 2, ... tokens.  sampling: fields of SamplingSettings
        that suit this model.  compressor: of the latents that the denoiser was trained on, if they were
        compressed. Raises UserError for parts that do not fit each other.
        """
        super().__init__()
        channels = compressor.config.vector_channels if compressor else bart.config.d_model
        _check_fit(channels, tokenizer, denoiser, scheduler, latent_statistics)
        self.register_modules(
            bart=bart,
            tokenizer=tokenizer,
            denoiser=denoiser,
            scheduler=scheduler,
            compressor=compressor,
        )
        self.register_to_config(
            window=window,
            latent_statistics=latent_statistics,
            length_counts=length_counts,
            sampling=sampling,
        )
        # Decoding is explicit, never a hub model's default.
        bart.generation_config = GenerationConfig()
        for network in self._networks:
            network.eval()

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> TextDiffusionPipeline:
        """A pipeline saved by `save_pretrained`: a folder or a hub name. Weights are float32, from safetensors.

        Raises UserError that names a part which is missing, damaged or does not fit.
        """
        folder = model_folder(model, marker=PIPELINE_FILE)
        for part in PARTS:
            if part not in options and not (folder / part).is_dir():
                raise UserError(f"'{folder}' is no complete pipeline: {part} is missing")
        for weights in (folder / "bart", folder / "denoiser", folder / COMPRESSOR):
            check_weights(weights)
        if "denoiser" not in options and has_own_class(folder / "denoiser"):
            options["denoiser"] = load_denoiser(folder / "denoiser")
        try:
            pipeline = super().from_pretrained(
                folder, **options, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"the pipeline in '{folder}' cannot be loaded: {first_line(error)}"
            ) from None
        for network in pipeline._networks:
            realigned(network)
        return pipeline

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> TextDiffusionPipeline:
        """The pipeline that a finished run of `bartleby train` makes with the BART it was trained on.

        The run's own decoder is used if it has one (writing_decoder.py).  model: that BART's folder or
        name, where it is no longer where the run found it, or another decoder is wanted.
        """
        run = Path(run)
        record = finished_record(run)
        try:
            trained = record["config"]["autoencoder"]
            counts = read_json(run / LENGTHS_FILE)["passages_of_length"]
        except KeyError as error:
            raise UserError(f"'{run}' is no run of bartleby train: {error} is missing") from None
        autoencoder = load_autoencoder(
            model or trained["model"], window=trained["window"] or None, device=device
        )
        if model is None:
            load_decoder(autoencoder.bart, run)
            known = record.get("origins", {}).get("BART")  # older runs do not name it
            if known and known != autoencoder.digest():
                say(f"'{trained['model']}' has changed since '{run}' was trained on its latents")
        elif (run / DECODER_FILE).exists():
            say(f"the decoder of '{model}' writes, not the one in '{run}'")
        statistics, chosen = run / STATISTICS_FILE, run / SAMPLING_FILE
        check_weights(run / DENOISER)
        return cls(
            autoencoder.bart,
            autoencoder.tokenizer,
            load_denoiser(run / DENOISER).to(autoencoder.device),
            DDPMScheduler.from_pretrained(run / SCHEDULER),
            window=autoencoder.window,
            latent_statistics=read_json(statistics) if statistics.exists() else None,
            length_counts=counts,
            sampling=read_json(chosen) if chosen.exists() else None,
            compressor=autoencoder.compressor,
        )

    def __repr__(self) -> str:
        """In a line; diffusers would print every number of the configuration."""
        return (
            f"{type(self).__name__}({type(self.denoiser).__name__}, {self.denoiser.config.channels} channels, window "
            f"{self.config.window}, {self.default_settings})"
        )

    @property
    def _networks(self) -> list[torch.nn.Module]:
        return [part for part in (self.bart, self.denoiser, self.compressor) if part is not None]

    @property
    def trained_parameters(self) -> int:
        """How many weights write: the denoiser's and those that are the decoder's alone."""
        weights = [*self.denoiser.parameters(), *decoder_weights(self.bart).values()]
        return sum(weight.numel() for weight in weights)

    @property
    def default_settings(self) -> SamplingSettings:
        """How this model is sampled where nothing else is asked for: as saved with it."""
        return settings_from(self.config.sampling or {})

    @property
    def editing_settings(self) -> SamplingSettings:
        """The same where a text is given: several candidates, unless the model's own say how many, of likelier tokens.

        What fits the given text is then chosen from texts that vary, which a new text has no use for:
        there the likeliest of several is only a more common one.
        """
        own = self.default_settings
        return dataclasses.replace(
            own,
            candidates=own.candidates if own.candidates > 1 else EDITING_CANDIDATES,
            decoder_min_p=max(own.decoder_min_p, EDITING_MIN_P),
        )

    @property
    def autoencoder(self) -> Autoencoder:
        """BART as texts <-> normalised latents."""
        saved = self.config.latent_statistics
        return Autoencoder(
            bart=self.bart,
            tokenizer=self.tokenizer,
            window=self.config.window,
            name=str(self.config.get("_name_or_path") or "pipeline"),
            statistics=LatentStatistics.from_json(saved) if saved else None,
            # In bfloat16 a sum's order, which depends on the batch, shows in the decoder's draws: of 64 texts 3 were
            # others when written one by one. float32 takes 4% longer (docs/LOG.md).
            dtype=torch.float32,
            compressor=self.compressor,
        )

    @property
    def _planner(self) -> Planner:
        return Planner(self.autoencoder, self.config.length_counts)

    @torch.inference_mode()
    def __call__(
        self,
        num_texts: int = 1,
        *,
        prompt: str | None = None,
        length: int | None = None,
        settings: SamplingSettings | None = None,
        seed: int = 0,
        first: int = 0,
        decoding: DecodeSettings | None = None,
        callback: Callback | None = None,
    ) -> TextDiffusionOutput:
        """New texts, numbers `first` to `first + num_texts - 1` of this seed.

        prompt: what every text begins with, kept word for word.  length: latents of every text, without those
        of <s> and </s>, 1 to the window less 2, by default drawn from the training texts'; the decoder writes about as
        many tokens.  callback: gets each SamplingStep and the numbers of the texts in its batch, one for each row.
        Raises UserError for a blank prompt, one that does not fit the window or the length, and fewer than 1 text.
        """
        _check_count(num_texts)
        settings, drafts = settings or self.default_settings, []
        plan = self._planner.new_text(prompt, length)
        for index in range(first, first + num_texts):
            tokens, given = plan((seed, index))
            drafts.append([Draft(own, tokens, given) for own in _seeds(seed, index, settings)])
        return self._write(drafts, settings, decoding=decoding, callback=callback, first=first)

    @torch.inference_mode()
    def edit(
        self,
        texts: list[str],
        strength: float,
        *,
        settings: SamplingSettings | None = None,
        seed: int = 0,
        first: int = 0,
        decoding: DecodeSettings | None = None,
        callback: Callback | None = None,
    ) -> TextDiffusionOutput:
        """Each text noised to `strength` of the way and denoised (SDEdit, Meng et al. 2022).

        0 is reconstruction, 1 a new text of as many tokens. Timesteps below the settings' handover are left out, so
        with handover 0.6 an edit of strength 0.6 or less is one look of the denoiser.  first: the first text's number.
        Longer texts are cut to the window, and that is said. Raises UserError for a blank text and another strength.
        """
        if not 0 <= strength <= 1:
            raise UserError(f"strength is {strength}; it must be between 0 and 1")
        if not texts or isinstance(texts, str):
            raise UserError("there are no texts to edit; a single one is a list as well")
        settings = settings or self.editing_settings
        latents = self.autoencoder.encode(texts, say=say)
        drafts = [
            [
                Draft(own, int(mask.sum()), None, values[:, mask])
                for own in _seeds(seed, index, settings)
            ]
            for index, (values, mask) in enumerate(
                zip(latents.values, latents.mask, strict=True), start=first
            )
        ]
        return self._write(
            drafts, settings, strength, decoding=decoding, callback=callback, first=first
        )

    @torch.inference_mode()
    def infill(
        self,
        text: str,
        num_texts: int = 1,
        *,
        gap: int | list[int] | None = None,
        settings: SamplingSettings | None = None,
        seed: int = 0,
        first: int = 0,
        decoding: DecodeSettings | None = None,
        callback: Callback | None = None,
    ) -> TextDiffusionOutput:
        """`text` with each <mask> filled in, `num_texts` times; the given words are kept.

        gap: tokens for each <mask>, or a number for every one. By default some are drawn as in training,
        1 + Poisson(3), and the decoder may write fewer or more, until it comes to the word that is given next.
        In training a text has at most two gaps.  first: the number of the first of these texts. Raises UserError for a
        text without <mask>, one that does not fit the window with its gaps, and fewer than 1 text.
        """
        _check_count(num_texts)
        planner, settings, drafts = self._planner, settings or self.editing_settings, []
        pieces = planner.pieces(text)
        for index in range(first, first + num_texts):
            seeds = _seeds(seed, index, settings)
            given = [planner.with_gaps(own, pieces, gap) for own in seeds]
            drafts.append(
                [Draft(own, len(one.known), one) for own, one in zip(seeds, given, strict=True)]
            )
        return self._write(drafts, settings, decoding=decoding, callback=callback, first=first)

    @torch.inference_mode()
    def interpolate(
        self,
        first: str,
        last: str,
        steps: int = 7,
        *,
        strength: float = 0.5,
        settings: SamplingSettings | None = None,
        seed: int = 0,
        decoding: DecodeSettings | None = None,
        callback: Callback | None = None,
    ) -> TextDiffusionOutput:
        """`steps` texts from `first` to `last`: mixtures of their latents, noised and denoised.

        Length and latents are mixed linearly. All share their noise, whose level rises from none at
        the ends, which are reconstructions, to `strength` (0 to 1) in the middle. Raises UserError for a blank text,
        and fewer than 2 steps.
        """
        if steps < 2:
            raise UserError(f"steps is {steps}; an interpolation has at least 2 texts")
        if not 0 <= strength <= 1:
            raise UserError(f"strength is {strength}; it must be between 0 and 1")
        settings = settings or self.editing_settings
        latents = self.autoencoder.encode([first, last], say=say)
        ends = [values[:, mask] for values, mask in zip(latents.values, latents.mask, strict=True)]
        texts: list[str] = []
        lengths: list[int] = []
        for number, weight in enumerate(np.linspace(0, 1, steps)):
            length = round((1 - weight) * ends[0].shape[1] + weight * ends[1].shape[1])
            mixed = (1 - weight) * self._stretched(ends[0], length)
            mixed = mixed + weight * self._stretched(ends[1], length)
            drafts = [Draft(own, length, None, mixed) for own in _seeds(seed, 0, settings)]
            level = strength * 4 * weight * (1 - weight)
            written = self._write(
                [drafts], settings, level, decoding=decoding, callback=callback, first=number
            )
            texts, lengths = texts + written.texts, lengths + written.lengths
        return TextDiffusionOutput(texts=texts, lengths=lengths)

    def _write(
        self,
        candidates: list[list[Draft]],
        settings: SamplingSettings,
        strength: float = 1.0,
        *,
        decoding: DecodeSettings | None,
        callback: Callback | None = None,
        first: int = 0,
    ) -> TextDiffusionOutput:
        writer = Writer(
            self.autoencoder,
            self.denoiser,
            self.scheduler,
            settings,
            decoding or settings.decoding(),
        )
        chosen = writer.write(candidates, strength, callback=callback, first=first)
        return TextDiffusionOutput(
            texts=decode_ids(self.tokenizer, [ids for ids, _ in chosen]),
            lengths=[draft.length for _, draft in chosen],
        )

    def _stretched(self, values: torch.Tensor, length: int) -> torch.Tensor:
        """Latents [C, n] at `length` positions: the nearest ones, first and last staying first and last."""
        if values.shape[1] == length:
            return values
        sources = torch.linspace(0, values.shape[1] - 1, length).round().long()
        stretched = values[:, sources]
        posterior = getattr(self.denoiser, "posterior", None)
        means = getattr(posterior, "position_means", None)
        if means is None:
            return stretched
        shift = (means[:length] - means[sources]).T  # what a latent says of its place
        return stretched + shift.to(stretched.device)


def load_pipeline(
    model: str | Path | None = None,
    *,
    bart: str | Path | None = None,
    device: str | None = None,
) -> TextDiffusionPipeline:
    """The bundled generator, a run of `bartleby train`, a saved pipeline's folder or its hub name.

    bart: for a run, another BART than it was trained on, say one with a repaired decoder.  device: cpu or cuda, by
    default cuda where there is one. Raises UserError for what is none of these, or lacks a part.
    """
    chosen, name = chosen_device(device), BUNDLED if model is None else model
    run = generator_folder(name)
    if is_run(run):
        return TextDiffusionPipeline.from_run(run, model=bart, device=chosen)
    if bart is not None:
        raise UserError(f"'{model}' is no run of bartleby train, so it has its own BART")
    return TextDiffusionPipeline.from_pretrained(name).to(chosen)


def _seeds(seed: int, index: int, settings: SamplingSettings) -> list[tuple[int, ...]]:
    """A seed for each candidate of text `index`; the first is the same however many there are."""
    return [(seed, index, NOISE, candidate) for candidate in range(settings.candidates)]


def _check_count(texts: int) -> None:
    if texts < 1:
        raise UserError(f"num_texts is {texts}; it must be at least 1")


def _check_fit(
    channels: int,
    tokenizer: PreTrainedTokenizerBase,
    denoiser: ModelMixin,
    scheduler: SchedulerMixin,
    statistics: dict[str, Any] | None,
) -> None:
    if not isinstance(scheduler, DDPMScheduler):
        raise UserError(
            f"the scheduler is a {type(scheduler).__name__}; it must be the DDPMScheduler that the denoiser was "
            "trained with. How it is sampled is chosen by the settings' sampler"
        )
    if denoiser.config.channels != channels:
        raise UserError(
            f"the denoiser has {denoiser.config.channels} channels, the latents {channels}: they do not belong together"
        )
    if statistics is not None and len(statistics["mean"]) != channels:
        raise UserError(
            f"the latent statistics have {len(statistics['mean'])} channels, the latents {channels}"
        )
    if isinstance(denoiser, TokenTransformer) and denoiser.config.vocabulary != len(tokenizer):
        raise UserError(
            f"the denoiser knows {denoiser.config.vocabulary:,} tokens, the tokenizer {len(tokenizer):,}: "
            "they do not belong together"
        )
    tables = getattr(getattr(denoiser, "posterior", None), "alpha_bar", None)
    alpha_bar = scheduler.alphas_cumprod
    if tables is not None and not (
        len(tables) == len(alpha_bar) and torch.allclose(tables.cpu(), alpha_bar.cpu(), atol=1e-4)
    ):
        raise UserError(
            "the scheduler's noise is not the one that the denoiser was trained with: they do not belong together"
        )
