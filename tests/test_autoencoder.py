import dataclasses

import pytest
import torch
from conftest import TEXTS, WINDOW

from bartleby.autoencoder import DecodeSettings, fit_latent_statistics, fit_to_window
from bartleby.errors import UserError
from bartleby.given import FREE
from bartleby.latents import Latents, effective_rank
from bartleby.tokenization import encode_texts

MIXED = ["Tom.", "The children remembers the red house.", "My sister saw a letter!", "Nobody"]


def test_latents_have_one_column_per_token_and_zeros_at_padding(autoencoder):
    latents = autoencoder.encode(MIXED)
    lengths = [len(ids) for ids in encode_texts(autoencoder.tokenizer, MIXED)]
    assert latents.values.shape == (4, autoencoder.channels, max(lengths))
    assert latents.values.dtype == torch.float32
    assert latents.mask.sum(dim=1).tolist() == lengths
    assert (latents.values.transpose(1, 2)[~latents.mask] == 0).all()
    assert latents.real.shape == (sum(lengths), autoencoder.channels)


def test_a_text_has_the_same_latents_alone_and_in_a_batch(autoencoder):
    together = autoencoder.encode(MIXED)
    for row, text in enumerate(MIXED):
        alone = autoencoder.encode([text])
        length = alone.mask.sum()
        assert torch.allclose(together.values[row, :, :length], alone.values[0], atol=1e-5)


def test_unknown_places_are_not_read_and_have_no_latent(autoencoder):
    ids = autoencoder.tokenize(["The dog likes tea."])[0]
    cut = autoencoder.encode_tokens([[*ids[:3], FREE, FREE]])
    assert cut.mask.tolist() == [[True] * 3 + [False] * 2]
    assert cut.values[:, :, 3:].abs().max() == 0
    alone = autoencoder.encode_tokens([ids[:3]])
    torch.testing.assert_close(cut.values[:, :, :3], alone.values, atol=1e-4, rtol=0)
    gap = autoencoder.encode_tokens([[*ids[:2], FREE, *ids[3:]]])
    whole = autoencoder.encode_tokens([ids])
    assert gap.mask.sum() == len(ids) - 1 and not torch.equal(
        gap.values[0, :, 0], whole.values[0, :, 0]
    )


def test_a_text_is_decoded_the_same_alone_and_in_a_batch(autoencoder):
    together = autoencoder.decode(autoencoder.encode(MIXED))
    assert together == [autoencoder.decode(autoencoder.encode([text]))[0] for text in MIXED]
    assert any(together)


def test_decoding_from_latents_is_barts_own_generation(autoencoder):
    """The path through latents writes what `generate` writes from input ids."""
    text = "The old clerk remembers some tea, please."
    ids = torch.tensor(encode_texts(autoencoder.tokenizer, [text]))
    limit = ids.shape[1] + ids.shape[1] // 4 + 8
    expected = autoencoder.bart.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_length=min(limit, WINDOW),
        do_sample=False,
        num_beams=2,
    )
    latents = autoencoder.encode_tokens(ids.tolist())
    assert autoencoder.decode_tokens(latents, DecodeSettings(num_beams=2)) == expected.tolist()


def test_statistics_are_those_of_real_tokens(autoencoder, statistics):
    real = autoencoder.encode(TEXTS).real.double()
    assert statistics.tokens == len(real)
    assert torch.allclose(statistics.mean.double(), real.mean(dim=0), atol=1e-4)
    assert torch.allclose(statistics.std.double(), real.std(dim=0, correction=0), rtol=1e-3)


def test_normalised_latents_have_unit_variance_and_come_back(autoencoder, statistics):
    raw = autoencoder.encode(TEXTS)
    normalised = dataclasses.replace(autoencoder, statistics=statistics).encode(TEXTS)
    assert torch.allclose(normalised.real.mean(dim=0), torch.zeros(autoencoder.channels), atol=1e-3)
    assert torch.allclose(normalised.real.std(dim=0), torch.ones(autoencoder.channels), atol=1e-2)
    assert (normalised.values.transpose(1, 2)[~normalised.mask] == 0).all()
    assert torch.allclose(statistics.denormalise(normalised).values, raw.values, atol=1e-4)


def test_statistics_do_not_depend_on_normalisation_already_present(autoencoder, statistics):
    normalised = dataclasses.replace(autoencoder, statistics=statistics)
    assert torch.equal(
        fit_latent_statistics(normalised, TEXTS, source="tests").mean, statistics.mean
    )


def test_decoding_with_and_without_normalisation_agrees(autoencoder, statistics):
    normalised = dataclasses.replace(autoencoder, statistics=statistics)
    assert normalised.decode(normalised.encode(MIXED)) == autoencoder.decode(
        autoencoder.encode(MIXED)
    )


def test_effective_rank():
    assert effective_rank(torch.eye(10)) == pytest.approx(10)
    line = torch.ones(10, 10)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    two = torch.diag(torch.tensor([1.0, 1.0] + [0.0] * 8))
    assert effective_rank(two) == pytest.approx(2)


def test_long_texts_are_truncated_and_said(autoencoder):
    messages = []
    long = "The dog likes tea. " * 20
    latents = autoencoder.encode(["Tom.", long], say=messages.append)
    assert latents.mask.sum(dim=1)[1] == WINDOW
    assert len(messages) == 1 and "1 of 2 texts" in messages[0] and "truncated" in messages[0]
    autoencoder.encode(autoencoder.split(["Tom.", long]), say=messages.append)
    assert len(messages) == 1


def test_fit_to_window_keeps_the_end_token():
    assert fit_to_window([0, 5, 6, 7, 2], 4) == [0, 5, 6, 2]
    assert fit_to_window([0, 5, 2], 4) == [0, 5, 2]


@pytest.mark.parametrize(
    ("text", "message"), [("", "text 2 is blank"), (" \n", "blank"), ("word " * 100_000, "--split")]
)
def test_blank_and_enormous_texts_are_refused(autoencoder, text, message):
    with pytest.raises(UserError, match=message):
        autoencoder.encode(["fine", text])


def test_mask_reaches_the_decoder(autoencoder):
    """Rubbish in the padded columns changes nothing that is written."""
    latents = autoencoder.encode(MIXED)
    noisy = torch.where(
        latents.mask[:, None], latents.values, torch.full_like(latents.values, 50.0)
    )
    assert autoencoder.decode(Latents(noisy, latents.mask)) == autoencoder.decode(latents)


def test_latents_whose_shapes_do_not_belong_together_are_refused():
    values = torch.zeros(2, 8, 5)
    for mask, message in (
        (torch.ones(2, 4, dtype=torch.bool), r"\[2, 8, 5\] and their mask \[2, 4\]"),
        (torch.ones(2, 8, dtype=torch.bool), "must be"),
        (torch.ones(2, 5), "must be bool"),
    ):
        with pytest.raises(UserError, match=message):
            Latents(values, mask)
