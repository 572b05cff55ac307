"""`bartleby demo`: what the library does, on the bundled model, in under a minute."""

from __future__ import annotations

from pathlib import Path

from bartleby.console import check_plot_path, print_json, say, track, wrapped
from bartleby.evaluation.reconstruction import reconstruct
from bartleby.loading import GENERATOR, load_autoencoder
from bartleby.noise import PANGRAM, PUBLISHED_LEVELS, curve, noise_experiment
from bartleby.pipeline import load_pipeline
from bartleby.plots import plot_noise_curve
from bartleby.reports import noise_report
from bartleby.restoration import load_trained_denoiser
from bartleby.run_folder import DENOISER

SENTENCES = [
    "It was raining so hard that nobody wanted to leave the house.",
    "“Well,” said the old clerk, “I would prefer not to.”",
    "She paid 1,250 euros for the café's piano in 1987.",
    "My sister's cat sleeps on the kitchen table every afternoon 😀.",
]
CURVE_TEXTS = [
    PANGRAM,
    *SENTENCES[:2],
    "The children ran down to the river and threw stones into the water until it was dark.",
    "He opened the letter slowly, read it twice, and put it back into the drawer without a word.",
    "In the spring the mountain roads are closed because of the snow.",
]
CURVE_LEVELS = [index * 0.25 for index in range(17)]
# nano was trained to read noise that the published BART was not, so the demo goes further.
DEMO_LEVELS = [*PUBLISHED_LEVELS, 2.0, 3.0]


def run_demo(model: str | None, *, plot: Path, seed: int, as_json: bool) -> None:
    """A reconstruction, the noise experiment at the published levels, and the noise curve as a plot."""
    check_plot_path(plot)
    autoencoder = load_autoencoder(model)
    folder, channels = autoencoder.folder, autoencoder.channels
    assert folder is not None  # it was loaded from there
    say(
        f"model {autoencoder.name}: a text of n tokens becomes latents of shape [{channels}, n]. Decoding is greedy."
    )

    results = dict(reconstruct(autoencoder, SENTENCES, say=say))
    if not as_json:
        print("\n1. Texts through the latents and back\n")
    for index in range(len(SENTENCES)):
        if as_json:
            print_json(
                {
                    "part": "reconstruct",
                    "text": SENTENCES[index],
                    "reconstruction": results[index].reconstruction,
                }
            )
        else:
            print(
                wrapped(
                    f"{'same' if results[index].exact else 'DIFFERS'}: {results[index].reconstruction}"
                )
            )

    if not as_json:
        print("\n2. The noise experiment: Gaussian noise on the latents, then the decoder;")
        print("   and the same latents through the denoiser first\n")
    restore = None
    if (folder / DENOISER).is_dir():
        restore = load_trained_denoiser(folder, autoencoder).restore
    else:
        say(f"'{autoencoder.name}' has no denoiser beside it, so nothing is denoised")
    noised = noise_experiment(
        autoencoder, [PANGRAM], DEMO_LEVELS, seed=seed, restore=restore, say=say
    )
    noise_report(list(noised), as_json=as_json, many=False)

    swept = noise_experiment(autoencoder, CURVE_TEXTS, CURVE_LEVELS, seed=seed, say=say)
    points = curve(list(track(swept, "noise curve", total=len(CURVE_TEXTS) * len(CURVE_LEVELS))))
    plot_noise_curve(
        points, plot, model=Path(autoencoder.name).name, texts=len(CURVE_TEXTS), relative=False
    )
    if not as_json:
        print(f"\n3. The whole curve is in {plot}")
    _generate(folder, seed=seed, as_json=as_json)
    say(
        "\nnext: bartleby generate -n 10 --watch   more texts, and how the first one emerges\n"
        '      bartleby infill "The <mask> sat on the mat."\n'
        '      bartleby noise "Any text of yours." --levels 0:4:1 --denoiser nano\n'
        "      bartleby reconstruct FILE        your texts through the latents and back\n"
        "      bartleby info                    what the bundled model is"
    )


def _generate(folder: Path, *, seed: int, as_json: bool) -> None:
    """Five texts from noise, by the generator that lies beside the model."""
    if not (folder / GENERATOR).is_dir():
        say(f"'{folder.name}' has no generator beside it, so no text is generated")
        return
    if not as_json:
        print("\n4. Five texts from pure noise, unselected\n")
    for text in load_pipeline(folder / GENERATOR)(5, seed=seed).texts:
        if as_json:
            print_json({"part": "generate", "text": text})
        else:
            print(wrapped(text))
