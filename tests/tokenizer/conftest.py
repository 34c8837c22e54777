"""Directories with tokenizer files."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer
from tokenizer_kinds import KINDS, TRAINING


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a kind by name, built on first use."""
    built: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in built:
            built[kind] = tmp_path_factory.mktemp(kind)
            KINDS[kind]().save(str(built[kind] / "tokenizer.json"))
        return built[kind]

    return get


@pytest.fixture(scope="session")
def spm_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Directory with a trained tokenizer.model and a tokenizer_config.json."""
    built: dict[tuple[bool, str, bool], Path] = {}

    def get(*, prefix: bool, kind: str = "bpe", legacy: bool = False) -> Path:
        key = (prefix, kind, legacy)
        if key not in built:
            path = tmp_path_factory.mktemp("spm")
            model = io.BytesIO()
            SentencePieceTrainer.train(
                sentence_iterator=iter(
                    [text for text in TRAINING if text.isprintable() and max(map(ord, text), default=0) < 0x1000]
                ),
                model_writer=model,
                vocab_size=1200,
                model_type=kind,
                byte_fallback=True,
                add_dummy_prefix=prefix,
                remove_extra_whitespaces=False,
                normalization_rule_name="identity",
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["<|im_start|>", "<|im_end|>", "fox"],
                character_coverage=0.98,
                minloglevel=2,
                hard_vocab_limit=False,
            )
            (path / "tokenizer.model").write_bytes(model.getvalue())
            settings = {"add_prefix_space": prefix, "legacy": legacy, "tokenizer_class": "LlamaTokenizer"}
            settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            (path / "tokenizer_config.json").write_text(json.dumps(settings))
            (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
            built[key] = path
        return built[key]

    return get


@pytest.fixture
def nano_files(nano_chat: Path, tmp_path: Path) -> Path:
    """A writable copy of nano-chat's small files."""
    for path in nano_chat.iterdir():
        if path.suffix in (".json", ".model") and "index" not in path.name and "log" not in path.name:
            shutil.copy(path, tmp_path / path.name)
            (tmp_path / path.name).chmod(0o644)
    return tmp_path
