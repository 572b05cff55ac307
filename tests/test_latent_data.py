"""Latents of a corpus: the cache and what is encoded on the fly agree, and know what they were made of."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import TEXTS, WINDOW

from bartleby.checkpoints import alone
from bartleby.compression import CompressionConfig, new_compressor
from bartleby.errors import UserError
from bartleby.latent_data import LatentData, content_digest, open_latents
from bartleby.token_statistics import token_statistics
from bartleby.tokenization import train_tokenizer

SOME = [*TEXTS[:60], "A longer story. " * 12]


@pytest.fixture
def said():
    return []


def opened(autoencoder, root, said, texts=SOME, **options) -> LatentData:
    data = open_latents(autoencoder, texts, name="train", root=root, say=said.append, **options)
    return dataclasses.replace(data, statistics=data.moments.statistics("tests"))


def test_cached_latents_are_the_encoders_up_to_half_precision(autoencoder, tmp_path, said):
    cached = opened(autoencoder, tmp_path, said)
    live = opened(autoencoder, tmp_path / "none", said, limit_gb=0.0)
    assert cached.cache is not None and live.cache is None
    assert len(cached) == len(live) > len(SOME)  # the long text became several passages
    indices = np.array([3, 60, 0])
    assert cached.token_ids(60) == live.token_ids(60)
    one, other = cached.batch(indices), live.batch(indices)
    assert torch.equal(one.mask, other.mask)
    assert torch.allclose(one.values, other.values, atol=5e-3)


def test_what_was_chosen_is_said(autoencoder, tmp_path, said):
    opened(autoencoder, tmp_path, said)
    opened(autoencoder, tmp_path, said)
    opened(autoencoder, tmp_path / "none", said, limit_gb=0.0)
    assert "encoding once" in said[0] and "from the cache" in said[1]
    assert "more than the 0 GB allowed for a cache, so encoded on the fly" in said[2]


def test_normalised_latents_have_unit_variance_over_real_tokens_alone(autoencoder, tmp_path, said):
    data = opened(autoencoder, tmp_path, said)
    latents = data.batch(np.arange(len(data)), length_multiple=8)
    assert latents.values.shape[2] % 8 == 0
    assert torch.allclose(latents.real.mean(dim=0), torch.zeros(64), atol=5e-3)
    assert torch.allclose(latents.real.std(dim=0), torch.ones(64), atol=5e-3)
    assert (latents.values * ~latents.mask[:, None] == 0).all()
    covariance = torch.cov(latents.real.T, correction=0)
    assert torch.allclose(data.covariance(), covariance, atol=5e-3)


def test_the_cache_is_known_by_content(autoencoder, tmp_path):
    digest = content_digest(autoencoder, SOME)
    assert digest == content_digest(dataclasses.replace(autoencoder, name="other"), list(SOME))
    assert digest != content_digest(autoencoder, SOME[1:])
    compressors = [
        new_compressor(CompressionConfig(width=32, seed=seed), autoencoder, SOME) for seed in (0, 1)
    ]
    others = [
        dataclasses.replace(autoencoder, window=16),
        dataclasses.replace(autoencoder, dtype=torch.bfloat16),
        dataclasses.replace(
            autoencoder, tokenizer=train_tokenizer(SOME, vocab_size=300, window=WINDOW)
        ),
        *(dataclasses.replace(autoencoder, compressor=compressor) for compressor in compressors),
    ]
    assert len({digest, *(content_digest(other, SOME) for other in others)}) == 6
    weights = autoencoder.bart.get_encoder().layers[0].fc1.weight
    with torch.no_grad():
        weights[0, 0] += 1
        changed = content_digest(autoencoder, SOME)
        weights[0, 0] -= 1
    assert digest != changed


@pytest.mark.parametrize("file", ["latents.f16", "tables.safetensors", "cache.json"])
def test_a_damaged_cache_is_named(autoencoder, tmp_path, said, file):
    path = opened(autoencoder, tmp_path, said).cache.with_name(file)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="is damaged; remove it"):
        opened(autoencoder, tmp_path, said)


def test_an_interrupted_cache_leaves_nothing(autoencoder, tmp_path, said):
    def stop(batches, total):
        yield next(iter(batches))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(autoencoder, tmp_path, said, track=stop)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_cache_that_another_process_makes_is_waited_for(autoencoder, tmp_path, said):
    made = opened(autoencoder, tmp_path, said).cache.parent
    with ThreadPoolExecutor() as pool:
        with alone(made.with_suffix(".lock"), say=said.append):
            hidden = made.rename(made.with_name("hidden"))  # as if another were at work on it
            waiting = pool.submit(opened, autoencoder, tmp_path, said)
            while not any("waiting for it" in message for message in said):
                assert not waiting.done()
                time.sleep(0.01)
            hidden.rename(made)
        assert len(waiting.result()) > len(SOME)
    assert "from the cache" in said[-1]


@pytest.mark.parametrize("limit_gb", [1.0, 0.0])
def test_token_statistics_split_the_variance_exactly(autoencoder, tmp_path, said, limit_gb):
    data = opened(autoencoder, tmp_path, said, limit_gb=limit_gb)
    statistics = token_statistics(data)
    again = token_statistics(data)
    assert torch.equal(statistics.token_means, again.token_means)
    latents = data.batch(np.arange(len(data)))
    tokens = torch.tensor([token for index in range(len(data)) for token in data.token_ids(index)])
    positions = latents.mask.nonzero()[:, 1]
    assert torch.equal(
        statistics.counts, torch.bincount(tokens, minlength=len(statistics.counts)).float()
    )
    rest = latents.real - statistics.position_means[positions] - statistics.token_means[tokens]
    assert torch.allclose(statistics.within, rest.T @ rest / len(rest), atol=1e-2)
    first = latents.real[positions == 0].mean(dim=0)
    assert torch.allclose(statistics.position_means[0], first, atol=5e-3)
