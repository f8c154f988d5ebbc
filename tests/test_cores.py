"""Work shared between cores: who does it, on how many threads, and how torch is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ssmdiag.cores import cores_for, one_thread, share_out

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def done(pieces: int, device: torch.device = CPU) -> tuple[set[int], set[int]]:
    """Return the threads that did the pieces, and how many threads torch had there."""
    seen = []
    meet = threading.Barrier(2)

    def work(piece: int) -> None:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        if pieces > 1 and device == CPU:
            meet.wait(30)  # until another has one too

    share_out(work, range(pieces), device)
    assert len(seen) == pieces
    return {thread for thread, _ in seen}, {count for _, count in seen}


def test_pieces_go_to_as_many_threads_as_torch_has_and_none_is_split() -> None:
    for inside in (False, True):
        if inside:
            with one_thread():
                threads, counts = done(4)
        else:
            threads, counts = done(4)
        assert (len(threads), counts) == (2, {1})
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("pieces", "device"), [(1, CPU), (3, torch.device("cuda"))])
def test_a_single_piece_and_a_gpus_stay_on_this_thread_alone(pieces: int, device: torch.device) -> None:
    assert done(pieces, device) == ({threading.get_ident()}, {1})
    assert torch.get_num_threads() == 2


def test_torch_is_left_as_it_was_by_what_fails() -> None:
    def fail(piece: int) -> None:
        raise ValueError(piece)

    for pieces in (1, 4):
        with pytest.raises(ValueError, match="0"):
            share_out(fail, range(pieces), CPU)
        assert (torch.get_num_threads(), cores_for(CPU)) == (2, 2)


def test_one_thread_within_another_keeps_the_number_of_cores() -> None:
    with one_thread(), one_thread():
        assert (torch.get_num_threads(), cores_for(CPU)) == (1, 2)
    assert (torch.get_num_threads(), cores_for(CPU)) == (2, 2)
