"""Plans of texts: lengths as in training, gaps that fit, one seed one plan."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import WINDOW

from bartleby.errors import UserError
from bartleby.given import FREE
from bartleby.planning import Planner


@pytest.fixture
def planner(autoencoder):
    counts = np.zeros(WINDOW + 1, int)
    counts[[6, 9]] = [1, 3]
    return Planner(autoencoder, counts.tolist())


def test_lengths_are_drawn_as_often_as_training_texts_have_them(planner):
    plan = planner.new_text(None, None)
    drawn = [plan((0, index))[0] for index in range(400)]
    assert set(drawn) == {6, 9} and 0.68 < drawn.count(9) / 400 < 0.82
    assert drawn[7] == planner.new_text(None, None)((0, 7))[0]
    assert planner.new_text(None, 12)((0, 0)) == (14, None)  # <s> and </s> besides


def test_a_prompt_is_given_and_no_length_is_too_short_for_it(planner):
    prefix = planner.prefix("The dog likes")
    lengths = set()
    for index in range(20):
        length, given = planner.new_text("The dog likes", None)((1, index))
        lengths.add(length)
        assert given.known[: len(prefix)] == prefix and len(given.known) == length
        assert set(given.known[len(prefix) :]) == {FREE}
    assert min(lengths) >= len(prefix) + 2


def test_gaps_are_drawn_as_asked_or_as_there_is_room(planner):
    pieces = planner.pieces("Tom <mask> the <mask>.")
    kept = sum(map(len, pieces)) + 2
    assert len(planner.with_gaps((0,), pieces, 3).known) == kept + 6
    known = planner.with_gaps((0,), pieces, [1, 4]).known
    assert len(known) == kept + 5
    assert known.index(FREE) + 1 < known.index(
        FREE, known.index(FREE) + 1
    )  # the first gap is one token
    for gap, message in (
        ([1], "for 1 gaps; the text has 2"),
        ([2, 0], "at least 1"),
        (0, "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            planner.with_gaps((0,), pieces, gap)
    drawn = [len(planner.with_gaps((seed,), pieces, None).known) - kept for seed in range(200)]
    assert min(drawn) >= 2 and 7 < np.mean(drawn) < 9  # two gaps of 1 + Poisson(3) tokens
    full = [[7] * (WINDOW - 4), []]
    assert {len(planner.with_gaps((seed,), full, None).known) for seed in range(50)} == {
        WINDOW - 1,
        WINDOW,
    }
    with pytest.raises(UserError, match=f"at least {WINDOW + 1} tokens; this model writes at most"):
        planner.with_gaps((0,), full, 3)


def test_lengths_that_are_not_known_are_said_once(autoencoder, caplog):
    plan = Planner(autoencoder).new_text("The dog", None)
    lengths = {plan((0, index))[0] for index in range(60)}
    shortest = len(autoencoder.tokenizer("The dog")["input_ids"]) + 1
    assert lengths == set(range(shortest, shortest + 9))
    assert caplog.text.count("are not known") == 1
