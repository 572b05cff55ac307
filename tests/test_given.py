"""Given tokens: kept at their places, or where an elastic gap ends."""

from __future__ import annotations

import torch

from bartleby.given import FREE, GivenText, KeepGiven

END = 2
KNOWN = [0, 5, FREE, FREE, 7, 8, FREE, END]  # <s> 5 _ _ 7 8 _ </s>
EXACT = GivenText(KNOWN, END)
ELASTIC = GivenText(KNOWN, END, elastic=True, room=2)


def test_without_elasticity_every_token_has_its_place():
    assert EXACT.next([]) == (0, set())
    assert EXACT.next([0]) == (5, set())
    assert EXACT.next([0, 5]) == (None, {END})
    assert EXACT.next([0, 5, 7]) == (None, {END})  # a gap fills its places
    assert EXACT.next([0, 5, 7, 9]) == (7, set())
    assert EXACT.next([0, 5, 7, 9, 7, 8, 4]) == (END, set())
    assert EXACT.next([0, 5, 7, 9, 7, 8, 4, END]) == (None, set())


def test_after_a_prefix_everything_may_come():
    prefix = GivenText([0, 5, FREE, FREE], END)
    assert prefix.next([0]) == (5, set())
    assert prefix.next([0, 5]) == prefix.next([0, 5, 9, 9, 9]) == (None, set())


def test_an_elastic_gap_gets_a_token_and_may_then_end_early():
    assert ELASTIC.next([0, 5]) == (None, {END, 7})
    assert ELASTIC.next([0, 5, 9]) == (None, {END})
    assert ELASTIC.next([0, 5, 9, 7]) == (8, set())  # the given 7 came early
    assert ELASTIC.next([0, 5, 9, 7, 8]) == (None, {END})
    assert ELASTIC.next([0, 5, 9, 7, 8, 6]) == (None, set())  # </s> is what is given next


def test_an_elastic_gap_grows_by_no_more_than_its_room():
    assert ELASTIC.next([0, 5, 9, 9]) == (None, {END})
    assert ELASTIC.next([0, 5, 9, 9, 9]) == (None, {END})
    assert ELASTIC.next([0, 5, 9, 9, 9, 9]) == (7, set())
    spent = [0, 5, 9, 9, 9, 9, 7, 8]
    assert ELASTIC.next([*spent, 9]) == (END, set())  # the room is for all gaps together


def test_the_processor_leaves_only_what_is_allowed_to_each_texts_beams():
    keep = KeepGiven([GivenText([0, 5, FREE, END], END, elastic=True), ELASTIC], beams=2)
    written = torch.tensor([[END, 0], [END, 0], [END, 0], [END, 0]])
    scores = torch.zeros(4, 10)
    assert keep(written, scores).isfinite().nonzero().tolist() == [[row, 5] for row in range(4)]
    written = torch.tensor([[END, 0, 5]] * 4)
    allowed = keep(written, scores).isfinite()
    assert (~allowed[0]).nonzero().flatten().tolist() == [END]
    assert (~allowed[2]).nonzero().flatten().tolist() == [END, 7]
    assert scores.isfinite().all()


def test_what_is_given_comes_even_where_another_rule_has_forbidden_it():
    scores = torch.zeros(1, 10)
    scores[0, 5] = -torch.inf
    kept = KeepGiven([GivenText([0, 5, FREE, END], END)])(torch.tensor([[END, 0]]), scores)
    assert kept.isfinite().nonzero().tolist() == [[0, 5]]
