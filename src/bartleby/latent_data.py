"""A corpus as latents to train on: cached on disk where they fit, encoded on the fly where not.

The cache holds the raw latents of every real token, nothing for padding, as float16 in one
memory-mapped file, with the token ids and the moments that normalise them. It is found by the content
of everything that made it: encoder weights, tokenizer, window and texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bartleby.autoencoder import Autoencoder
from bartleby.batching import gathered, places_of, round_up
from bartleby.checkpoints import (
    digest_of,
    load_tensors,
    made_once,
    read_json,
    replaced_folder,
    write_json,
)
from bartleby.errors import UserError
from bartleby.latents import LatentMoments, Latents, LatentStatistics
from bartleby.messages import say
from bartleby.tokenization import encode_texts, passages

MOMENT_PASSAGES = 5_000  # what the statistics are taken from where latents are not cached
FREE_SHARE = 0.8  # of the free disk space that a cache may take
GPU_SHARE = 0.4  # of a GPU's free memory that latents may take, to be gathered from there
FORMAT = 1


EncodedBatches = Iterable[tuple[np.ndarray, Latents]]  # indices of passages, their latents
Track = Callable[[EncodedBatches, int], EncodedBatches]  # of so many passages


@dataclass(frozen=True)
class LatentData:
    """The passages of one split. Indices are 0 to n - 1, in the corpus's order.

    autoencoder: made the latents; its statistics are not used here.  tokens: ids of all passages, one
    after another; offsets: [n + 1], where each begins.  cache: the file of raw latents, if there is one,
    passage after passage.
    """

    autoencoder: Autoencoder
    tokens: np.ndarray
    offsets: np.ndarray
    moments: LatentMoments
    statistics: LatentStatistics | None
    cache: Path | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """[n], latents of each passage: its tokens, unless they are compressed."""
        tokens = np.diff(self.offsets)
        if self.autoencoder.compressor is None:
            return tokens
        return np.full_like(tokens, self.autoencoder.latents_of(0))

    @cached_property
    def _places(self) -> np.ndarray:
        """[n + 1], where each passage's latents begin in the cache."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def _raw(self) -> np.ndarray:
        assert self.cache is not None
        shape = (int(self._places[-1]), self.autoencoder.channels)
        return np.memmap(self.cache, np.float16, "r", shape=shape)

    @cached_property
    def _on_gpu(self) -> torch.Tensor | None:
        """All raw latents in the GPU's memory, where they take no more than `GPU_SHARE` of what is free there."""
        device = self.autoencoder.device
        if self._raw.nbytes > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return None
        return torch.from_numpy(np.array(self._raw)).to(device)

    def token_ids(self, index: int | np.integer) -> list[int]:
        """Token ids of one passage, <s> and </s> included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].tolist()

    def token_batch(self, indices: np.ndarray, *, padding: int, length: int = 0) -> torch.Tensor:
        """[B, L] token ids of these passages; L is `length`, by default the longest's."""
        return gathered(self.tokens, self.offsets, indices, padding=padding, length=length)[0]

    def batch(
        self,
        indices: np.ndarray,
        *,
        length_multiple: int = 1,
        device: torch.device | str = "cpu",
    ) -> Latents:
        """Normalised latents of these passages, [B, C, L], on `device`; L is rounded up to `length_multiple`."""
        latents = self.raw_batch(indices, length_multiple=length_multiple, device=device)
        return self.statistics.normalise(latents) if self.statistics else latents

    def raw_batch(
        self,
        indices: np.ndarray,
        *,
        length_multiple: int = 1,
        device: torch.device | str = "cpu",
    ) -> Latents:
        """As `batch`, not normalised."""
        length = round_up(int(self.lengths[indices].max()), length_multiple)
        places, real = places_of(self._places, indices, length=length)
        mask = torch.from_numpy(real).to(device)
        if self.cache is None:
            raw = dataclasses.replace(self.autoencoder, statistics=None)
            encoded = raw.encode_tokens([self.token_ids(index) for index in indices]).values
            values = F.pad(encoded, (0, length - encoded.shape[2])).to(device)
        else:
            values = (self._raw_at(places, device).float() * mask[:, :, None]).transpose(1, 2)
        return Latents(values, mask)

    def _raw_at(self, places: np.ndarray, device: torch.device | str) -> torch.Tensor:
        """The cache's latents at these places [B, L], as [B, L, C] on `device`."""
        if torch.device(device).type == "cuda" and self._on_gpu is not None:
            return self._on_gpu[torch.from_numpy(places).to(device)]
        return torch.from_numpy(np.take(self._raw, places, axis=0)).to(device)

    def origins(self) -> dict[str, str]:
        """Digests of what the latents come from, by a name that a message can use."""
        return {
            "BART": self.autoencoder.digest(),
            "text": digest_of(self.tokens, self.offsets),
        }

    def covariance(self) -> torch.Tensor:
        """Covariance [C, C] of the latents as `batch` returns them."""
        covariance = self.moments.covariance
        if self.statistics is None:
            return covariance.float()
        std = self.statistics.std.double()
        return (covariance / torch.outer(std, std)).float()


