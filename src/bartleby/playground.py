"""`bartleby playground`: writing, editing, infilling and interpolating on a web page of one's own machine.

`Actions` does the work and knows nothing of gradio; `page` lays it out.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bartleby.errors import UserError
from bartleby.messages import say
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.sampling import SamplingSettings
from bartleby.schedules import SAMPLERS
from bartleby.watching import watcher

if TYPE_CHECKING:
    import gradio

MOST_TEXTS = 64
WAITING = 32  # visitors in line


@dataclass(frozen=True)
class Actions:
    """What the page's buttons do. `seed` as everywhere; all raise UserError for what cannot be used.

    warn: gets what the visitor should know, say that a text was too long for the window.
    """

    pipeline: TextDiffusionPipeline
    warn: Callable[[str], None] = say

    def write(
        self, prompt: str, number: int, length: int, seed: int, settings: SamplingSettings
    ) -> tuple[str, list[list]]:
        """New texts, one a line, and how the first emerged: rows of step and what the decoder reads then.

        A length of 0 draws each text's from the training texts'.
        """
        emerged: list[list] = []

        def show(step: int, text: str) -> None:
            emerged.append([step, text])

        written = self.pipeline(
            number,
            prompt=prompt if prompt.strip() else None,
            length=length or None,
            settings=settings,
            seed=seed,
            callback=watcher(self.pipeline, 0, show, settings.decoding()),
        )
        return _lines(written.texts), emerged

    def edit(
        self, text: str, strength: float, number: int, seed: int, settings: SamplingSettings
    ) -> str:
        """`number` texts that are more or less like `text`."""
        self._check(text)
        written = self.pipeline.edit([text] * number, strength, settings=settings, seed=seed)
        return _lines(written.texts)

    def infill(self, text: str, number: int, seed: int, settings: SamplingSettings) -> str:
        """`text` with every <mask> filled in, `number` times."""
        return _lines(self.pipeline.infill(text, number, settings=settings, seed=seed).texts)

    def interpolate(
        self,
        first: str,
        last: str,
        number: int,
        strength: float,
        seed: int,
        settings: SamplingSettings,
    ) -> list[list]:
        """Rows of the share of `last` and the text there."""
        self._check(first)
        self._check(last)
        written = self.pipeline.interpolate(
            first, last, number, strength=strength, settings=settings, seed=seed
        )
        return [
            [f"{index / (number - 1):.0%}", text.replace("\n", " ")]
            for index, text in enumerate(written.texts)
        ]

    def _check(self, text: str) -> None:
        autoencoder = self.pipeline.autoencoder
        autoencoder.tokenize([text], say=lambda message: None)  # raises for a blank one
        tokens = len(autoencoder.tokenizer(text)["input_ids"])
        if tokens > autoencoder.window:
            self.warn(
                f"The text has {tokens:,} tokens, of which this model reads {autoencoder.window}."
            )


def page(pipeline: TextDiffusionPipeline, name: str) -> gradio.Blocks:
    """The page, for a model of that name. Raises UserError where gradio is not installed."""
    gr = require_gradio()
    actions = Actions(pipeline, warn=gr.Warning)
    with gr.Blocks(title="Bartleby", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# Bartleby\nText diffusion in BART's latent space · {name} · "
            f"latents [{pipeline.denoiser.config.channels}, n] · up to {pipeline.config.window} tokens a text"
        )
        for title, contents in (
            ("Write", _write_tab),
            ("Edit", _edit_tab),
            ("Fill in", _infill_tab),
            ("Interpolate", _interpolate_tab),
        ):
            with gr.Tab(title):
                contents(gr, actions)
    return blocks


def _write_tab(gr: ModuleType, actions: Actions) -> None:
    prompt = gr.Textbox(label="Begin with", placeholder="nothing: new texts from pure noise")
    number = _how_many(gr, 5)
    length = gr.Slider(
        0,
        actions.pipeline.config.window - 2,
        0,
        step=1,
        label="Length in tokens",
        info="0: as in the training texts",
    )
    button = gr.Button("Write", variant="primary")
    texts = gr.Textbox(label="Texts", lines=5, buttons=["copy"])
    emerged = gr.Dataframe(
        headers=["step", "what the decoder makes of the estimate"],
        label="How the first text emerged",
        column_widths=["15%", "85%"],
        wrap=True,
    )
    own = actions.pipeline.default_settings
    _connect(gr, button, actions.write, own, [prompt, number, length], [texts, emerged])


def _edit_tab(gr: ModuleType, actions: Actions) -> None:
    text = gr.Textbox("The dog is in the garden.", label="Text")
    strength = gr.Slider(
        0, 1, 0.4, step=0.05, label="Strength", info="0 gives it back, 1 is a new text"
    )
    number = _how_many(gr, 3)
    button = gr.Button("Edit", variant="primary")
    edited = gr.Textbox(label="Edited", lines=3, buttons=["copy"])
    own = actions.pipeline.editing_settings
    _connect(gr, button, actions.edit, own, [text, strength, number], [edited], guided=False)


def _infill_tab(gr: ModuleType, actions: Actions) -> None:
    text = gr.Textbox(
        "The <mask> sat on the mat.", label="Text", info="<mask> where words are missing"
    )
    number = _how_many(gr, 3)
    button = gr.Button("Fill in", variant="primary")
    filled = gr.Textbox(label="Filled in", lines=3, buttons=["copy"])
    _connect(
        gr, button, actions.infill, actions.pipeline.editing_settings, [text, number], [filled]
    )


def _interpolate_tab(gr: ModuleType, actions: Actions) -> None:
    first = gr.Textbox("The dog is asleep.", label="From")
    last = gr.Textbox("I have to go home now.", label="To")
    number = gr.Slider(2, 21, 7, step=1, label="Texts, both ends included")
    strength = gr.Slider(
        0, 1, 0.5, step=0.05, label="Noise in the middle", info="more: more fluent, less alike"
    )
    button = gr.Button("Interpolate", variant="primary")
    between = gr.Dataframe(headers=["on the way", "text"], column_widths=["15%", "85%"], wrap=True)
    inputs, own = [first, last, number, strength], actions.pipeline.editing_settings
    _connect(gr, button, actions.interpolate, own, inputs, [between], guided=False)


def serve(
    pipeline: TextDiffusionPipeline, name: str, *, host: str, port: int, browser: bool
) -> None:
    """Serves the page until interrupted. Raises UserError for a port that is taken."""
    gr = require_gradio()
    blocks = page(pipeline, name).queue(max_size=WAITING)
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=["api"],
        )
    except OSError:
        raise UserError(
            f"port {port} of {host} cannot be served on; another --port, or --host 127.0.0.1, may do"
        ) from None
    say(f"{blocks.local_url}  (Ctrl-C ends it)")
    blocks.block_thread()


def _how_many(gr: ModuleType, value: int) -> gradio.Slider:
    return gr.Slider(1, MOST_TEXTS, value, step=1, label="How many")


def _connect(
    gr: ModuleType,
    button: gradio.Button,
    action: Callable,
    own: SamplingSettings,
    inputs: list,
    outputs: list,
    *,
    guided: bool = True,
) -> None:
    """The button calls `action` with the inputs' values, a seed and sampling settings.

    These stand folded below it, at first the model's own.  guided: whether something may be given that guides.
    """
    with gr.Accordion("Seed and sampling", open=False):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        knobs = _knobs(gr, own)
        if not guided:
            knobs.pop("guidance").visible = False

    def run(*values: Any) -> Any:
        given, (chosen_seed, *chosen) = values[: len(inputs)], values[len(inputs) :]
        try:
            settings = dataclasses.replace(own, **dict(zip(knobs, chosen, strict=True)))
            return action(*given, int(chosen_seed or 0), settings)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    button.click(
        run,
        [*inputs, seed, *knobs.values()],
        outputs,
        api_name=action.__name__,
        concurrency_id="writing",  # of all buttons: one visitor is served after another
    )


def _knobs(gr: ModuleType, own: SamplingSettings) -> dict[str, Any]:
    """A component for each field of SamplingSettings that the page lets a visitor change.

    Their ranges reach to the model's own values, whatever these are: gradio refuses all else.
    """

    def slider(name: str, least: float, most: float, step: float, **options: Any) -> gradio.Slider:
        value = getattr(own, name)
        return gr.Slider(min(least, value), max(most, value), value, step=step, **options)

    samplers = list(dict.fromkeys([*SAMPLERS, own.sampler]))
    return {
        "sampler": gr.Dropdown(samplers, value=own.sampler, label="Sampler"),
        "steps": slider("steps", 1, 250, 1, label="Steps"),
        "handover": slider(
            "handover", 0, 0.95, 0.05, label="Handover", info="share left to the decoder"
        ),
        "guidance": slider(
            "guidance", 0, 10, 0.1, label="Guidance", info="by what is given; 1 is none"
        ),
        "temperature": slider(
            "temperature",
            0.05,
            2,
            0.05,
            label="Denoiser's temperature",
            info="of its tokens, where it predicts any",
        ),
        "decoder_temperature": slider(
            "decoder_temperature", 0, 2, 0.05, label="Decoder's temperature"
        ),
        "decoder_min_p": slider("decoder_min_p", 0, 1, 0.001, label="Decoder's min-p"),
        "candidates": slider("candidates", 1, 64, 1, label="Candidates", info="the best one stays"),
    }


def _lines(texts: list[str]) -> str:
    return "\n".join(text.replace("\n", " ") for text in texts)


def require_gradio() -> ModuleType:
    """gradio, or UserError where it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it asks the network what is newest
    try:
        import gradio
    except ImportError:
        raise UserError("the playground needs gradio: pip install gradio") from None
    return gradio
