"""Other models that judge texts: a language model's perplexity, an encoder's embeddings.

Each is named by the user: a folder, a hub name, or a .gguf file. Results always say which one scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bartleby.batching import cut_by_tokens, pad, tokens_at_once
from bartleby.errors import UserError, first_line
from bartleby.messages import say
from bartleby.precision import chosen_device

TOKENS_PER_BATCH = 1024  # that a CPU reads together
LONGEST = 1024  # tokens of a text that are read
LONGEST_EMBEDDED = 256  # the same of an embedder, as sentence-transformers' MiniLM is used


@dataclass(frozen=True)
class Reading:
    """What a language model makes of n texts.

    nats, tokens: [n], a text's tokens, given a start token; the end after it is not scored.  features:
    [n, d], the last layer's state at its last token, which MAUVE compares (Pillutla et al. 2021).
    """

    nats: np.ndarray
    tokens: np.ndarray
    features: np.ndarray

    @property
    def perplexity(self) -> float | None:
        """exp of the mean nats a token, over all texts together; None if they have no token."""
        return float(np.exp(self.nats.sum() / self.tokens.sum())) if self.tokens.sum() else None


@dataclass(frozen=True)
class LanguageModelJudge:
    """A causal language model that says how likely texts are."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @torch.inference_mode()
    def read(self, texts: list[str]) -> Reading:
        """Likelihood and features of each text. UserError for a tokenizer without <bos> and <eos>."""
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        if start is None:
            raise UserError(f"{self.name} has no token that a text could begin with")
        window = getattr(self.model.config, "max_position_embeddings", None) or LONGEST
        window = min(window, LONGEST)
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        cut = sum(len(own) >= window for own in ids)
        if cut:
            say(f"{self.name} reads the first {window - 1:,} tokens of {cut:,} long texts")
        sequences = [[start, *own[: window - 1]] for own in ids]
        lengths = np.array([len(sequence) for sequence in sequences])
        nats = np.zeros(len(texts))
        features = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        order = np.argsort(lengths, kind="stable")
        for rows in cut_by_tokens(
            order, lengths, tokens_at_once(self.model.device, on_cpu=TOKENS_PER_BATCH)
        ):
            padded, mask = pad([sequences[row] for row in rows], start)
            padded, mask = padded.to(self.model.device), mask.to(self.model.device)
            output = self.model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
            logits = output.logits[:, :-1].float()
            # Not F.cross_entropy, which on a CPU took four times as long over so many tokens.
            own = logits.gather(2, padded[:, 1:, None]).squeeze(2)
            losses = logits.logsumexp(dim=2) - own  # [B, L - 1]
            nats[rows] = (losses * mask[:, 1:]).sum(dim=1).double().cpu().numpy()
            last = output.hidden_states[-1][torch.arange(len(rows)), lengths[rows] - 1]
            features[rows] = last.float().cpu().numpy()
        return Reading(nats, lengths - 1, features)


@dataclass(frozen=True)
class Embedder:
    """An encoder whose mean over tokens stands for a text (sentence-transformers' MiniLM, BERT, ...)."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """[n, d] unit vectors; their products are cosines."""
        features = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        lengths = np.array([len(ids) for ids in self.tokenizer(texts)["input_ids"]])
        if cut := int((lengths > LONGEST_EMBEDDED).sum()):
            say(f"{self.name} reads the first {LONGEST_EMBEDDED} tokens of {cut:,} long texts")
        order = np.argsort(lengths, kind="stable")
        for rows in np.array_split(order, max(1, math.ceil(len(texts) / 64))):
            batch = self.tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=LONGEST_EMBEDDED,
                return_tensors="pt",
            ).to(self.model.device)
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
            features[rows] = F.normalize(mean.float(), dim=1).cpu().numpy()
        return features


def load_language_model(name: str, *, device: str | None = None) -> LanguageModelJudge:
    """A causal language model by folder, hub name or .gguf file; UserError if it cannot be loaded."""
    return LanguageModelJudge(name, *_load(AutoModelForCausalLM, name, device))


def load_embedder(name: str, *, device: str | None = None) -> Embedder:
    """An encoder, or a decoder such as gpt2, by folder or hub name; UserError if it cannot be loaded."""
    model, tokenizer = _load(AutoModel, name, device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked out of the mean
    return Embedder(name, model, tokenizer)


def _load(
    kind: type[AutoModel | AutoModelForCausalLM], name: str, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    chosen, path = chosen_device(device), Path(name).expanduser()
    place: str | Path = path if path.is_dir() else name
    options = {}
    if path.suffix == ".gguf":
        place, options = path.parent, {"gguf_file": path.name}
    if path.suffix == ".gguf" and not path.is_file():
        raise UserError(f"no file at '{name}'")
    try:
        model = kind.from_pretrained(place, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except ImportError as error:
        raise UserError(f"'{name}' needs a package that is missing: {error}") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"the model '{name}' cannot be loaded: {first_line(error)}") from None
    return model.eval().to(chosen), tokenizer
