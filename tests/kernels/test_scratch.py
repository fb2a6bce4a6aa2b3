"""Kept room: one user at a time, of the shape asked for, for all modes of autograd."""

import torch

from moekit.kernels.torch.scratch import scratch


def test_room_is_used_again_but_never_by_two_at_a_time() -> None:
    like_TD = torch.empty(0, 512)
    with scratch(4096, like_TD) as first, scratch(4096, like_TD) as second:
        assert first.shape == second.shape == (4096, 512)
        assert first.data_ptr() != second.data_ptr()
        addresses = {first.data_ptr(), second.data_ptr()}
    with scratch(2048, like_TD.bfloat16()) as third:
        assert third.dtype == torch.bfloat16
        assert third.data_ptr() in addresses


def test_room_made_in_inference_mode_serves_outside() -> None:
    like_TD = torch.empty(0, 1024)
    with torch.inference_mode(), scratch(2**14, like_TD) as room:
        address = room.data_ptr()
    with scratch(2**14, like_TD) as room:
        assert room.data_ptr() == address
        room.zero_()
