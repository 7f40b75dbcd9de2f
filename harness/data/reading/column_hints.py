"""Compute what to write into a spec for rows whose columns have other names than those of the row formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns"),
    "instruction": (
        *("question", "query", "prompt", "problem", "user", "human", "input", "request", "inquiry", "ticket"),
        *("customer_message", "description", "body", "问题", "提问", "客户问题", "用户问题", "指令", "提示", "咨询"),
    ),
    "output": (
        *("response", "answer", "completion", "solution", "target", "reply", "assistant", "gpt", "resolution"),
        *("agent_reply", "agent_response", "回答", "答案", "回复", "客服回复", "输出", "解决方案", "答复"),
    ),
    "input": ("context", "passage", "输入"),
    "system": ("system_prompt", "system_message", "系统提示"),
    "text": ("document", "content", "body"),
}
"""Standard name -> names of public data sets (Dolly, OpenOrca, LMSYS-Chat, GSM8K and others), the most likely first."""


def is_preference_pair(row: Mapping[str, Any]) -> bool:
    """Return whether a row has an answer that was chosen and one that was rejected."""
    return "chosen" in row and "rejected" in row


def suggest_columns(row: Mapping[str, Any]) -> str:
    """Return the option `columns` for a row, as text of a spec; a general example if no column is known."""
    columns = find_columns(row)
    if not columns:
        return """name your columns, e.g. "columns": {"instruction": …, "output": …}"""
    return f'name the columns: "columns": {json.dumps(columns, ensure_ascii=False)}'


def find_columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the option `columns` for a row: standard name -> column; {} if no column is known."""
    if is_preference_pair(row):
        if isinstance(row["chosen"], (list, tuple)):
            return {"messages": "chosen"}  # such arrays begin with the prompt
        prompt = _find_column(row, "instruction")
        return {"instruction": prompt, "output": "chosen"} if prompt else {}
    for column in SYNONYMS["messages"]:
        if isinstance(row.get(column), (list, tuple)):
            return {"messages": column}
    instruction, output = _find_column(row, "instruction"), _find_column(row, "output")
    if instruction and output:
        optional = {name: _find_column(row, name) for name in ("input", "system")}
        found = {"instruction": instruction, "output": output, **optional}
        return {name: column for name, column in found.items() if column and column != name}
    text = _find_column(row, "text")
    return {"text": text} if text else {}


def _find_column(row: Mapping[str, Any], name: str) -> str | None:
    """Return the column of a row that has a standard name, or else one of its synonyms, in any case."""
    columns = {str(column).strip().lower().replace(" ", "_"): column for column in reversed(list(row))}
    columns |= {column: column for column in row}
    found = (columns[synonym] for synonym in (name, *SYNONYMS[name]) if synonym in columns)
    return next((column for column in found if isinstance(row.get(column), str)), None)
