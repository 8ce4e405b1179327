"""Several measuring processes at a time, for cases whose figures are not times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event, Lock

from escaip_fairchem.bench.cases import Case, Outcome
from escaip_fairchem.bench.runner import Runner


def run_side_by_side(runner: Runner, cases: Sequence[Case], count: int, done: Callable[[Outcome], None]) -> None:
    """Have cases measured by several processes at a time, each with its share of the cores.

    Args:
        runner: Gives the time limit and shows the progress.
        cases: In the order in which they begin.
        count: Processes.
        done: Called with every outcome as it comes, one at a time.
    """
    stop, one_at_a_time = Event(), Lock()
    waiting = iter(cases)
    runners = [runner.another(share=count) for _ in range(count)]

    def work(own: Runner) -> None:
        with own:
            while not stop.is_set():
                with one_at_a_time:
                    case = next(waiting, None)
                if case is None:
                    return
                outcome = own.one(case)
                if stop.is_set() and not outcome.is_measured:  # it was interrupted
                    return
                with one_at_a_time:
                    done(outcome)

    with ThreadPoolExecutor(count) as pool:
        try:
            futures = [pool.submit(work, own) for own in runners]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:  # also where the user has lost patience
            stop.set()
            for own in runners:
                own.interrupt()
