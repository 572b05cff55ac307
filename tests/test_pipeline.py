"""The pipeline: what it writes, what it depends on, that it survives saving, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from bartleby.autoencoder import DecodeSettings
from bartleby.errors import UserError
from bartleby.pipeline import TextDiffusionPipeline, load_pipeline
from bartleby.sampling import SamplingSettings
from bartleby.schedules import noise_scheduler

QUICK = SamplingSettings(steps=6)
TEXTS = ["The dog likes tea.", "Nobody saw the red house."]


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "saved"
    pipeline.save_pretrained(folder)
    return folder


def test_writes_as_many_texts_as_asked_with_lengths_of_the_training_texts(pipeline):
    written = pipeline(20, settings=QUICK, seed=3)
    assert len(written.texts) == len(written.lengths) == 20
    counts = pipeline.config.length_counts
    assert all(counts[length] > 0 for length in written.lengths)
    assert len(set(written.lengths)) > 1
    assert pipeline(2, settings=QUICK, length=5).lengths == [7, 7]


def test_text_i_depends_on_seed_and_i_alone(pipeline):
    together = pipeline(6, settings=QUICK, seed=1).texts
    assert pipeline(2, settings=QUICK, seed=1, first=3).texts == together[3:5]
    assert pipeline(6, settings=QUICK, seed=2).texts != together


def test_a_models_own_settings_are_the_default_and_saved_with_it(pipeline, tmp_path):
    assert pipeline.default_settings == SamplingSettings()
    own = {"sampler": "ddim", "steps": 3, "handover": 0.2}
    chosen = TextDiffusionPipeline(
        **pipeline.components,
        window=32,
        length_counts=pipeline.config.length_counts,
        latent_statistics=dict(pipeline.config.latent_statistics),
        sampling=own,
    )
    chosen.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert loaded.default_settings == SamplingSettings("ddim", 3, handover=0.2)
    assert loaded(2).texts == pipeline(2, settings=SamplingSettings(**own)).texts
    loaded.register_to_config(sampling={"stepps": 3})
    with pytest.raises(UserError, match="sampling settings are damaged.*stepps"):
        loaded(1)


def test_a_prompt_is_kept_word_for_word(pipeline):
    for prompt in ("The old clerk", "Zyx 42!", "Tom wants"):
        for text in pipeline(4, prompt=prompt, settings=QUICK).texts:
            assert text.startswith(prompt)
    guided = SamplingSettings(steps=4, guidance=3.0)
    assert pipeline(1, prompt="Tom", settings=guided).texts[0].startswith("Tom")
    banned = DecodeSettings(no_repeat_ngram_size=1)
    (text,) = pipeline(1, prompt="No no no no", settings=QUICK, decoding=banned).texts
    assert text.startswith("No no no no")


def test_a_single_text_where_several_are_meant_is_refused_and_the_other_way_round(pipeline):
    with pytest.raises(UserError, match="no texts to edit; a single one is a list"):
        pipeline.edit("Tom saw the sea.", 0.3)
    with pytest.raises(UserError, match="no texts; a single one is a list"):
        pipeline.autoencoder.encode("Tom saw the sea.")
    with pytest.raises(UserError, match="one text is filled in at a time, not a list"):
        pipeline.infill(["Tom <mask> the sea."])


def test_an_interpolation_can_be_watched_and_a_pipeline_printed(pipeline):
    seen = []
    pipeline.interpolate(
        TEXTS[0], TEXTS[1], 3, settings=QUICK, callback=lambda step, numbers: seen.extend(numbers)
    )
    assert set(seen) == {1}  # the ends are reconstructions
    assert "TokenTransformer" in repr(pipeline) and len(repr(pipeline)) < 400


def test_guidance_and_temperature_change_the_estimate(pipeline):
    def last_estimate(**options):
        seen = []
        settings = dataclasses.replace(QUICK, **options)
        watch = lambda step, numbers: seen.append(step.x0)  # noqa: E731
        pipeline(2, prompt="Tom", settings=settings, callback=watch)
        return seen[-1]

    plain = last_estimate()
    assert torch.equal(plain, last_estimate(guidance=1.0, temperature=1.0))
    for options in ({"guidance": 3.0}, {"temperature": 0.5}):
        assert (last_estimate(**options) - plain).abs().max() > 0.1, options


def test_guidance_does_nothing_where_nothing_is_given(pipeline):
    guided = dataclasses.replace(QUICK, guidance=3.0)
    assert pipeline(2, settings=guided).texts == pipeline(2, settings=QUICK).texts
    assert pipeline.edit(TEXTS[:2], 0.5, settings=guided).texts == (
        pipeline.edit(TEXTS[:2], 0.5, settings=QUICK).texts
    )


def test_infilling_keeps_the_given_words(pipeline):
    for text in ("The <mask> likes <mask>.", "<mask> the sea?", "Nobody saw<mask>"):
        for filled in pipeline.infill(text, 3, settings=QUICK).texts:
            rest = filled
            for piece in text.split("<mask>"):
                piece = piece.strip()
                assert piece in rest
                rest = rest[rest.index(piece) + len(piece) :]
    exact = pipeline.infill("The <mask> likes tea.", gap=4, settings=QUICK)
    assert exact.lengths == [len(pipeline.tokenizer("The likes tea.")["input_ids"]) + 4]


def test_a_gap_in_a_text_that_nearly_fills_the_window_takes_what_room_there_is(pipeline):
    tokens = len(pipeline.tokenizer("Nobody saw it.")["input_ids"])
    text = "Nobody saw it. " * ((30 - 1) // (tokens - 2)) + "<mask>"
    for seed in range(4):
        (length,) = pipeline.infill(text, settings=QUICK, seed=seed).lengths
        assert length <= pipeline.config.window


def test_editing_with_strength_0_is_reconstruction_and_with_1_forgets_the_text(pipeline):
    autoencoder = pipeline.autoencoder
    reconstructed = autoencoder.decode(autoencoder.encode(TEXTS))
    assert pipeline.edit(TEXTS, 0.0, settings=QUICK).texts == reconstructed
    ends = [pipeline.edit([text], 1.0, settings=QUICK) for text in ("Tom saw the sea?", TEXTS[1])]
    assert ends[0].lengths != ends[1].lengths  # an edit keeps the length
    alike = ["The dog likes a letter!", "The dog likes two apples."]  # of the same length
    for strength, same in ((0.3, False), (1.0, True)):
        first, second = (pipeline.edit([text], strength, settings=QUICK) for text in alike)
        assert first.lengths == second.lengths
        assert (first.texts == second.texts) == same


def test_another_seed_edits_fills_in_and_interpolates_otherwise(pipeline):
    for write in (
        lambda seed: pipeline.edit(TEXTS, 0.7, settings=QUICK, seed=seed).texts,
        lambda seed: pipeline.infill("The <mask> likes tea.", 2, settings=QUICK, seed=seed).texts,
        lambda seed: pipeline.interpolate(*TEXTS, 3, settings=QUICK, seed=seed).texts,
    ):
        assert write(0) == write(0) != write(1)


def test_interpolation_ends_in_reconstructions(pipeline):
    autoencoder = pipeline.autoencoder
    written = pipeline.interpolate(*TEXTS, 5, settings=QUICK)
    ends = autoencoder.decode(autoencoder.encode(TEXTS))
    assert [written.texts[0], written.texts[-1]] == ends
    assert len(written.texts) == 5
    assert written.lengths == sorted(written.lengths)  # the second text is the longer


def test_the_callback_sees_every_step_of_every_text(pipeline):
    seen = {}

    def callback(step, numbers):
        for number in numbers:
            seen.setdefault(number, []).append(step.index)
        assert step.x0.shape == step.latents.shape

    pipeline(5, settings=QUICK, callback=callback, first=3)
    assert seen == {number: list(range(6)) for number in range(3, 8)}


def test_a_part_of_the_texts_is_written_elsewhere_the_same(pipeline):
    texts = ["Tom saw the sea?", "Nobody likes a letter!", "My sister lost two apples."]
    for whole, last in (
        (pipeline(3, settings=QUICK).texts, pipeline(1, settings=QUICK, first=2).texts),
        (
            pipeline.edit(texts, 0.7, settings=QUICK).texts,
            pipeline.edit(texts[2:], 0.7, settings=QUICK, first=2).texts,
        ),
        (
            pipeline.infill("Tom <mask>.", 3, settings=QUICK).texts,
            pipeline.infill("Tom <mask>.", 1, settings=QUICK, first=2).texts,
        ),
    ):
        assert whole[2:] == last


def test_saved_and_loaded_in_a_fresh_process_it_writes_the_same_bit_for_bit(generator_run, saved):
    code = (
        "import sys, json, torch; from bartleby import SamplingSettings, load_pipeline\n"
        "torch.set_num_threads(1)\n"
        "x0 = []\n"
        "watch = lambda step, numbers: x0.extend(step.x0.double().sum(dim=(1, 2)).tolist())\n"
        "pipeline = load_pipeline(sys.argv[1])\n"
        "texts = pipeline(4, settings=SamplingSettings(steps=6), seed=5, callback=watch).texts\n"
        "print(json.dumps([texts, x0]))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True
        ).stdout
        for folder in (generator_run, saved)
    ]
    assert outputs[0] == outputs[1] and len(json.loads(outputs[0])[1]) == 24


def test_the_saved_folder_has_diffusers_layout(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["denoiser"] == ["bartleby.denoisers", "TokenTransformer"]
    assert not list(saved.rglob("*.bin")) and not list(saved.rglob("*.pkl"))


def test_another_sampler_and_part_can_be_given(saved, pipeline):
    loaded = TextDiffusionPipeline.from_pretrained(saved, denoiser=pipeline.denoiser)
    assert loaded.denoiser is pipeline.denoiser
    assert loaded(1, settings=SamplingSettings("dpm++", 4)).texts


@pytest.mark.parametrize("part", ["bart", "tokenizer", "denoiser", "scheduler"])
def test_a_missing_part_is_named(saved, tmp_path, part):
    folder = shutil.copytree(saved, tmp_path / "broken")
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"no complete pipeline: {part} is missing"):
        load_pipeline(folder)


def test_pickles_are_not_loaded(saved, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(saved, tmp_path / "pickled")
    (weights,) = (folder / "denoiser").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(folder)


@pytest.mark.parametrize("part", ["bart", "denoiser"])
def test_damaged_weights_are_named(saved, tmp_path, part):
    folder = shutil.copytree(saved, tmp_path / "broken")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{part}.*safetensors' is damaged"):
        load_pipeline(folder)


def test_parts_that_do_not_fit_are_refused(pipeline):
    import bartleby

    parts = dict(pipeline.components)
    parts["denoiser"] = bartleby.DenoisingTransformer(channels=32, width=32, layers=1, heads=1)
    with pytest.raises(UserError, match="the denoiser has 32 channels, the latents 64"):
        TextDiffusionPipeline(**parts)
    parts["denoiser"] = bartleby.TokenTransformer(
        channels=64, width=32, layers=1, heads=1, vocabulary=99
    )
    with pytest.raises(UserError, match="the denoiser knows 99 tokens"):
        TextDiffusionPipeline(**parts)
    others = {"mean": [0.0] * 32, "std": [1.0] * 32, "tokens": 1, "effective_rank": 1.0}
    with pytest.raises(UserError, match="latent statistics have 32 channels, the latents 64"):
        TextDiffusionPipeline(**pipeline.components, latent_statistics={**others, "source": ""})


def test_any_denoiser_generates_edits_continues_and_fills_in(pipeline):
    import bartleby

    parts = dict(pipeline.components)
    parts["denoiser"] = bartleby.SimpleUNet1D(channels=64)
    unet = TextDiffusionPipeline(**parts, window=32, length_counts=pipeline.config.length_counts)
    assert len(unet(3, settings=QUICK).texts) == 3
    assert len(unet.edit(TEXTS, 0.5, settings=QUICK).texts) == 2
    together = unet(
        6, settings=QUICK
    ).texts  # a UNet sees its padding, so equal lengths go together
    assert [unet(1, settings=QUICK, first=index).texts[0] for index in range(6)] == together
    continued = unet(3, prompt="The dog", settings=QUICK).texts
    assert all(text.startswith("The dog") for text in continued)
    filled = unet.infill("Tom <mask> the sea.", 2, settings=QUICK).texts
    assert all(text.startswith("Tom") and text.endswith(" the sea.") for text in filled)


def test_a_denoiser_that_takes_no_tokens_is_given_their_latents(pipeline):
    import bartleby

    parts = dict(pipeline.components)
    parts["denoiser"] = bartleby.DenoisingTransformer(channels=64, width=32, layers=1, heads=2)
    plain = TextDiffusionPipeline(**parts, window=32, length_counts=pipeline.config.length_counts)
    seen = []
    plain(2, prompt=TEXTS[0], settings=QUICK, callback=lambda step, numbers: seen.append(step))
    ids = plain.autoencoder.tokenize([TEXTS[0]])[0][:-1]
    expected = plain.autoencoder.encode_tokens([ids]).values[0]
    for row in range(2):
        given = seen[-1].x0[row, :, : len(ids)]
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)


def test_bad_input_is_refused_in_a_line(pipeline, tmp_path):
    for call, message in (
        (lambda: pipeline(0), "num_texts is 0"),
        (lambda: pipeline(1, length=0), "length is 0 tokens"),
        (lambda: pipeline(1, length=31), "length is 31 tokens; .* must be 1 to 30"),
        (lambda: pipeline(1, prompt="  "), "the prompt is blank"),
        (lambda: pipeline(1, prompt="word " * 40), "the prompt has .* writes at most 30"),
        (lambda: pipeline.edit(TEXTS, 1.5), "strength is 1.5"),
        (lambda: pipeline.edit(TEXTS, float("nan")), "strength is nan"),
        (lambda: pipeline.infill("No gap here."), "has no <mask>"),
        (lambda: pipeline.infill("<mask>", gap=50), "has at least 52 tokens; .* at most 32"),
        (lambda: pipeline.interpolate("A b.", "C d.", 1), "steps is 1"),
        (lambda: load_pipeline(tmp_path), "model_index.json is missing"),
        (lambda: load_pipeline("no/such/hub/name"), "no model folder"),
        (lambda: load_pipeline(device="abacus"), "device is 'abacus'; say cpu or cuda"),
        (lambda: pipeline.edit([], 0.5), "there are no texts"),
        (lambda: pipeline.infill("<mask>.", 0), "num_texts is 0"),
        (lambda: pipeline.infill("word " * 30 + "<mask>."), "has at least 123 tokens"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_memory_does_not_grow_with_the_number_of_texts(pipeline):
    """A batch's latents are gone once the next but one is made."""
    seen, sizes, alive = [], [], []

    def count(step, numbers):
        seen.append(weakref.ref(step.x0))
        sizes.append(step.x0.numel())
        alive.append(sum(own() is not None for own in seen))

    pipeline(300, settings=SamplingSettings(steps=1), callback=count)
    assert len(sizes) > 2 and max(sizes) <= 1024 * 64 and max(alive) <= 2


def test_a_scheduler_of_other_noise_or_kind_is_refused(pipeline):
    def made(scheduler):
        return TextDiffusionPipeline(
            pipeline.bart, pipeline.tokenizer, pipeline.denoiser, scheduler, window=32
        )

    assert made(pipeline.scheduler).denoiser is pipeline.denoiser
    with pytest.raises(UserError, match="noise is not the one"):
        made(noise_scheduler("cosine"))
    with pytest.raises(UserError, match="is a EulerDiscreteScheduler"):
        made(EulerDiscreteScheduler())
