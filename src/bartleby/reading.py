"""How likely the decoder finds a text, given the latents that it reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from bartleby.latents import Latents
from bartleby.precision import attention_kernel

IGNORED = -100  # in place of a token that is not to be predicted


def token_nats(
    bart: BartForConditionalGeneration, latents: Latents, labels: torch.Tensor
) -> torch.Tensor:
    """[n] nats of every token of these texts, text after text, as BART reads raw latents [B, C, L].

    labels: [B, L], token ids, IGNORED at padding.
    """
    labels = labels.to(bart.device)
    start = torch.full_like(labels[:, :1], bart.config.decoder_start_token_id)
    inputs = torch.cat([start, labels[:, :-1]], dim=1)
    inputs = inputs.masked_fill(inputs == IGNORED, bart.config.pad_token_id)
    hidden_states = latents.values.transpose(1, 2).to(bart.device)
    with attention_kernel(labels.shape[1], bart.device):
        hidden = bart.model(
            decoder_input_ids=inputs,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden_states),
            attention_mask=latents.mask.long().to(bart.device),
            use_cache=False,
        ).last_hidden_state
    real = labels != IGNORED
    logits = bart.lm_head(hidden[real]) + bart.final_logits_bias  # [n, V]
    return F.cross_entropy(logits.float(), labels[real], reduction="none")


def reading_loss(
    bart: BartForConditionalGeneration, latents: Latents, labels: torch.Tensor
) -> torch.Tensor:
    """The mean of `token_nats`."""
    return token_nats(bart, latents, labels).mean()
