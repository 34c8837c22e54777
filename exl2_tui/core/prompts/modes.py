"""The prompt modes, as a table: how each family of models wants a conversation written down.

Texts hold fields in braces: {bos} and {eos} are the tokenizer's tokens, {system}, {user} and {assistant} the words of
the conversation, {user_name} and {bot_name} configurable names. Everything else is the mode's own text; control tokens
in it become single tokens. Sources: the chat templates the models were published with, spec/inference-features.md
section 6; differences from that section: later turns of llama are closed with </s>, chatml has no line break before
the <|im_end|> of the system prompt (as in the models' own templates), tinyllama is the format of TinyLlama-Chat 1.0,
gemma repeats no <bos> and takes a system prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exl2_tui.core.errors import PromptError


@dataclass(frozen=True, slots=True)
class PromptMode:
    """One way to write a conversation.

    bos: BOS in front "always", only if the "tokenizer" is set to, or "never" (or where {bos} says). system: the system
    prompt, left out if there is none; it opens the prompt or, with system_in_user, stands inside the first user turn
    where {system_block} is. user: a user's turn. header: what opens a reply and ends a prompt. reply: the words of an
    earlier reply; close: what ends it. trim: whitespace around contents is removed. control: control tokens the mode
    is meant to have. stops: strings that end a reply; ends: control tokens that do. default_system: offered to a
    person, never inserted by itself.
    """

    name: str
    description: str
    system: str = "{system}"
    user: str = "{user}"
    header: str = ""
    reply: str = "{assistant}"
    close: str = ""
    bos: Literal["always", "tokenizer", "never"] = "always"
    system_in_user: bool = False
    trim: bool = False
    control: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    default_system: str = ""

    def default_system_prompt(self, user_name: str = "User", bot_name: str = "Chatbort") -> str:
        """The suggested system prompt with the names filled in; may be empty."""
        return self.default_system.replace("{user_name}", user_name).replace("{bot_name}", bot_name)


_ASSISTANT = "You are {bot_name}, a helpful assistant. Give short, correct answers."
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

_LLAMA = PromptMode(
    name="llama",
    description="Llama 2 Chat: [INST] ... [/INST]",
    system="<<SYS>>\n{system}\n<</SYS>>\n\n",
    user="{bos}[INST] {system_block}{user} [/INST]",
    reply=" {assistant} ",
    close="{eos}",
    bos="never",
    system_in_user=True,
    trim=True,
    default_system="You are a helpful and honest assistant. Be kind, avoid harm, and say so when you do not know.",
)
_ZEPHYR = PromptMode(
    name="zephyr",
    description="Zephyr: <|user|> and <|assistant|> lines, turns end with </s>",
    system="<|system|>\n{system}{eos}\n",
    user="<|user|>\n{user}{eos}\n",
    header="<|assistant|>\n",
    close="{eos}\n",
    bos="never",
    stops=("<|user|>", "<|system|>"),
    default_system=_ASSISTANT,
)

_MODES = (
    PromptMode(
        name="auto",
        description="The model's own chat template; without one, the mode that fits its tokens and architecture",
        default_system=_ASSISTANT,
    ),
    PromptMode(
        name="raw",
        description="A chat log with names, for any model including base models",
        system="{system}\n",
        user="{user_name}: {user}\n",
        header="{bot_name}:",
        reply=" {assistant}",
        close="\n",
        bos="tokenizer",
        trim=True,
        stops=("{user_name}:", "\n{USER_NAME}:", "\n{user_name_lower}:", "\n{U}:"),
        default_system="A conversation between {user_name} and a helpful AI assistant named {bot_name}.",
    ),
    _LLAMA,
    PromptMode(
        name="codellama",
        description="CodeLlama Instruct: as llama, with a system prompt for programming",
        system=_LLAMA.system,
        user=_LLAMA.user,
        reply=_LLAMA.reply,
        close=_LLAMA.close,
        bos=_LLAMA.bos,
        system_in_user=True,
        trim=True,
        default_system="You are an experienced programmer. Answer with working, readable code and a short explanation.",
    ),
    PromptMode(
        name="llama3",
        description="Llama 3 Instruct: header tokens, turns end with <|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>",
        header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        close="<|eot_id|>",
        trim=True,
        control=_HEADERS,
        ends=("<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"),
        default_system=_ASSISTANT,
    ),
    PromptMode(
        name="chatml",
        description="ChatML (Qwen, SmolLM, Yi, many fine-tunes): <|im_start|> ... <|im_end|>",
        system="<|im_start|>system\n{system}<|im_end|>\n",
        user="<|im_start|>user\n{user}<|im_end|>\n",
        header="<|im_start|>assistant\n",
        close="<|im_end|>\n",
        bos="never",
        control=_CHATML_TOKENS,
        ends=("<|im_end|>",),
        default_system=_ASSISTANT,
    ),
    PromptMode(
        name="mistral",
        description="Mistral Instruct: [INST] ... [/INST], turns end with </s>",
        system="{system}\n\n",
        user="[INST] {system_block}{user} [/INST]",
        reply=" {assistant}",
        close="{eos}",
        system_in_user=True,
    ),
    PromptMode(
        name="gemma",
        description="Gemma: <start_of_turn> ... <end_of_turn>",
        system="{system}\n\n",
        user="<start_of_turn>user\n{system_block}{user}<end_of_turn>\n",
        header="<start_of_turn>model\n",
        close="<end_of_turn>\n",
        system_in_user=True,
        trim=True,
        control=("<start_of_turn>", "<end_of_turn>"),
        ends=("<end_of_turn>", "<start_of_turn>"),
    ),
    PromptMode(
        name="phi3",
        description="Phi-3: <|user|> ... <|end|>",
        system="<|system|>\n{system}<|end|>\n",
        user="<|user|>\n{user}<|end|>\n",
        header="<|assistant|>\n",
        close="<|end|>\n",
        bos="tokenizer",
        control=("<|user|>", "<|assistant|>", "<|end|>"),
        ends=("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>"),
        default_system=_ASSISTANT,
    ),
    PromptMode(
        name="tinyllama",
        description="TinyLlama Chat 1.0: as zephyr",
        system=_ZEPHYR.system,
        user=_ZEPHYR.user,
        header=_ZEPHYR.header,
        close=_ZEPHYR.close,
        bos="never",
        stops=_ZEPHYR.stops,
        default_system=_ASSISTANT,
    ),
    _ZEPHYR,
    PromptMode(
        name="alpaca",
        description="Alpaca: ### Instruction: and ### Response:",
        system="{system}\n\n",
        user="### Instruction:\n{user}\n\n",
        header="### Response:\n",
        close="{eos}\n\n",
        bos="tokenizer",
        trim=True,
        stops=("### Instruction:",),
        default_system="Each instruction below sets a task. Write a response that does what it asks for.",
    ),
    PromptMode(
        name="vicuna",
        description="Vicuna 1.1: USER: ... ASSISTANT: ...",
        system="{system} ",
        user="USER: {user} ",
        header="ASSISTANT:",
        reply=" {assistant}",
        close="{eos}",
        bos="tokenizer",
        trim=True,
        stops=("USER:",),
        default_system="A curious user talks to an assistant, who answers helpfully, politely and in detail.",
    ),
    PromptMode(
        name="deepseek",
        description="DeepSeek Coder Instruct: ### Instruction: and ### Response:",
        system="{system}\n",
        user="### Instruction:\n{user}\n",
        header="### Response:\n",
        close="\n<|EOT|>\n",
        bos="tokenizer",
        control=("<|EOT|>",),
        stops=("### Instruction:",),
        ends=("<|EOT|>",),
        default_system="You are an experienced programmer. Answer questions about computer science.",
    ),
    PromptMode(
        name="solar",
        description="SOLAR Instruct: ### User: and ### Assistant:",
        system="### System:\n{system}\n\n",
        user="### User:\n{user}\n\n",
        header="### Assistant:\n",
        close="\n\n",
        bos="tokenizer",
        stops=("### User:",),
        default_system=_ASSISTANT,
    ),
    PromptMode(
        name="openchat",
        description="OpenChat 3.5: GPT4 Correct User: ... <|end_of_turn|>",
        system="GPT4 Correct System: {system}<|end_of_turn|>",
        user="GPT4 Correct User: {user}<|end_of_turn|>",
        header="GPT4 Correct Assistant:",
        reply=" {assistant}",
        close="<|end_of_turn|>",
        control=("<|end_of_turn|>",),
        stops=("GPT4 Correct User:",),
        ends=("<|end_of_turn|>",),
        default_system=_ASSISTANT,
    ),
)
_BY_NAME = {mode.name: mode for mode in _MODES}


def names() -> tuple[str, ...]:
    """All modes in the order in which they are shown."""
    return tuple(_BY_NAME)


def get(name: str) -> PromptMode:
    """The mode of that name; raises PromptError with the list of modes."""
    mode = _BY_NAME.get(name)
    if mode is None:
        raise PromptError(f"there is no prompt mode {name!r}", hint=f"Choose one of {', '.join(_BY_NAME)}")
    return mode
