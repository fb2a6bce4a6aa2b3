"""The pool of threads behind the experts: every job once, errors raised, nothing else disturbed."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from moekit.kernels.workers import Workers, workers

FORK = """
import os, sys, torch
from moekit.kernels.workers import workers
torch.set_num_threads(2)
x = torch.ones(2, 40, 40)
y = torch.empty_like(x)
workers().run(lambda i: torch.mm(x[i], x[i], out=y[i]), range(2))
child = os.fork()
if child == 0:
    y.zero_()
    workers().run(lambda i: torch.mm(x[i], x[i], out=y[i]), range(2))
    os._exit(0 if (y == 40).all() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_job_runs_once_and_on_several_threads() -> None:
    pool = Workers(3)
    meet = threading.Barrier(3, timeout=20)  # passes only if three jobs run at a time
    done: list[int] = []

    def job(index: int) -> None:
        if index < 3:
            meet.wait()
        done.append(index)

    pool.run(job, range(50))
    assert sorted(done) == list(range(50))


def test_jobs_begin_in_the_order_given() -> None:
    done: list[int] = []
    Workers(1).run(done.append, [3, 1, 2, 0])
    assert done == [3, 1, 2, 0]


def test_workers_use_one_core_each_and_leave_other_threads_alone(two_threads: None) -> None:
    counts: list[int] = []
    Workers(2).run(lambda _: counts.append(torch.get_num_threads()), range(4))
    assert counts == [1] * 4
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as later:  # begins with the process's count, which workers must not have lowered
        assert later.submit(torch.get_num_threads).result() == 2


def test_workers_are_kept_and_follow_the_number_of_threads(two_threads: None) -> None:
    pair = workers()
    assert pair.threads == 2
    torch.set_num_threads(3)
    assert workers().threads == 3
    torch.set_num_threads(2)
    assert workers() is pair


def test_jobs_run_without_autograd() -> None:
    x = torch.ones(3, 3, requires_grad=True)
    y = torch.empty(3, 3)
    Workers(2).run(lambda i: torch.mul(x[i], 2, out=y[i]), range(3))
    assert (y == 2).all()
    assert not y.requires_grad


def test_jobs_may_write_to_tensors_made_in_inference_mode() -> None:
    with torch.inference_mode():
        y = torch.zeros(4)
        Workers(2).run(lambda i: y[i].fill_(i), range(4))
    assert y.tolist() == [0, 1, 2, 3]


def test_an_error_is_raised_when_all_workers_are_at_rest() -> None:
    pool = Workers(2)
    at_work = threading.Event()
    finished = threading.Event()

    def job(index: int) -> None:
        if index == 0:
            at_work.wait(20)
            raise ValueError("job 0")
        at_work.set()
        time.sleep(0.05)
        finished.set()

    with pytest.raises(ValueError, match="job 0"):
        pool.run(job, range(2))
    assert finished.is_set()
    done: list[int] = []
    pool.run(done.append, range(5))  # and the pool still serves
    assert sorted(done) == list(range(5))


def test_jobs_after_an_error_are_dropped() -> None:
    begun: list[int] = []

    def job(index: int) -> None:
        begun.append(index)
        raise ValueError(str(index))

    with pytest.raises(ValueError, match="0"):
        Workers(1).run(job, range(10))
    assert begun == [0]


def test_several_callers_share_the_workers() -> None:
    pool = Workers(2)
    total = torch.zeros(8, 100, dtype=torch.int64)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda row: pool.run(lambda i: total[row, i].add_(1), range(100)), range(8)))
    assert (total == 1).all()


def test_a_forked_child_starts_workers_of_its_own() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], timeout=60, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
