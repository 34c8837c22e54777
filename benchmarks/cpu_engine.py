"""One engine with one model in a process of its own, for cpu_vs_llamacpp.py.

    python cpu_engine.py ours|llama.cpp MODEL THREADS CONTEXT [--plain] [--prompt]

Answers one line of JSON per line of JSON on its standard input. The first answer, unasked, tells how it started; then
["decode", depth, tokens] and ["prompt", tokens] give seconds per token, ["greedy", ids, count] the most probable
tokens, ["peak"] the most memory the process ever held. Imports nothing of the other engine: each has its own Python
environment. --plain: llama.cpp without repacking its weights. --prompt: the first token is that after a prompt of 512
tokens, what a person waits for who starts the program and asks something.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

BATCH = 512  # tokens per call while a prompt is run


class Engine(Protocol):
    label: str

    def context(self) -> Any:
        """A sequence of its own, empty."""

    def run(self, context: Any, ids: list[int]) -> int:
        """Appends the tokens; the most probable next one."""

    def truncate(self, context: Any, length: int) -> None: ...


class Ours:
    """exl2-tui."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        from exl2_tui.core.checkpoint import Checkpoint
        from exl2_tui.core.config import ModelConfig
        from exl2_tui.core.model.loader import load_model, plan_load
        from exl2_tui.core.requests import LoadOptions

        self.size = context
        options = LoadOptions(context=context, device="cpu", threads=threads)
        with Checkpoint.open(path) as checkpoint:
            config = ModelConfig.from_dir(path)
            plan = plan_load(checkpoint, config, options)
            self.model = load_model(checkpoint, config, options, plan=plan)
        self.label = self.model.kernels

    def context(self) -> Any:
        return self.model.new_cache(self.size, "fp16")

    def run(self, context: Any, ids: list[int]) -> int:
        return int(self.model.forward(ids, context).argmax())

    def truncate(self, context: Any, length: int) -> None:
        context.truncate(length)


class LlamaCpp:
    """llama.cpp through its own C interface."""

    def __init__(self, path: str, threads: int, context: int, plain: bool) -> None:
        import llama_cpp
        import numpy

        self.lib, self.numpy, self.size, self.threads = llama_cpp, numpy, context, threads
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = not plain
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.label = llama_cpp.llama_print_system_info().decode()

    def context(self) -> Any:
        parameters = self.lib.llama_context_default_params()
        parameters.n_ctx = self.size
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        return self.lib.llama_init_from_model(self.model, parameters)

    def run(self, context: Any, ids: list[int]) -> int:
        tokens = (self.lib.llama_token * len(ids))(*ids)
        if self.lib.llama_decode(context, self.lib.llama_batch_get_one(tokens, len(ids))) != 0:
            raise SystemExit("llama_decode failed")
        logits = self.lib.llama_get_logits_ith(context, -1)
        return int(self.numpy.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def truncate(self, context: Any, length: int) -> None:
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(context), 0, length, -1)


class Meter:
    """Runs the jobs. Contexts are kept by depth, so that alternating between depths fills each only once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.contexts: dict[int, Any] = {}

    def at(self, depth: int) -> Any:
        if depth not in self.contexts:
            self.contexts[depth] = self.engine.context()
            for _ in range(0, depth, BATCH):
                self.engine.run(self.contexts[depth], [7] * min(BATCH, depth))
        self.engine.truncate(self.contexts[depth], depth)
        return self.contexts[depth]

    def decode(self, depth: int, tokens: int) -> float:
        context = self.at(depth)
        token = self.engine.run(context, [7])  # not counted: wakes threads, refills caches
        started = time.perf_counter()
        for _ in range(tokens):
            token = self.engine.run(context, [token])
        return (time.perf_counter() - started) / tokens

    def prompt(self, tokens: int) -> float:
        context = self.at(0)
        started = time.perf_counter()
        for first in range(0, tokens, BATCH):
            self.engine.run(context, [7] * min(BATCH, tokens - first))
        return (time.perf_counter() - started) / tokens

    def greedy(self, ids: list[int], count: int) -> list[int]:
        context = self.at(0)
        found = [self.engine.run(context, ids)]
        while len(found) < count:
            found.append(self.engine.run(context, found[-1:]))
        return found

    def peak(self) -> int:
        return memory("VmHWM")


def memory(field: str) -> int:
    """Bytes, of this process. (ru_maxrss would count what the parent held when it forked.)"""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) * 1024


def main(engine: str, path: str, threads: str, context: str, *flags: str) -> None:
    modules = ["exl2_tui.core.model.loader", "exl2_tui.core.model.native"] if engine == "ours" else ["llama_cpp"]
    for module in modules:  # before memory is looked at
        importlib.import_module(module)
    idle = memory("VmRSS")
    started = time.perf_counter()
    made: Engine
    if engine == "ours":
        made = Ours(path, int(threads), int(context))
    else:
        made = LlamaCpp(path, int(threads), int(context), "--plain" in flags)
    loaded = time.perf_counter() - started
    meter = Meter(made)
    made.run(meter.at(0), [7] * (BATCH if "--prompt" in flags else 1))
    first = time.perf_counter() - started
    answer: object = {"load": loaded, "first_token": first, "idle_memory": idle, "label": made.label}
    while True:
        print(json.dumps(answer), flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        job, *arguments = json.loads(line)
        answer = getattr(meter, job)(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
