"""The playground: what its buttons do, and the page that holds them."""

from __future__ import annotations

import dataclasses
import socket
import sys

import pytest

from bartleby.errors import UserError
from bartleby.playground import Actions, page, serve
from bartleby.sampling import SamplingSettings

TEXT = "The dog drinks tea."


@pytest.fixture
def settings(pipeline):
    return dataclasses.replace(pipeline.default_settings, steps=4, decoder_temperature=1.0)


def test_the_first_text_emerges_and_ends_as_itself(pipeline, settings):
    texts, emerged = Actions(pipeline).write("  ", 3, 0, 5, settings)
    assert texts.splitlines() == pipeline(3, settings=settings, seed=5).texts
    assert [step for step, _ in emerged] == [1, 2, 3, 4]
    assert emerged[-1][1] == texts.splitlines()[0]


def test_prompt_and_length_are_passed_on(pipeline, settings):
    texts, _ = Actions(pipeline).write("The dog", 2, 6, 0, settings)
    assert texts.splitlines() == pipeline(2, prompt="The dog", length=6, settings=settings).texts


def test_edit_infill_and_interpolate(pipeline, settings):
    actions = Actions(pipeline)
    assert actions.edit(TEXT, 0.5, 2, 3, settings).splitlines() == (
        pipeline.edit([TEXT] * 2, 0.5, settings=settings, seed=3).texts
    )
    filled = actions.infill("The <mask> tea.", 2, 3, settings).splitlines()
    assert filled == pipeline.infill("The <mask> tea.", 2, settings=settings, seed=3).texts
    rows = actions.interpolate(TEXT, "A cat sleeps.", 3, 0.5, 3, settings)
    assert [share for share, _ in rows] == ["0%", "50%", "100%"]
    between = pipeline.interpolate(TEXT, "A cat sleeps.", 3, settings=settings, seed=3)
    assert [text for _, text in rows] == between.texts


def test_what_is_cut_is_said_and_blank_text_refused(pipeline, settings):
    said: list[str] = []
    actions = Actions(pipeline, warn=said.append)
    actions.edit(TEXT, 0.5, 1, 0, settings)
    assert not said
    actions.edit("tea " * 200, 0.5, 1, 0, settings)
    assert f"this model reads {pipeline.config.window}" in said[0]
    with pytest.raises(UserError, match="blank"):
        actions.interpolate(TEXT, " ", 3, 0.5, 0, settings)


def test_page(pipeline):
    gradio = pytest.importorskip("gradio")
    blocks = page(pipeline, "tiny")
    buttons = {function.api_name: function for function in blocks.fns.values()}
    assert buttons.keys() == {"write", "edit", "infill", "interpolate"}
    assert {function.concurrency_id for function in buttons.values()} == {"writing"}
    edit = buttons["edit"]
    values = [component.value for component in edit.inputs]
    steps = [component.label for component in edit.inputs].index("Steps")
    values[steps] = 2
    assert len(edit.fn(*values).splitlines()) == 3
    values[steps] = 0
    with pytest.raises(gradio.Error, match="steps is 0"):
        edit.fn(*values)


def test_a_model_s_own_settings_are_in_reach_whatever_they_are(pipeline, monkeypatch):
    pytest.importorskip("gradio")
    own = SamplingSettings(
        "mine:heun", 400, temperature=3.0, handover=0.99, decoder_temperature=4.0
    )
    monkeypatch.setattr(type(pipeline), "default_settings", own)
    blocks = page(pipeline, "tiny")
    write = next(function for function in blocks.fns.values() if function.api_name == "write")
    for component in write.inputs:
        component.preprocess(component.value)  # raises for what is out of its range
    assert {component.value for component in write.inputs} >= {"mine:heun", 400, 3.0, 0.99, 4.0}


def test_a_port_that_is_taken_is_named(pipeline):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1"):
            serve(pipeline, "tiny", host="127.0.0.1", port=port, browser=False)


def test_without_gradio_one_line_says_what_to_install(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = cli("playground")
    assert result.exit_code == 1
    assert result.stderr == "error: the playground needs gradio: pip install gradio\n"