def open_latents(
    autoencoder: Autoencoder,
    texts: list[str],
    *,
    name: str,
    root: Path | None = None,
    limit_gb: float = 20.0,
    say: Callable[[str], None] = say,
    track: Track = lambda batches, total: batches,
) -> LatentData:
    """The latents of `texts`, cut into passages that fit the window: from the cache, which is made if need be.

    root: folder of caches, by default `cache_root()`. limit_gb: larger latents, and such as would fill
    the disk, are encoded on the fly. What was chosen is said. The result is not normalised yet:
    `statistics` is None.
    """
    folder = (root or cache_root()) / content_digest(autoencoder, texts)
    made = made_once(
        folder / "cache.json",
        lambda: _encoded(autoencoder, texts, folder, name, limit_gb, say, track),
        lock=folder.with_suffix(".lock"),
        say=say,
    )
    if made is not None:
        return made
    data = _read_cache(folder, autoencoder)
    say(f"{name}: {len(data):,} passages, {data.lengths.sum():,} latents from the cache")
    return data


def _encoded(
    autoencoder: Autoencoder,
    texts: list[str],
    folder: Path,
    name: str,
    limit_gb: float,
    say: Callable[[str], None],
    track: Track,
) -> LatentData:
    """Latents that are not cached yet; now they are, if there is room."""
    sequences = encode_texts(
        autoencoder.tokenizer,
        list(passages(autoencoder.tokenizer, texts, window=autoencoder.window)),
    )
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    tokens = np.concatenate([np.array(sequence, np.int32) for sequence in sequences])
    latents = sum(autoencoder.latents_of(len(sequence)) for sequence in sequences)
    gigabytes = latents * autoencoder.channels * 2 / 1e9
    room = min(limit_gb, FREE_SHARE * _free_gigabytes(folder.parent))
    described = f"{name}: {len(sequences):,} passages, {latents:,} latents, {gigabytes:.2g} GB"
    if gigabytes > room:
        say(f"{described}; more than the {room:.2g} GB allowed for a cache, so encoded on the fly")
        return LatentData(
            autoencoder, tokens, offsets, _sampled_moments(autoencoder, sequences), None
        )
    say(f"{described}; encoding once into {folder}")
    _write_cache(folder, autoencoder, sequences, tokens, offsets, track)
    return _read_cache(folder, autoencoder)


def cache_root() -> Path:
    """$BARTLEBY_CACHE, or ~/.cache/bartleby; latents lie in `latents` below it."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "bartleby"
    return Path(os.environ.get("BARTLEBY_CACHE", default)).expanduser() / "latents"


def content_digest(autoencoder: Autoencoder, texts: list[str]) -> str:
    """A name for latents that changes with the encoder, the tokenizer, the window, the precision or the texts."""
    digest = hashlib.sha256(
        f"{FORMAT} {autoencoder.window} {autoencoder.dtype} {len(texts)}".encode()
    )
    digest.update(autoencoder.tokenizer.backend_tokenizer.to_str().encode())
    for network in (autoencoder.bart.get_encoder(), autoencoder.compressor):
        for name, weights in network.state_dict().items() if network else ():
            digest.update(name.encode())
            digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:20]


def _write_cache(
    folder: Path,
    autoencoder: Autoencoder,
    sequences: list[list[int]],
    tokens: np.ndarray,
    offsets: np.ndarray,
    track: Track,
) -> None:
    raw = dataclasses.replace(autoencoder, statistics=None)
    moments = LatentMoments(raw.channels)
    places = np.cumsum([0, *(raw.latents_of(len(sequence)) for sequence in sequences)])
    with replaced_folder(folder) as temporary:
        file = np.memmap(
            temporary / "latents.f16", np.float16, "w+", shape=(places[-1], raw.channels)
        )
        for indices, latents in track(raw.encode_in_batches(sequences), len(sequences)):
            values = latents.values.cpu().transpose(1, 2)
            for row, index in enumerate(indices):
                start, end = places[index], places[index + 1]
                file[start:end] = values[row, : end - start].numpy().astype(np.float16)
            moments.add(latents.real)
        file.flush()
        save_file(
            {
                "tokens": torch.from_numpy(tokens),
                "offsets": torch.from_numpy(offsets),
                "total": moments.total,
                "products": moments.products,
            },
            temporary / "tables.safetensors",
        )
        write_json(
            temporary / "cache.json",
            {"latents": int(places[-1]), "channels": raw.channels, "encoder": raw.name},
        )


def _read_cache(folder: Path, autoencoder: Autoencoder) -> LatentData:
    try:
        described = read_json(folder / "cache.json")
        tables = load_tensors(folder / "tables.safetensors")
        size = (folder / "latents.f16").stat().st_size
        whole = size == described["latents"] * described["channels"] * 2
    except (UserError, OSError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"the latent cache '{folder}' is damaged; remove it and run again")
    moments = LatentMoments(autoencoder.channels)
    moments.count = described["latents"]
    moments.total, moments.products = tables["total"], tables["products"]
    return LatentData(
        autoencoder,
        tables["tokens"].numpy(),
        tables["offsets"].numpy(),
        moments,
        None,
        folder / "latents.f16",
    )


def _sampled_moments(autoencoder: Autoencoder, sequences: list[list[int]]) -> LatentMoments:
    raw = dataclasses.replace(autoencoder, statistics=None)
    moments = LatentMoments(raw.channels)
    step = max(1, len(sequences) // MOMENT_PASSAGES)
    for _, latents in raw.encode_in_batches(sequences[::step]):
        moments.add(latents.real)
    return moments


def _free_gigabytes(folder: Path) -> float:
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    return shutil.disk_usage(existing).free / 1e9
