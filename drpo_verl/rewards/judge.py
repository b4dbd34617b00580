"""Calls that may never return, in processes that can be killed.

A reward is computed in worker threads of verl's reward loop. A time-out by signal reaches a main thread only, and
no signal handler interrupts Python while it computes one huge power. So the question goes to another process, as in
verl's own `reward_score.math_verify`. The kernel ends it when its processor time is used up, and `pebble` starts
another, where verl's pool would lose a worker for good.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import threading
import time
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

_SECONDS = 10.0
"""Seconds of processor time that a question may take; the machine's load does not count."""
_PATIENCE = 30.0
"""How many times longer a question may take by the clock, before the machine and not the answer is to blame."""
_MEMORY = 1 << 30
"""Bytes of address space that a question may take, beside what the process has when it starts."""
_POLL_SECONDS = 1.0


# What ends a process from outside, the kernel when memory runs out for one; a limit of its own ends it otherwise.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class AnswerError(Exception):
    """The answer can not be judged: the call raised, took too much time or memory, or took its process down twice."""


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
            spec = getattr(main, "__spec__", None)  # a notebook's may have none
            main.__spec__ = ModuleSpec("__main__", None)
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
        seconds: of processor time, after which an answer no longer counts.
        patience: how many times longer a question may take by the clock.
    """

    def __init__(self, processes: int = 2, seconds: float = _SECONDS, patience: float = _PATIENCE) -> None:
        self._processes = processes
        self._seconds = seconds
        self._patience = seconds * patience
        self._lock = threading.RLock()
        self._pool: Any = None

    def ask(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Call a function of a module in another process.

        A process that dies is replaced and asked again. What it dies of twice is the answer's fault, unless it was
        ended from outside or got no processor time: then nothing is known about the answer.

        Raises:
            AnswerError: the call raised, took too much processor time or memory, or its process crashed twice.
            ImportError: a package that the function needs is missing there.
            JudgeError: no process could be started or finish, twice.
        """
        name = function.__qualname__
        fault: Exception | None = None
        for _ in range(2):
            try:
                pool = self._running(function.__module__)
                question = (function.__module__, name, arguments, self._seconds)
                call = pool.schedule(_call, question, timeout=self._patience)
                while not wait([call], _POLL_SECONDS).done:
                    if not pool.active:  # a process that somebody else kills breaks the whole pool
                        raise RuntimeError("its processes ended")
                result: _Result = call.result()
                return result
            except pebble.ProcessExpired as error:
                if error.exitcode == -signal.SIGXCPU:
                    raise AnswerError(f"{name} took longer than {self._seconds:g} s") from error
                fault = error
            except (FutureTimeoutError, OSError, RuntimeError) as error:
                fault = error
        if isinstance(fault, pebble.ProcessExpired) and fault.exitcode not in _FROM_OUTSIDE:
            raise AnswerError(f"the process of {name} ended with exit code {fault.exitcode}") from fault
        raise JudgeError(f"the processes that compare answers do not run: {self._reason(fault)}") from fault

    def _reason(self, fault: Exception | None) -> str:
        if isinstance(fault, pebble.ProcessExpired):
            return (
                f"one was ended with signal {-fault.exitcode}, twice. If the machine ran out of memory (`dmesg` says "
                "so), lower reward.num_workers."
            )
        if isinstance(fault, FutureTimeoutError):
            return (
                f"one got less than {self._seconds:g} s of processor time in {self._patience:g} s, twice. The machine "
                "is too busy, or the process is stopped: lower reward.num_workers."
            )
        return f"{fault!r}. See what they printed, and whether {sys.executable} and its memory are there."

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
    _limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + _MEMORY)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _call(module: str, name: str, arguments: tuple[object, ...], seconds: float) -> Any:
    # By name, and any exception as one that surely arrives: a pool would not survive what can not be unpickled.
    function = getattr(import_module(module), name)
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
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
