// node --test tests/js
import assert from "node:assert/strict";
import test from "node:test";

import { boardsOf } from "../../web/board/history.js";

const graph = (seed, value = 0.5) => ({
  1: { class_type: "Draw", inputs: { seed } }, 2: { class_type: "Judge", inputs: { images: ["1", 0], value } },
  3: { class_type: "Save", inputs: { verdict: ["2", 0], name: `${seed}` } },
});
const run = (prompt, outputs, meta = {}) => ({ prompt: [0, "id", prompt], outputs, meta });
const of = (name, stage = "judged") => ({ apprentice_board: [{ name, stage }] });
const names = (boards) => boards.map((board) => board.name);

test("a cached node's board is that of the newest run with the same nodes before it", () => {
  const history = { a: run(graph(1), { 2: of("old") }), b: run(graph(1), { 2: of("new") }), c: run(graph(2), { 2: of("other") }) };
  const changed = graph(1);
  changed[3].inputs.name = "after it";
  history.now = run(changed, { 3: {} });
  assert.deepEqual(names(boardsOf(history, "now", "2")), ["new"]);
  history.now = run(graph(1, 0.6), {});
  assert.deepEqual(boardsOf(history, "now", "2"), [], "another threshold is another board");
  assert.deepEqual(boardsOf(history, "gone", "2"), []);
});

test("the inner nodes of one that expands come under its own id, the judge's first", () => {
  const meta = { "2.0.5": { display_node: "2" }, "2.0.3": { display_node: "2" } };
  const history = { a: run(graph(1), { "2.0.5": of("kept", "improved"), "2.0.3": of("judged") }, meta), now: run(graph(1), {}) };
  assert.deepEqual(names(boardsOf(history, "now", "2")), ["judged", "kept"]);
});
