"""What a person sees of each node first: few widgets, its room in the menu, words that find it, titles and units."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from comfyui_apprentice.benchmarks import tiny_families as tiny

tiny.start()

from comfy_api.v0_0_2 import io  # noqa: E402
from comfyui_apprentice.nodes import NODES, places, schema  # noqa: E402
from comfyui_apprentice.nodes.places import PLACES, UNITS, is_widget  # noqa: E402
from comfyui_apprentice.training.qualities import settings_of  # noqa: E402
from comfyui_apprentice.training.sid_options import SidOptions  # noqa: E402

MOST = 8  # widgets that a node shows at once, the one that re-rolls a seed included
TITLE = 28  # letters that a node of the usual width shows of its title
IDS = [node.define_schema().node_id for node in NODES]


@pytest.mark.parametrize("node", NODES, ids=IDS)
def test_a_node_shows_at_most_eight_widgets_at_once(node: type[io.ComfyNode]) -> None:
    widgets = [each for each in node.define_schema().inputs if is_widget(each)]
    shown = [each for each in widgets if not each.as_dict().get("advanced")]
    assert len(shown) + sum(bool(getattr(each, "control_after_generate", False)) for each in shown) <= MOST
    assert not widgets or shown


def test_every_node_has_its_place_and_what_is_said_of_it_is_there() -> None:
    schemas = {node.define_schema().node_id: node.define_schema() for node in NODES}
    assert set(PLACES) == set(schemas)
    rooms = {s.category for s in schemas.values()}
    assert rooms == {f"Apprentice/{room}" for room in ("Draw", "Judge", "Teach", "Distil", "Look")}
    for name, place in PLACES.items():
        widgets = {each.id for each in schemas[name].inputs if is_widget(each)}
        assert set(place.first) <= widgets, f"{name} has no widget {set(place.first) - widgets}"
    assert set(UNITS) <= {each.id for s in schemas.values() for each in s.inputs}


def test_folding_changes_neither_names_nor_order_nor_defaults() -> None:
    for node in NODES:
        plain = node.define_schema.__func__.__closure__[0].cell_contents(node)  # type: ignore[attr-defined]
        facts = lambda s: [(each.id, each.optional, getattr(each, "default", None)) for each in s.inputs]  # noqa: E731
        assert facts(node.define_schema()) == facts(plain)


@pytest.mark.parametrize("word", ["aesthetic", "imagereward", "hps", "pick", "gate", "adaptive", "turbo", "lcm", "best of"])
def test_what_people_search_for_finds_a_node(word: str) -> None:
    assert any(word in place.words for place in PLACES.values())


def test_words_to_search_for_are_given_where_comfyui_knows_them() -> None:
    @dataclass
    class Newer(io.Schema):
        search_aliases: list[str] | None = None

    newer: Any = Newer(node_id="ApprenticeJudge", category="Apprentice", inputs=[])
    assert "gate" in places.laid_out(newer).search_aliases
    older: Any = io.Schema(node_id="ApprenticeJudge", category="Apprentice", inputs=[])
    assert places.laid_out(older).category == "Apprentice/Judge"
    assert hasattr(older, "search_aliases") == ("search_aliases" in {each.name for each in fields(io.Schema)})


@pytest.mark.parametrize("node", NODES, ids=IDS)
def test_titles_fit_their_node(node: type[io.ComfyNode]) -> None:
    assert len(node.define_schema().display_name) <= TITLE


def test_quality_sets_the_rest_and_a_stray_text_does_not() -> None:
    widgets = {"pictures": 7, "batch_size": 3, "width": 640}
    quick = schema.read(SidOptions, {**widgets, "quality": "quick"})
    assert quick.pictures == settings_of(SidOptions, "quick")["pictures"] and quick.width == 640
    for stray in ("as set", "Saved my student.safetensors."):
        as_set = schema.read(SidOptions, {**widgets, "quality": stray})
        assert (as_set.pictures, as_set.batch) == (7, 3)
