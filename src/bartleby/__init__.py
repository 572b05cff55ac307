"""Bartleby: text diffusion in BART's latent space.

Letters for shapes, everywhere: B texts of a batch, L tokens, C channels of the latents, V vocabulary.
Public names are loaded on first use, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and their modules, once for what looks at types and once for what runs.
if TYPE_CHECKING:
    from bartleby.autoencoder import Autoencoder, DecodeSettings, fit_latent_statistics
    from bartleby.config import TrainConfig, config_from_dict, read_config
    from bartleby.corpus import Corpus, load_corpus, read_texts
    from bartleby.denoisers import (
        Denoiser,
        DenoiserOutput,
        DenoisingTransformer,
        DiffusersUNet1D,
        IdentityDenoiser,
        MixtureDenoiser,
        SimpleUNet1D,
        TextUNet1D,
        TokenTransformer,
        WienerDenoiser,
        load_denoiser,
    )
    from bartleby.doctor import diagnose
    from bartleby.errors import UserError
    from bartleby.latents import Latents, LatentStatistics
    from bartleby.loading import load_autoencoder
    from bartleby.noise import noise_experiment
    from bartleby.pipeline import TextDiffusionPipeline, load_pipeline
    from bartleby.pretraining import PretrainConfig, pretrain
    from bartleby.run_setup import open_run
    from bartleby.sampling import SamplingSettings, SamplingStep, sample_latents, starting_noise
    from bartleby.schedules import noise_scheduler, sampler
    from bartleby.training_run import run_training

_PUBLIC = {
    "autoencoder": (
        "Autoencoder",
        "DecodeSettings",
        "fit_latent_statistics",
    ),
    "config": ("TrainConfig", "config_from_dict", "read_config"),
    "corpus": ("Corpus", "load_corpus", "read_texts"),
    "denoisers": (
        "Denoiser",
        "DenoiserOutput",
        "DenoisingTransformer",
        "DiffusersUNet1D",
        "IdentityDenoiser",
        "MixtureDenoiser",
        "SimpleUNet1D",
        "TextUNet1D",
        "TokenTransformer",
        "WienerDenoiser",
        "load_denoiser",
    ),
    "doctor": ("diagnose",),
    "errors": ("UserError",),
    "latents": ("LatentStatistics", "Latents"),
    "loading": ("load_autoencoder",),
    "noise": ("noise_experiment",),
    "pipeline": ("TextDiffusionPipeline", "load_pipeline"),
    "pretraining": ("PretrainConfig", "pretrain"),
    "sampling": ("SamplingSettings", "SamplingStep", "sample_latents", "starting_noise"),
    "schedules": ("noise_scheduler", "sampler"),
    "run_setup": ("open_run",),
    "training_run": ("run_training",),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bartleby' has no attribute '{name}'")
    return getattr(import_module(f"bartleby.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def silence_libraries() -> None:
    """Keeps library bars and warnings off the terminal; what matters in them is raised or said by us."""
    import os
    import sys

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "transformers" in sys.modules:  # already imported, it has read the variables above
        sys.modules["transformers"].utils.logging.disable_progress_bar()
        sys.modules["transformers"].utils.logging.set_verbosity_error()
