"""``"argmax"`` is ``torch.argmax`` in the smallest dtype, also where it is computed in another way."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_chunked.transforms.argmax import argmax, label_dtype

SCORES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), float("-inf"), float("nan")])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data(), st.integers(2, 6), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_argmax_is_that_of_torch_for_any_scores(data: st.DataObject, classes: int, size: list[int], nan: bool) -> None:
    values = SCORES if nan else SCORES.filter(lambda value: value == value)
    count = classes * torch.Size(size).numel()
    scores = torch.tensor(data.draw(st.lists(values, min_size=count, max_size=count))).reshape(classes, *size)
    labels = argmax(scores)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), scores.argmax(0, keepdim=True))


def test_large_chunks_are_labelled_in_parts() -> None:
    scores = torch.rand(3, 700, 30, 40)
    scores[1, 650, 3, 3] = float("nan")
    assert torch.equal(argmax(scores).long(), scores.argmax(0, keepdim=True))


def test_many_classes_need_wider_labels() -> None:
    for classes in (255, 256, 257, 300):
        scores = torch.rand(classes, 5, 6)
        scores[-1, 0, 0] = 2
        labels = argmax(scores)
        assert labels.dtype == label_dtype(classes) == (torch.uint8 if classes <= 256 else torch.uint16)
        assert torch.equal(labels.to(torch.int64), scores.argmax(0, keepdim=True))
