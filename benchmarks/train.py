"""How fast training on cached latents is: one run, same model and data, ratios.

python benchmarks/train.py TEXTS [--model NAME_OR_FOLDER] [--size small] [--passages 2000] [--steps 8]
    [--tokens-per-batch 2048]

TEXTS: any file, folder or dataset that Bartleby reads. Measures an epoch of latents from the cache
against the published way (each text encoded alone inside the dataset, every epoch), the transformer's
training step against the machine's matrix products, where a step's time goes, and (on Linux) the memory that
caches of half as many texts and of five times as many take. `--passages` counts texts before they are cut.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import print_rates, seconds
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bartleby import silence_libraries
from bartleby.autoencoder import Autoencoder
from bartleby.config import config_from_dict
from bartleby.corpus import load_corpus
from bartleby.latent_data import LatentData, open_latents
from bartleby.loading import load_autoencoder
from bartleby.precision import chosen_device
from bartleby.processes import make_accelerator
from bartleby.run_setup import prepare
from bartleby.training import train
from bartleby.training_batch import denoising_loss, make_batch

ALONE = 100  # passages that are encoded one by one


def epoch_from_cache(data: LatentData, passages: np.ndarray) -> None:
    """Every passage once, 24 at a time, normalised and padded as training reads them."""
    for start in range(0, len(passages), 24):
        data.batch(passages[start : start + 24], device=data.autoencoder.device)


def compare_epochs(autoencoder: Autoencoder, data: LatentData) -> None:
    """Milliseconds a passage from the cache and encoded alone."""
    order = np.random.default_rng(0).permutation(len(data))
    cached = seconds(lambda: epoch_from_cache(data, order)) / len(order)
    sample = order[:ALONE]

    def encode_alone() -> None:
        for index in sample:
            autoencoder.encode_tokens([data.token_ids(index)])

    alone = seconds(encode_alone) / len(sample)
    print(
        f"epoch    from the cache {1000 * cached:7.3f} ms a passage   encoded alone {1000 * alone:7.2f} ms   "
        f"x{alone / cached:.0f}"
    )


def training_step(texts: Path, model: str, size: str, steps: int, tokens_per_batch: int) -> None:
    """Seconds and operations of a step, as a share of the matrix-product rate, and the profile."""
    tables = {
        "data": {"source": str(texts), "limit": 3000},
        "autoencoder": {"model": model},
        "denoiser": {"size": size},
        "training": {
            "steps": 10**6,
            "checkpoint_minutes": 1e9,
            "tokens_per_batch": tokens_per_batch,
        },
    }
    setup, denoiser = prepare(config_from_dict(tables), say=lambda message: None)
    products = print_rates(chosen_device())  # before a GPU may round the factors of float32
    accelerator = make_accelerator()
    states = train(
        setup.config,
        setup.training,
        denoiser,
        setup.scheduler,
        Path("/nonexistent"),
        accelerator,
    )
    next(states), next(states)
    before, start = next(states).tokens, time.perf_counter()
    for _ in range(steps):
        state = next(states)
    elapsed = (time.perf_counter() - start) / steps
    order = np.argsort(setup.training.lengths, kind="stable")
    indices = order[len(order) // 2 :][:24]
    batch = make_batch(
        setup.config, setup.training, denoiser, setup.scheduler, indices, 0, 0, accelerator
    )
    with FlopCounterMode(display=False) as counter:
        denoising_loss(setup.config, denoiser, setup.scheduler, batch).backward()
    operations_a_token = counter.get_total_flops() / int(batch.latents.mask.sum())
    tokens = (state.tokens - before) / steps
    rate = operations_a_token * tokens / elapsed
    print(
        f"step     transformer {size}: {1000 * elapsed:.0f} ms, {tokens / elapsed:,.0f} tokens/s, "
        f"{rate / 1e12:.3f} TFLOP/s = {rate / products:.0%} of the product rate"
    )
    activities, most = [ProfilerActivity.CPU], "self_cpu_time_total"
    if accelerator.device.type == "cuda":
        activities, most = [*activities, ProfilerActivity.CUDA], "self_device_time_total"
    with profile(activities=activities) as profiler:
        next(states)
    print(profiler.key_averages().table(sort_by=most, row_limit=14, max_name_column_width=40))


def memory(autoencoder: Autoencoder, texts: list[str], passages: int) -> None:
    """Peak anonymous memory while reading a cache, and one of ten times the size."""
    for factor in (1, 10):
        with tempfile.TemporaryDirectory() as folder:
            chosen = (texts * factor)[: passages * factor]
            data = open_latents(
                autoencoder,
                chosen,
                name=f"x{factor}",
                root=Path(folder),
                limit_gb=100,
                say=lambda _: None,
            )
            data = dataclasses.replace(data, statistics=data.moments.statistics("benchmark"))
            order = np.random.default_rng(0).permutation(len(data))[: 4 * passages]
            epoch_from_cache(data, order)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            size = data.cache.stat().st_size / 2**30
            print(
                f"memory   {len(data):,} passages, {size:.2f} GiB of latents: {anonymous_gib():.2f} GiB anonymous, "
                f"{peak:.2f} GiB peak"
            )


def anonymous_gib() -> float:
    """This process's memory that is not a file's pages."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**20
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--size", default="small")
    parser.add_argument("--passages", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    arguments = parser.parse_args()
    silence_libraries()
    autoencoder = load_autoencoder(arguments.model)
    texts = load_corpus(arguments.texts).split("train")
    with tempfile.TemporaryDirectory() as folder:
        data = open_latents(
            autoencoder,
            texts[: arguments.passages],
            name="train",
            root=Path(folder),
            say=lambda _: None,
        )
        data = dataclasses.replace(data, statistics=data.moments.statistics("benchmark"))
        compare_epochs(autoencoder, data)
    training_step(
        arguments.texts,
        arguments.model,
        arguments.size,
        arguments.steps,
        arguments.tokens_per_batch,
    )
    memory(autoencoder, texts, arguments.passages // 2)


if __name__ == "__main__":
    main()
