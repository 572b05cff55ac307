"""The bundled nano: what the README claims of it, on texts it never trained on."""

import json
import re

import pytest

from bartleby.evaluation.reconstruction import reconstruct, summarise
from bartleby.loading import bundled_folder, load_autoencoder
from bartleby.noise import PANGRAM, curve, noise_experiment
from bartleby.pipeline import load_pipeline
from bartleby.restoration import load_trained_denoiser

# Written for this test.
UNSEEN = [
    "The ferry to the island leaves at half past six, unless the wind is too strong.",
    "“You might have told me,” she said, “before I sold the piano!”",
    "Flight 2,847 was delayed by 95 minutes; nobody on board seemed to mind.",
    "A naïve café owner paid €12.50 for 3 kg of crème brûlée.",
    "Congratulations 🎉 on your new flat 😀!",
    "First line.\nSecond line.\n\nA line after a gap.",
    "My neighbour's dog barks whenever the postman whistles, so the postman has stopped whistling.",
    "Why would anyone lock a garden that has no fence?",
]


@pytest.fixture(scope="module")
def nano():
    return load_autoencoder()


def test_reconstructs_unseen_texts(nano):
    results = [item for _, item in reconstruct(nano, UNSEEN)]
    assert [item.text for item in results if not item.exact] == []


def test_noise_curve_falls_from_readable_to_nonsense(nano):
    points = curve(list(noise_experiment(nano, [PANGRAM, *UNSEEN[:3]], [0.0, 1.0, 2.0, 4.0])))
    accuracy = [point.token_accuracy for point in points]
    assert accuracy[0] == 1.0 and accuracy[-1] < 0.3
    assert accuracy == sorted(accuracy, reverse=True)
    assert [point.snr_db for point in points] == sorted(
        (point.snr_db for point in points), reverse=True
    )


def test_the_denoiser_restores_what_the_decoder_cannot_read(nano):
    restore = load_trained_denoiser(None, nano).restore
    items = list(noise_experiment(nano, UNSEEN, [2.5], restore=restore))
    before = sum(item.token_accuracy for item in items) / len(items)
    after = sum(item.denoised_token_accuracy for item in items) / len(items)
    assert before < 0.5 and after > before + 0.3


def test_latents_have_unit_variance_and_are_not_collapsed(nano):
    assert nano.statistics.effective_rank > nano.channels / 4
    real = nano.encode(UNSEEN).real
    assert 0.6 < real.std(dim=0).mean() < 1.4


def test_the_folder_is_small_and_says_what_it_is():
    folder = bundled_folder()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 45e6
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["validation"]["exact"] > 0.8
    assert "rocstories" not in record["data"]
    assert (folder / "README.md").exists()


def test_demo(cli, tmp_path):
    plot = tmp_path / "curve.png"
    result = cli("demo", "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("same: ") == 4 and result.stdout.count("\ndenoised · ") == 5
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "4. Five texts from pure noise, unselected" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.fixture(scope="module")
def generator():
    return load_pipeline()


def test_the_generator_writes_different_texts_of_ordinary_words(generator):
    texts = generator(16, seed=7).texts
    assert all(texts) and len(set(texts)) == 16
    vocabulary = generator.tokenizer.get_vocab()
    words = [word for text in texts for word in re.findall(r"[A-Za-z]+", text)]
    known = [word for word in words if f"Ġ{word}" in vocabulary or f"Ġ{word.lower()}" in vocabulary]
    assert len(words) > 50 and len(known) / len(words) > 0.85
    assert sum(text[0].isupper() or text[0] == '"' for text in texts) >= 15
    assert sum(text[-1] in '.!?"' for text in texts) >= 15


def test_a_text_of_the_generator_is_the_same_whatever_is_written_with_it(generator):
    together = generator(24, seed=7).texts
    assert together == [text for i in range(24) for text in generator(1, seed=7, first=i).texts]


def test_the_generator_keeps_what_it_is_given(generator):
    assert all(text.startswith("My sister") for text in generator(3, prompt="My sister").texts)
    for text in generator.infill("The <mask> is on the table.", 3).texts:
        assert text.startswith("The") and text.endswith(" is on the table.")
    source = "The dog is asleep in the kitchen."
    assert generator.edit([source], 0.0).texts == [source]
    written = generator.interpolate(source, "I have to go home now.", 3).texts
    assert [written[0], written[2]] == [source, "I have to go home now."]


def test_the_generator_knows_licence_clean_text_only(generator):
    record = json.loads((bundled_folder() / "generator" / "training.json").read_text())
    assert record["config"]["data"]["source"] == "data/sentences"
    for folder, data in (
        (bundled_folder(), {"sentences", "wikitext-2", "books"}),
        (bundled_folder() / "generator", {"sentences", "wikitext-2"}),
    ):
        repaired = json.loads((folder / "repair.json").read_text())
        assert set(repaired["data"]) == data
    assert generator.default_settings.steps <= 50


def test_summary_of_nothing_wrong(nano):
    summary = summarise([item for _, item in reconstruct(nano, UNSEEN[:2])])
    assert (summary.exact, summary.token_accuracy) == (1.0, 1.0)
