"""What several processes cannot do together, and what they say of it; they serve the next call all the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.transforms import Flipd, Rotated

from monai_chunked import ChunkedSlidingWindowInferer, Output, OutputWriter, Result, chunked_sliding_window_inference
from tests.side_by_side import random, scores
from tests.transforms.inverted import KEY, Case, affine_of
from tests.workers.torchrun.ranks import Raised, Ranks

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")

SIZE = (1, 1, 6, 5, 9)


def infer(group: Any, **how: Any) -> Any:
    """Two windows, one a batch."""
    inferer = ChunkedSlidingWindowInferer((6, 5, 6), 1, 0.5, "gaussian", process_group=group, **how)
    return inferer(random(*SIZE), scores)


def check_refused(answers: list[Any], kind: type[BaseException], *words: str) -> None:
    """In every process, by itself."""
    for answer in answers:
        assert isinstance(answer, Raised), answer
        assert answer.kind == kind.__name__, answer
        assert all(each in answer.text for each in words), answer.text


# ---------------------------------------------------------------- more processes than work


def nothing(window: torch.Tensor) -> bool:
    return False


def with_warnings(group: Any, how: dict[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = infer(group, **how)
    return result, [(str(each.message), each.filename) for each in caught if "process_group" in str(each.message)]


def named(how: dict[str, Any]) -> str:
    return "-".join(how) or "nothing"


@pytest.mark.parametrize("how", [{}, {"skip": nothing}, {"postprocessing": "argmax"}], ids=named)
def test_processes_that_have_nothing_to_do_get_the_result_and_one_says_so(ranks: Ranks, how: dict[str, Any]) -> None:
    expected = infer(None, **how)
    for rank, (result, said) in enumerate(ranks.call(5, with_warnings, how)):
        assert torch.equal(result, expected)
        assert [text for text, _ in said] == [
            "process_group has more processes (5) than there are batches of windows to predict (2), so some have "
            "nothing to do; fewer are as fast"
        ] * (rank == 0)
        assert all(name == __file__ for _, name in said)


# ---------------------------------------------------------------- gradients


def under(group: Any, mode: str, how: dict[str, Any]) -> Any:
    with {"gradients": torch.enable_grad, "inference_mode": torch.inference_mode}[mode]():
        result = infer(group, **how)
    assert not result.requires_grad
    return result.clone()  # that of an inference tensor is one that can be sent


@pytest.mark.parametrize("how", [{}, {"output": "device"}, {"output": "cpu"}], ids=named)
def test_scores_without_gradients_are_refused_where_gradients_are_wanted(ranks: Ranks, how: dict[str, Any]) -> None:
    answers = ranks.call(2, under, "gradients", how)
    check_refused(answers, ValueError, "process_group gives scores without gradients", "within torch.no_grad()")


@pytest.mark.parametrize("how", [{"postprocessing": "argmax"}, {"output": "disk"}, {"cpu_memory": "1GiB"}], ids=named)
def test_what_has_no_gradients_in_one_process_has_none_in_several(ranks: Ranks, how: dict[str, Any]) -> None:
    for answer in ranks.call(2, under, "gradients", how):
        assert not isinstance(answer, Raised), answer
        assert torch.equal(answer, infer(None, **how))


WAYS = ({}, {"postprocessing": "argmax"}, {"output": "disk"}, {"cpu_memory": "1GiB"}, {"skip": nothing})


@pytest.mark.parametrize("how", WAYS, ids=named)
def test_inference_mode_is_as_good_as_no_grad(ranks: Ranks, how: dict[str, Any]) -> None:
    for answer in ranks.call(3, under, "inference_mode", how):
        assert not isinstance(answer, Raised), answer
        assert torch.equal(answer, infer(None, **how))


# ---------------------------------------------------------------- what cannot be shared


def weights(outputs: Any, data: Any, weights: torch.Tensor) -> Any:
    return outputs, weights


def test_other_weights_of_each_batch_are_refused(ranks: Ranks) -> None:
    check_refused(ranks.call(2, with_process_fn), ValueError, "process_group does not go with process_fn")


def with_process_fn(group: Any) -> Any:
    how = {"process_fn": weights, "process_group": group}
    return chunked_sliding_window_inference(random(*SIZE), (6, 5, 6), 1, scores, **how)


class Elsewhere(Output):
    """Knows how to write, and nothing of other processes."""

    def create(self, result: Result) -> OutputWriter:
        raise AssertionError("nothing was to be written")


def test_an_output_that_others_cannot_open_is_refused(ranks: Ranks) -> None:
    answers = ranks.call(2, with_output)
    check_refused(answers, TypeError, "output=Elsewhere cannot be opened by other processes", "ResumableOutput")


def with_output(group: Any) -> Any:
    return infer(group, output=Elsewhere())


AFFINE = affine_of("plain", (1.1, 0.9, 1.7))


def rotated() -> Case:
    return Case([Rotated(KEY, angle=(0.1, 0.0, 0.0))], (15, 18, 16), AFFINE)


def undone(group: Any, case: Case, dtype: torch.dtype) -> Any:
    image, network = case.batch[KEY].to(dtype), case.network.to(dtype)
    inferer = ChunkedSlidingWindowInferer(**case.sliding, postprocessing=case.chain, process_group=group)
    return inferer(image, network)


@pytest.mark.parametrize(
    ("make", "dtype", "why"),
    [
        (rotated, torch.float32, "the inverse of Rotate"),
        (lambda: Case([Flipd(KEY, 0)], (15, 18, 16), AFFINE), torch.float64, "scores are torch.float64"),
    ],
    ids=["rotated", "float64"],
)
def test_an_inverse_of_the_whole_prediction_is_refused(
    ranks: Ranks, make: Callable[[], Case], dtype: torch.dtype, why: str
) -> None:
    words = ("process_group: the prediction can only be brought to the patient's grid as a whole, because", why)
    check_refused(ranks.call(2, undone, make(), dtype), ValueError, *words, "leave out the inverse", "or process_group")


# ---------------------------------------------------------------- who is no process of the group


def of_two(group: Any) -> Any:
    two = dist.new_group([0, 1])
    if two == dist.GroupMember.NON_GROUP_MEMBER:  # how many groups each has is in the names of those to come
        dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return infer(two)


def test_a_process_that_is_no_member_is_told_so_and_the_others_go_on(ranks: Ranks) -> None:
    first, second, *others = ranks.call(5, of_two)
    assert torch.equal(first, infer(None))
    assert torch.equal(second, infer(None))
    check_refused(others, ValueError, "process_group: this process is no member of it", "only its members")


def of_another_kind(group: Any) -> Any:
    return infer([0, 1])


def test_numbers_of_processes_are_no_group(ranks: Ranks) -> None:
    check_refused(ranks.call(2, of_another_kind), TypeError, "process_group=[0, 1] must be 'world', a ProcessGroup")


def test_all_of_them_serve_the_next_call(ranks: Ranks) -> None:
    for answer in ranks.call(5, infer):
        assert torch.equal(answer, infer(None))
