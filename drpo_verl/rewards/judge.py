"""Calls that may never return, in processes that can be killed.

A reward is computed in worker threads of verl's reward loop. math-verify's own time-outs are signals, which only a main
thread can receive, and no signal interrupts Python while it computes one huge power. So a question goes to another
process, as in verl's own `reward_score.math_verify`; one that takes too long is killed, where verl's pool would lose
a worker to it for good.
"""

import atexit
import multiprocessing
import resource
import signal
from collections.abc import Callable
from functools import lru_cache
from multiprocessing.pool import Pool
from queue import LifoQueue
from typing import TypeVar

_Result = TypeVar("_Result")

_SECONDS = 20.0
_START_SECONDS = 300.0
_MEMORY = 4 << 30


class Judge:
    """Asks processes of its own, from any thread.

    Args:
        processes: how many at most; each is started when it is first needed (a second or two).
        seconds: after which an answer no longer counts.
    """

    def __init__(self, processes: int = 2, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._idle: LifoQueue[Pool | None] = LifoQueue()
        for _ in range(processes):
            self._idle.put(None)

    def ask(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Call a function of a module in another process.

        Raises:
            TimeoutError: it took too long, or its process died (of its 4 GiB of memory, say) or did not start.
            Exception: whatever the function raises.
        """
        pool = self._idle.get()
        try:
            if pool is None:
                pool = _start()
            return pool.apply_async(function, arguments).get(self._seconds)
        except multiprocessing.TimeoutError as error:
            if pool is not None:
                pool.terminate()
                pool = None
            raise TimeoutError(f"{function.__name__} took longer than {self._seconds:g} s") from error
        finally:
            self._idle.put(pool)

    def close(self) -> None:
        """End the processes that are idle."""
        while not self._idle.empty():
            pool = self._idle.get()
            if pool is not None:
                pool.terminate()


def _start() -> Pool:
    pool = multiprocessing.get_context("spawn").Pool(1, initializer=_limit)
    try:
        pool.apply_async(_limit).get(_START_SECONDS)  # its imports are not part of the first question's time
    except multiprocessing.TimeoutError as error:
        pool.terminate()
        raise TimeoutError(f"the judge's process did not start within {_START_SECONDS:g} s") from error
    except BaseException:
        pool.terminate()
        raise
    return pool


def _limit() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard), hard))


@lru_cache(maxsize=1)
def shared() -> Judge:
    """The judge of this process, made when it is first asked for."""
    judge = Judge()
    atexit.register(judge.close)
    return judge
