"""A library service that only pretends: every call is recorded, the test posts what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from exl2_tui.core.events import Event, ModelInfo
from exl2_tui.core.model_events import (
    DownloadEnded,
    DownloadFinished,
    DownloadPlan,
    DownloadProgress,
    DownloadsListed,
    HubModel,
    HubPlanned,
    HubRevision,
    HubRevisions,
    HubSearched,
    LibraryListed,
    LinearBits,
    MemoryRow,
    ModelDetailed,
    ModelRemoved,
    ModelVerified,
    PartialDownload,
    RemoteFile,
    RemovalPlan,
)
from exl2_tui.core.requests import LoadOptions

GB = 1_000_000_000
DAY = 86_400
NOW = 1_700_000_000.0
MODELS = (
    ModelInfo(
        "nano-chat", "/models/nano-chat", "built-in", "Llama", "EXL2 4.00 bpw", 4.0, 9_300_000, 2048,
        memory=21_000_000, fits="yes", used=NOW - 40,
    ),
    ModelInfo(
        "TinyLlama [1.1B]", "/models/tiny", "hub", "Llama", "GPTQ 4.25 bpw", 4.25, 700_000_000, 2048,
        memory=900_000_000, fits="yes", used=NOW - 3 * DAY,
    ),
    ModelInfo(
        "CodeLlama-34B-Instruct", "/models/codellama", "own", "Llama", "EXL2 4.65 bpw", 4.65, 19_800_000_000, 16_384,
        memory=22_800_000_000, fits="tight", used=NOW - 30 * DAY,
    ),
    ModelInfo(
        "Qwen2.5-32B-Instruct", "/models/qwen", "directory", "Qwen2", "fp16", 16.0, 65_500_000_000, 131_072,
        memory=70_100_000_000, fits="no",
    ),
    ModelInfo(
        "broken\x1b[2J", "/models/broken", "directory", "?", "?", 0.0, 12, 0, problem="config.json is missing"
    ),
)  # fmt: skip
LAYERS = 24
KINDS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
FOUND = (
    HubModel("turboderp/Llama-3.1-8B-Instruct-exl2", "EXL2", "", 0, 51_234, 77, "2026-01-02", False),
    HubModel("meta-llama/Llama-3.1-8B-Instruct", "float", "Llama", 16_060_000_000, 5_123_456, 3456, "2025-09-25", True),
    HubModel("evil/[red]name[/red]\x1b[2J", "GPTQ", "Qwen2", 5_700_000_000, 12, 0, "2026-01-01", False),
)
REVISIONS = (
    HubRevision("main", 2_000, 0.0, "unknown", "this revision has no config.json"),
    HubRevision("4.0bpw", 4_700_000_000, 4.0, "yes"),
    HubRevision("6.0bpw", 6_600_000_000, 6.0, "tight"),
    HubRevision("8.0bpw", 8_500_000_000, 8.0, "no"),
)
PLAN = DownloadPlan(
    repo="turboderp/Llama-3.1-8B-Instruct-exl2",
    revision="4.0bpw",
    commit="0123456789abcdef0123456789abcdef01234567",
    folder="/data/you/models/Llama-3.1-8B-Instruct-exl2-4.0bpw",
    files=(
        RemoteFile("config.json", 1_200, git_sha1="0" * 40),
        RemoteFile("tokenizer.json", 9_000_000, git_sha1="0" * 40),
        RemoteFile("output-00001-of-00002.safetensors", 4_000_000_000, sha256="0" * 64),
        RemoteFile("output-00002-of-00002.safetensors", 690_998_800, sha256="0" * 64),
    ),
    ready=0,
    free_disk=61 * GB,
    family="Llama",
    format="EXL2 4 bpw",
    context=8192,
    memory=6_100_000_000,
    available=24 * GB,
    fits="yes",
)
NAME = "Llama-3.1-8B-Instruct-exl2-4.0bpw"


def listed(options: LoadOptions, models: tuple[ModelInfo, ...] = MODELS) -> LibraryListed:
    """Twice the cache takes twice the memory here, so that a test sees the difference."""
    factor = (options.context or 8192) / 8192 / (2 if options.cache == "q8" else 1)
    scaled = tuple(replace(model, memory=int(model.memory * factor)) for model in models)
    return LibraryListed(scaled, options.context, options.cache, 24 * GB, 86_000_000_000, 61 * GB)


def detailed(path: str) -> ModelDetailed:
    """A mix of bits that rises towards the last layers."""
    linears = [
        LinearBits(f"model.layers.{layer}.{kind}_proj", "exl2", 2.5 + (layer + number) % 5 * 0.8, 1000, "4b 100 %")
        for layer in range(LAYERS)
        for number, kind in enumerate(KINDS)
    ]
    rows = tuple(
        MemoryRow(context, kind, 19_800_000_000, context * (400_000 if kind == "fp16" else 210_000), 300_000_000, fits)
        for context, fits in ((4096, "yes"), (8192, "tight"), (16384, "no"))
        for kind in ("fp16", "q8")
    )
    return ModelDetailed(
        path, "", "LlamaForCausalLM", LAYERS, 8192, 22016, 64, 8, 128, 32000, 16384, "base 1,000,000", False,
        "codellama", "", rows, (*linears, LinearBits("lm_head", "exl2", 6.0, 9000, "6b 100 %")),
    )  # fmt: skip


class FakeModels:
    """Answers scans and details by itself while `answering`; the rest is the test's."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self.post = post
        self.answering = True
        self.calls: list[tuple[object, ...]] = []
        self.models = MODELS
        self.partial: tuple[PartialDownload, ...] = ()
        self.options = LoadOptions()
        self.reclaimed: list[int] = []
        self.closed = False

    def scan(self, options: LoadOptions, reclaim: int = 0) -> None:
        self.calls.append(("scan", options.context, options.cache))
        self.reclaimed.append(reclaim)
        if self.answering:
            self.post(listed(options, self.models))

    def details(self, path: str, options: LoadOptions, reclaim: int = 0) -> None:
        self.calls.append(("details", path))
        if self.answering:
            self.post(detailed(path))

    def verify(self, path: str, name: str) -> None:
        self.calls.append(("verify", path))

    def stop_verify(self) -> None:
        self.calls.append(("stop_verify",))

    def plan_removal(self, path: str, name: str, loaded: str) -> None:
        self.calls.append(("plan_removal", path, loaded))

    def remove(self, plan: RemovalPlan, loaded: str) -> None:
        self.calls.append(("remove", plan.path))
        self.models = tuple(model for model in self.models if model.path != plan.path)
        self.post(ModelRemoved(plan.path, plan.name, plan.freed))

    def search(self, words: str, token: int) -> None:
        self.calls.append(("search", words))
        if self.answering:
            self.post(HubSearched(token, words, FOUND, 3))

    def revisions(self, repo: str, token: int, options: LoadOptions, reclaim: int = 0) -> None:
        self.calls.append(("revisions", repo))
        if self.answering:
            self.post(HubRevisions(token, repo, REVISIONS, True))

    def plan(self, repo: str, revision: str, token: int, options: LoadOptions, reclaim: int = 0) -> None:
        self.calls.append(("plan", repo, revision))
        if self.answering:
            self.post(HubPlanned(token, repo, revision, PLAN))

    def download(self, name: str, plan: DownloadPlan) -> None:
        self.calls.append(("download", name))

    def resume(self, name: str, repo: str, revision: str) -> None:
        self.calls.append(("resume", name))

    def stop_download(self, name: str) -> None:
        self.calls.append(("stop_download", name))
        self.post(DownloadEnded(name, PLAN.repo, PLAN.revision))

    def discard(self, name: str) -> None:
        self.calls.append(("discard", name))
        self.partial = tuple(part for part in self.partial if part.id != name)
        self.post(DownloadsListed(self.partial))

    def unfinished(self) -> None:
        self.post(DownloadsListed(self.partial))

    def close(self, timeout: float) -> None:
        self.closed = True

    # What a test makes it say

    def progress(self, share: float, name: str = NAME) -> None:
        done = int(PLAN.total * share)
        file = PLAN.files[2]
        self.post(
            DownloadProgress(
                name, PLAN.repo, PLAN.revision, file.name, "download", int(file.size * share), file.size, 3, 4,
                done, PLAN.total, 42_000_000.0, (PLAN.total - done) / 42_000_000,
            )
        )  # fmt: skip

    def finish(self, name: str = NAME) -> None:
        self.post(DownloadFinished(name, PLAN.repo, PLAN.revision, PLAN.folder, PLAN.total))

    def fail(self, message: str, hint: str = "", name: str = NAME) -> None:
        self.post(DownloadEnded(name, PLAN.repo, PLAN.revision, message, hint))


def verified(path: str, **changes: object) -> ModelVerified:
    base = ModelVerified(path, "x", (), (), 291, 6_700_000_000, 41.5)
    return replace(base, **changes)  # type: ignore[arg-type]
