"""A whole run of `bartleby compress`: data, training with a progress bar, measurement, the finished model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from bartleby.autoencoder import Autoencoder, fit_latent_statistics
from bartleby.checkpoints import made_folder, replaced_folder, write_json
from bartleby.compression import CompressionConfig, train_compressor
from bartleby.console import print_json
from bartleby.corpus import load_corpus, merge, spread
from bartleby.denoisers.build import parameters
from bartleby.errors import UserError
from bartleby.evaluation.reconstruction import Summary, reconstruct, summarise
from bartleby.latents import STATISTICS_FILE, STATISTICS_TEXTS
from bartleby.loading import COMPRESSOR, load_autoencoder
from bartleby.messages import say
from bartleby.processes import launched
from bartleby.run_log import follow

VALIDATION_TEXTS = 1000


def run_compression(
    config: CompressionConfig,
    data: list[str],
    out: Path,
    *,
    model: str | None = None,
    column: str = "text",
    device: str | None = None,
    as_json: bool = False,
    say: Callable[[str], None] = say,
) -> None:
    """Trains a compressor on `model`'s latents; leaves the BART with it in `out/model`."""
    processes, here = launched(device)
    say = processes.speaking(say)
    autoencoder = load_autoencoder(model, window=config.window, device=here)
    if autoencoder.compressor is not None:
        raise UserError(f"'{model}' is compressed already; name the BART that it was made from")
    corpus = merge(load_corpus(source, column=column) for source in data)
    for note in corpus.notes:
        say(note)
    texts, valid = corpus.split("train"), corpus.split("valid")
    made_folder(out)
    say(
        f"{len(texts):,} texts · {config.vectors} vectors of {config.vector_channels} for up to "
        f"{config.window} tokens · {config.steps:,} steps of up to {config.tokens_per_batch:,} tokens"
        f"{processes} · seed {config.seed}"
    )
    states = train_compressor(config, autoencoder, texts, out, processes=processes, say=say)
    last = follow(states, out, "compress", processes=processes)
    if processes.is_main:
        compressed = dataclasses.replace(
            autoencoder, compressor=last.network.eval(), statistics=None
        )
        record = _finish(config, compressed, texts, valid, data, out, say)
        if as_json:
            print_json(record)
        else:
            print(Summary(**record["validation"]))
    processes.wait()
    say(f"saved {out / 'model'}  →  try: bartleby reconstruct FILE --model {out / 'model'}")


@torch.inference_mode()
def _finish(
    config: CompressionConfig,
    compressed: Autoencoder,
    texts: list[str],
    valid: list[str],
    data: list[str],
    out: Path,
    say: Callable[[str], None],
) -> dict:
    """Measures the compressor on held-out texts and writes `out/model`."""
    compressor = compressed.compressor
    assert compressor is not None
    held_out = compressed.split(spread(valid, VALIDATION_TEXTS))[:VALIDATION_TEXTS]
    summary = summarise([item for _, item in reconstruct(compressed, held_out, say=say)])
    sample = compressed.split(spread(texts, STATISTICS_TEXTS))
    source = f"train split of {', '.join(Path(source).name for source in data)}"
    statistics = fit_latent_statistics(compressed, sample, source=source)
    record = {
        "config": dataclasses.asdict(config),
        "data": [Path(source).name for source in data],
        "parameters": parameters(compressor),
        "validation": dataclasses.asdict(summary),
        "effective_rank": statistics.effective_rank,
    }
    with replaced_folder(out / "model") as folder:
        compressed.bart.save_pretrained(folder)
        compressed.tokenizer.save_pretrained(folder)
        compressor.save_pretrained(folder / COMPRESSOR)
        write_json(folder / COMPRESSOR / STATISTICS_FILE, statistics.to_json())
        write_json(folder / "compression.json", record)
    return record
