"""Calls that may never return, in processes that can be killed.

A reward is computed in worker threads of verl's reward loop. math-verify's own time-outs are signals, which only a main
thread can receive, and no signal interrupts Python while it computes one huge power. So the question goes to another
process, as in verl's own `reward_score.math_verify`; `pebble` kills one that takes too long and starts another, where
verl's pool would lose a worker to it for good.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import wait
from functools import lru_cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

import psutil

from drpo_verl.rewards.packages import require

pebble = require("pebble", "pebble")

_Result = TypeVar("_Result")

_SECONDS = 20.0
_MEMORY = 4 << 30
"""Bytes of address space that a question may take, beside what the process has when it starts."""
_POLL_SECONDS = 1.0


class AnswerError(Exception):
    """The answer can not be judged: the call raised, took too long, or took its process down."""


class JudgeError(Exception):
    """The judge itself can not run, which says nothing about the answer."""


class _Process(SpawnProcess):
    """A spawned process in which the caller's main module is not run once more.

    multiprocessing runs it so that functions of it can be called, and a script without a `__main__` guard would then
    start from its beginning. It makes an exception for a main module whose own name is `__main__` (that of a folder or
    a zip file), which is what this one is taken for while the process starts.
    """

    _starting = threading.Lock()

    def start(self) -> None:
        """Start the process; fork-safe in any thread, since it executes a Python of its own."""
        main = sys.modules["__main__"]
        with self._starting:
            spec, main.__spec__ = main.__spec__, ModuleSpec("__main__", None)
            try:
                super().start()
            finally:
                main.__spec__ = spec


class _Context(SpawnContext):
    Process = _Process


class Judge:
    """Asks processes of its own, from any thread of a script, a notebook or a Ray worker.

    Args:
        processes: how many; they are started with the first question (a second or two).
        seconds: after which an answer no longer counts.
    """

    def __init__(self, processes: int = 2, seconds: float = _SECONDS) -> None:
        self._processes = processes
        self._seconds = seconds
        self._lock = threading.RLock()
        self._pool: Any = None

    def ask(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Call a function of a module in another process.

        Raises:
            AnswerError: the call raised, took too long, or its process died (of its 4 GiB of memory, say).
            ImportError: a package that the function needs is missing there.
            JudgeError: no process could be started, twice.
        """
        name = function.__qualname__
        for _ in range(2):  # a process that somebody else kills, for the machine's memory say, breaks the whole pool
            try:
                pool = self._running(function.__module__)
                call = pool.schedule(_call, (function.__module__, name, arguments), timeout=self._seconds)
                while not wait([call], _POLL_SECONDS).done:
                    if not pool.active:
                        raise RuntimeError("its processes ended")
                result: _Result = call.result()
                return result
            except FutureTimeoutError as error:
                raise AnswerError(f"{name} took longer than {self._seconds:g} s") from error
            except pebble.ProcessExpired as error:
                raise AnswerError(f"the process of {name} ended with exit code {error.exitcode}") from error
            except (OSError, RuntimeError) as error:
                broken = error
        raise JudgeError(
            f"the processes that compare answers do not run ({broken!r}): see what they printed, and whether "
            f"{sys.executable} and its memory are there."
        ) from broken

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()
                self._pool = None

    def _running(self, module: str) -> Any:
        with self._lock:
            if self._pool is None or not self._pool.active:
                self.close()
                self._pool = pebble.ProcessPool(
                    self._processes, initializer=_prepare, initargs=[module], context=_Context()
                )
            return self._pool


def _prepare(module: str) -> None:
    # What the first question needs is imported before any is timed: on a busy machine that takes longer than an answer.
    with contextlib.suppress(ImportError):  # which the question says better
        getattr(import_module(module), "load", lambda: None)()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, and not when Python has computed its power
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _call(module: str, name: str, arguments: tuple[object, ...]) -> Any:
    # By name, and any exception as one that surely arrives: a pool would not survive what can not be unpickled.
    function = getattr(import_module(module), name)
    try:
        return function(*arguments)
    except ImportError:
        raise
    except BaseException as error:
        raise AnswerError(repr(error)) from None


def shared() -> Judge:
    """The judge of this process, made when it is first asked for; a forked process gets one of its own."""
    return _judge_of(os.getpid())


@lru_cache(maxsize=1)
def _judge_of(pid: int) -> Judge:
    return Judge()
