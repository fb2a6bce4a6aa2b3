"""Threads that run independent jobs, one core each, where that beats all cores sharing every operation.

A small matrix product or an elementwise pass is too little work to share between cores: the cost of meeting after each
operation shows, and what one core wrote another must read. Whole jobs in parallel meet once, and each job's data stay
in the cache of its core. Torch's operations release the GIL, so Python threads are enough.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Workers:
    """A pool of threads, started when first needed, each of which runs torch's operations on one core."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._start = threading.Barrier(threads + 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="moekit", initializer=self._set_up_thread)
        # set_num_threads sets the caller's count and also the one that threads yet to be born begin with. So all
        # workers start here, and the last word is the caller's own count: then it is as if there were no workers.
        callers_threads = torch.get_num_threads()
        for _ in range(threads):
            self._pool.submit(self._start.wait)
        self._start.wait()
        torch.set_num_threads(callers_threads)

    @staticmethod
    def _set_up_thread() -> None:
        torch.get_num_threads()  # a thread takes over the process's count when it first asks: not after the next line
        torch.set_num_threads(1)

    def run(self, job: Callable[[Item], None], order: Sequence[Item]) -> None:
        """Call job(item) for every item of `order`, begun in that order, and return when all are done.

        Jobs write into tensors that the caller made: they run without autograd. The first error is raised here, after
        every worker has come to rest; jobs not begun by then are dropped.
        """
        remaining = iter(order)
        failed = threading.Event()
        inference = torch.is_inference_mode_enabled()

        def work() -> None:
            with torch.inference_mode(inference), torch.no_grad():
                for item in remaining:  # next() on one iterator is atomic: each item goes to one worker
                    if failed.is_set():
                        return
                    try:
                        job(item)
                    except BaseException:
                        failed.set()
                        raise

        running: list[Future[None]] = [self._pool.submit(work) for _ in range(min(self.threads, len(order)))]
        wait(running)
        for future in running:
            future.result()


_workers: dict[int, Workers] = {}
_lock = threading.Lock()


def workers() -> Workers:
    """Give the process's workers, as many as torch may use threads at the time (`torch.set_num_threads`)."""
    threads = torch.get_num_threads()
    if threads not in _workers:
        with _lock:
            if threads not in _workers:
                _workers[threads] = Workers(threads)
    return _workers[threads]


def _forget_after_fork() -> None:
    """Forget the workers in a forked child, which has none of its parent's threads and starts its own."""
    global _lock
    _workers.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
