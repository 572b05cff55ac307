import itertools

import numpy as np
import torch
from conftest import TEXTS, WINDOW

from bartleby.bart import new_bart
from bartleby.bart_objective import Corruption, DenoisingBatches, bart_loss, noised
from bartleby.corruption import infill, permute_sentences
from bartleby.tokenization import encode_texts

MASK = -1


def test_infill_masks_the_asked_share_and_keeps_the_rest_in_order():
    rng = np.random.default_rng(0)
    shares, spans = [], []
    for _ in range(500):
        ids = np.arange(100)
        corrupted, masked = infill(ids, mask_id=MASK, share=0.3, mean_span=3.0, rng=rng)
        assert corrupted[corrupted != MASK].tolist() == ids[~masked].tolist()
        shares.append(masked.mean())
        spans.append(masked.sum() / (corrupted == MASK).sum())
    assert 0.28 < np.mean(shares) < 0.31  # zero-length spans use a little of the budget
    assert 2.4 < np.mean(spans) < 3.2


def test_infill_of_short_and_empty_texts():
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 3):
        for _ in range(50):
            corrupted, masked = infill(
                np.arange(length), mask_id=MASK, share=0.3, mean_span=3.0, rng=rng
            )
            assert len(masked) == length
            assert corrupted[corrupted != MASK].tolist() == np.arange(length)[~masked].tolist()


def test_permute_sentences_moves_whole_sentences():
    is_end = np.array([False] * 9 + [True])
    ids = np.array([1, 2, 9, 3, 9, 4, 5, 6, 9, 7])
    seen = set()
    for seed in range(50):
        permuted = permute_sentences(ids, is_sentence_end=is_end, rng=np.random.default_rng(seed))
        seen.add(tuple(permuted.tolist()))
        text = "".join(map(str, permuted))
        assert any(
            text == "".join(order) for order in itertools.permutations(["129", "39", "4569", "7"])
        )
    assert len(seen) > 10


def _batch(tokenizer, seed, corruption=None):
    sequences = [np.array(ids) for ids in encode_texts(tokenizer, TEXTS[:6])]
    return DenoisingBatches(tokenizer, corruption or Corruption(), window=WINDOW).make(
        sequences, seed=(seed,)
    )


def test_same_seed_same_batch_other_seed_other_batch(tokenizer):
    first, again, other = _batch(tokenizer, 1), _batch(tokenizer, 1), _batch(tokenizer, 2)
    assert torch.equal(first.decoder_ids, again.decoder_ids) and torch.equal(
        first.source_ids, again.source_ids
    )
    assert (
        torch.equal(first.noise_level, again.noise_level) and first.noise_seed == again.noise_seed
    )
    assert not torch.equal(first.noise_level, other.noise_level)


def test_without_corruption_source_is_the_target(tokenizer):
    plain = Corruption(infilled=0, permuted=0, random_tokens=0, decoder_mask=0, latent_noise=0)
    batch = _batch(tokenizer, 0, plain)
    assert torch.equal(batch.source_ids, batch.labels)
    real = batch.label_mask[:, 1:].bool()
    assert torch.equal(batch.decoder_ids[:, 1:][real], batch.labels[:, :-1][real])
    assert (batch.decoder_ids[:, 0] == tokenizer.eos_token_id).all()


def test_noise_is_in_standard_deviations_of_real_tokens():
    torch.manual_seed(0)
    latents = torch.randn(4, 200, 3) * torch.tensor([1.0, 10.0, 0.1])
    mask = torch.ones(4, 200)
    mask[:, 150:] = 0
    latents[:, 150:] = 1e6  # padding must not enter the deviation
    noise = noised(latents, mask, level=torch.tensor([0.0, 0.5, 1.0, 2.0]), seed=0) - latents
    measured = noise[:, :150].std(dim=1) / torch.tensor([1.0, 10.0, 0.1])
    assert torch.allclose(
        measured, torch.tensor([0.0, 0.5, 1.0, 2.0])[:, None].expand(4, 3), rtol=0.2
    )


def test_loss_ignores_padding(tokenizer):
    bart = new_bart(tokenizer, architecture="tiny", window=WINDOW, seed=0)
    plain = Corruption(infilled=0, permuted=0, random_tokens=0, decoder_mask=0, latent_noise=0)
    maker = DenoisingBatches(tokenizer, plain, window=WINDOW)
    ids = [
        np.array(sequence)
        for sequence in encode_texts(tokenizer, ["Tom.", "The children remembers the red house."])
    ]
    alone = [maker.make([sequence], seed=(0,)) for sequence in ids]
    together = maker.make(ids, seed=(0,))
    weighted = sum(bart_loss(bart, batch) * batch.tokens for batch in alone) / together.tokens
    assert torch.allclose(bart_loss(bart, together), weighted, rtol=1e-4)


def test_aligned_cross_attention_reads_its_own_position(tokenizer):
    """The claim of `align_cross_attention`: attention at decoder position p peaks at encoder position p."""
    bart = new_bart(tokenizer, architecture="tiny", window=WINDOW, seed=0).eval()
    bart.set_attn_implementation("eager")
    ids = torch.tensor([encode_texts(tokenizer, ["The old clerk remembers some tea, please."])[0]])
    decoder_ids = torch.cat([ids.new_full((1, 1), tokenizer.eos_token_id), ids[:, :-1]], dim=1)
    output = bart(input_ids=ids, decoder_input_ids=decoder_ids, output_attentions=True)
    attention = output.cross_attentions[0].mean(dim=1)[0]
    assert (attention.argmax(dim=1) == torch.arange(ids.shape[1])).float().mean() > 0.9
