"""Subgraphs taken out of their frame, as the browser sends them."""

from __future__ import annotations

import copy
from typing import Any

from run_workflow import to_prompt

LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def taken_out(
    file: dict[str, Any], given: dict[str, Any], object_info: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The prompt of a blueprint's inside with ``given`` at its inputs (else its own widgets), and where its outputs come from."""
    (inner,) = copy.deepcopy(file["definitions"]["subgraphs"])
    links = [[link[key] for key in LINK] for link in inner["links"]]
    within = [link for link in links if link[1] >= 0 and link[3] >= 0]
    nodes = {node["id"]: node for node in inner["nodes"]}
    entered = [(link[3], nodes[link[3]]["inputs"][link[4]], inner["inputs"][link[2]]["name"]) for link in links if link[1] < 0]
    for _key, slot, _name in entered:
        slot["link"] = None
    plain = to_prompt({"nodes": inner["nodes"], "links": within}, object_info)
    prompt = {
        f"inner {key}": {**node, "inputs": {name: _moved(value) for name, value in node["inputs"].items()}}
        for key, node in plain.items()
    }  # fmt: skip
    for key, slot, name in entered:
        if name in given:
            prompt[f"inner {key}"]["inputs"][slot["name"]] = given[name]
    left = {inner["outputs"][link[4]]["name"]: [f"inner {link[1]}", link[2]] for link in links if link[3] < 0}
    return prompt, left


def _moved(value: Any) -> Any:
    return [f"inner {value[0]}", value[1]] if isinstance(value, list) else value
