"""Model directories with a tokenizer and a chat template in the style of each family."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
from chat_templates import FAMILIES
from tokenizer_kinds import KINDS


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a family by name, built on first use."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            family = FAMILIES[name]
            path = tmp_path_factory.mktemp(name)
            tokenizer = KINDS[family.kind]()
            tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in family.tokens])
            tokenizer.save(str(path / "tokenizer.json"))
            settings = {"bos_token": family.bos, "eos_token": family.eos, "chat_template": family.template}
            settings |= {"add_bos_token": family.add_bos, "tokenizer_class": "PreTrainedTokenizerFast"}
            (path / "tokenizer_config.json").write_text(json.dumps(settings))
            (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
            built[name] = path
        return built[name]

    return get
