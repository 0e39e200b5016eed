from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.data.packed import PackedLists, PackedStrings

texts = st.lists(st.text(st.characters(), max_size=9), max_size=20)  # half characters too


@given(texts)
def test_strings_come_back(said):
    packed = PackedStrings(iter(said))
    assert list(packed) == said
    assert packed[-3:] == said[-3:]
    for index in (len(said), -len(said) - 1):
        with pytest.raises(IndexError):
            packed[index]


@given(st.lists(texts, max_size=9))
def test_lists_come_back(lists):
    packed = PackedLists(lists)
    assert list(packed) == lists
    assert [packed[-1]] == lists[-1:] if lists else True
    with pytest.raises(IndexError):
        packed[len(lists)]


def test_names_of_any_encoding_come_back():
    name = os.fsdecode(b"caf\xe9.jpg")
    assert os.fsencode(PackedStrings([name])[0]) == b"caf\xe9.jpg"
