import dataclasses
import math

import pytest
from conftest import TEXTS, quiet

from bartleby.errors import UserError
from bartleby.evaluation.text import bleu, token_accuracy
from bartleby.noise import curve, noise_experiment, parse_levels


def run(autoencoder, texts, levels, **options):
    return list(noise_experiment(autoencoder, texts, levels, say=quiet, **options))


def test_level_zero_is_reconstruction(autoencoder):
    (item,) = run(autoencoder, TEXTS[:1], [0.0])
    assert item.text == autoencoder.decode(autoencoder.encode(TEXTS[:1]))[0]
    assert math.isinf(item.snr_db)
    assert item.cosine == pytest.approx(1)


def test_snr_and_cosine_have_their_closed_forms(autoencoder):
    level = 0.5
    items = run(autoencoder, TEXTS[:40], [level])
    raw = autoencoder.encode(TEXTS[:40])
    for row, item in enumerate(sorted(items, key=lambda item: TEXTS.index(item.original))):
        real = raw.values[row][:, raw.mask[row]]
        variance = real.var(dim=1, correction=0).mean().item()
        assert item.snr_db == pytest.approx(10 * math.log10(variance / level**2), abs=1.0)
        power = real.square().mean().item()
        assert item.cosine == pytest.approx(math.sqrt(power / (power + level**2)), abs=0.06)


def test_twice_the_level_is_six_decibels_and_less_cosine(autoencoder):
    items = curve(run(autoencoder, TEXTS[:30], [0.1, 0.2, 20.0]))
    assert items[0].snr_db - items[1].snr_db == pytest.approx(6.02, abs=0.01)
    assert items[0].cosine > items[1].cosine > items[2].cosine


def test_relative_levels_scale_with_each_channel(autoencoder, statistics):
    with_statistics = dataclasses.replace(autoencoder, statistics=statistics)
    items = run(with_statistics, TEXTS[:40], [1.0], relative=True)
    assert sum(item.snr_db for item in items) / 40 == pytest.approx(0.0, abs=1.0)


def test_relative_without_statistics_says_where_they_come_from(autoencoder):
    messages = []
    list(noise_experiment(autoencoder, TEXTS[:5], [1.0], relative=True, say=messages.append))
    assert any("measured on these 5 texts" in message for message in messages)


def test_same_seed_same_result_other_seed_other_noise(autoencoder):
    first, again = (run(autoencoder, TEXTS[:3], [1.0], seed=5) for _ in range(2))
    assert first == again
    assert run(autoencoder, TEXTS[:3], [1.0], seed=6) != first


def test_a_texts_noise_does_not_depend_on_its_batch(autoencoder, monkeypatch):
    texts = [*TEXTS[:8], "Tom.", "A longer one. " * 3]
    together = {item.original: item for item in run(autoencoder, texts, [1.0])}
    monkeypatch.setattr("bartleby.noise.TOKENS_PER_BATCH", 32)
    for item in run(autoencoder, texts, [1.0]):
        assert item.cosine == pytest.approx(together[item.original].cosine, abs=1e-5)


def test_parse_levels():
    assert parse_levels(["0.1", "0.5", "1.0"]) == [0.1, 0.5, 1.0]
    assert parse_levels(["0:0.3:0.1"]) == [0, 0.1, 0.2, 0.3]
    assert parse_levels(["0:2:0.1"])[-1] == 2.0


@pytest.mark.parametrize(
    "value", ["abc", "1:2", "0:1:0", "1:0:0.1", "0:1:-0.1", "0:inf:1", "nan:1:1", "0:1e9:0.1", ""]
)
def test_bad_ranges(value):
    with pytest.raises(UserError, match="noise"):
        parse_levels([value])


@pytest.mark.parametrize("level", [-0.1, math.nan, math.inf])
def test_bad_levels(autoencoder, level):
    with pytest.raises(UserError, match="levels are numbers from 0 up"):
        run(autoencoder, ["Tom."], [level])


def test_text_metrics():
    assert token_accuracy([1, 2, 3], [1, 2, 3]) == 1
    assert token_accuracy([1, 2, 3], [1, 9, 3]) == pytest.approx(2 / 3)
    assert token_accuracy([1, 2], [1, 2, 3, 4]) == 0.5
    assert token_accuracy([1, 2], []) == 0
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
