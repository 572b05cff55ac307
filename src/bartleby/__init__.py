"""Bartleby: text diffusion in BART's latent space.

Letters for shapes, everywhere: B texts of a batch, L tokens, C channels of the latents, V vocabulary.
Public names are loaded on first use, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Autoencoder": "autoencoder",
    "DecodeSettings": "autoencoder",
    "LatentStatistics": "autoencoder",
    "Latents": "autoencoder",
    "fit_latent_statistics": "autoencoder",
    "Corpus": "corpus",
    "load_corpus": "corpus",
    "read_texts": "corpus",
    "Denoiser": "denoisers",
    "DenoiserOutput": "denoisers",
    "DenoisingTransformer": "denoisers",
    "DiffusersUNet1D": "denoisers",
    "IdentityDenoiser": "denoisers",
    "MixtureDenoiser": "denoisers",
    "SimpleUNet1D": "denoisers",
    "TextUNet1D": "denoisers",
    "TokenTransformer": "denoisers",
    "WienerDenoiser": "denoisers",
    "load_denoiser": "denoisers",
    "UserError": "errors",
    "TextDiffusionPipeline": "pipeline",
    "load_pipeline": "pipeline",
    "SamplerSettings": "sampling",
    "load_autoencoder": "loading",
    "SamplingStep": "sampling",
    "TrainConfig": "config",
    "config_from_dict": "config",
    "read_config": "config",
    "open_run": "train_run",
    "run_training": "train_run",
    "noise_experiment": "noise",
    "noise_scheduler": "schedules",
    "sampler": "schedules",
    "PretrainConfig": "pretraining",
    "pretrain": "pretraining",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bartleby' has no attribute '{name}'")
    return getattr(import_module(f"bartleby.{_PUBLIC[name]}"), name)


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
