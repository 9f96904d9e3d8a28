// node --test tests/js
import assert from "node:assert/strict";
import test from "node:test";

import { stateOf } from "../../web/board/cards.js";
import { choose, readOverrides, writeOverrides } from "../../web/board/overrides.js";
import { emptyBoard, isUnfinished, keptFile, otherFile, pairsOf, withEvent, withWhole } from "../../web/board/state.js";

const KEYS = ["0".repeat(16), "1".repeat(16), "2".repeat(16)];
const file = (name) => ({ filename: name, subfolder: "apprentice", type: "temp", width: 64, height: 64, thumb: name });

function judged(more = {}) {
  const pictures = KEYS.map((key, index) => ({
    index, key, score: [0.9, 0.1, null][index], threshold: 0.5, passes: index === 0, decision: index ? "rejected" : "accepted",
    override: "", prompt: "a", seed: 7, nfe: 2, draft_score: null, baseline: null, draft: file(`d${index}`), improved: null, improved_key: "",
  }));
  return { stage: "judged", mode: "absolute", value: 0.5, threshold: 0.5, summary: "s", stopped: false, oracle: "o",
    costs: { student: 2, teacher: null }, calibration: { scores: [0, 1] }, pictures, ...more };
}

function improved() {
  const whole = judged({ stage: "improved", calibration: null, costs: { student: null, teacher: 20 } });
  whole.pictures[1] = { ...whole.pictures[1], decision: "improved", score: 0.8, draft_score: 0.1, improved: file("i1"), improved_key: "f".repeat(16) };
  whole.pictures[2] = { ...whole.pictures[2], decision: "draft kept", improved: file("i2"), improved_key: "e".repeat(16) };
  return whole;
}

test("pictures appear before their scores, and scores as they come", () => {
  let board = withEvent(emptyBoard(), { prompt_id: "p", stage: "judged", total: 3, pictures: KEYS.map((key, index) => ({ index, key, score: null, draft: file("d") })) });
  assert.deepEqual(board.pictures.map((p) => p.draft), [null, null, null]);
  board = withEvent(board, { prompt_id: "p", stage: "judged", total: 3, pictures: [{ index: 1, key: KEYS[1], score: 0.4, draft: file("d") }] });
  assert.deepEqual(board.pictures.map((p) => p.draft), [null, 0.4, null]);
  assert.ok(board.running && board.pictures[0].before.filename === "d");
});

test("a teacher's picture that arrives keeps the draft's score and name", () => {
  let board = withWhole(emptyBoard(), judged());
  board = withEvent({ ...board, run: "p" }, { prompt_id: "p", stage: "improved", total: 3, pictures: [{ index: 1, key: "f".repeat(16), score: 0.8, improved: file("i") }] });
  const picture = board.pictures[1];
  assert.deepEqual([picture.key, picture.draft, picture.afterScore, picture.afterKey], [KEYS[1], 0.1, 0.8, "f".repeat(16)]);
});

test("another run begins with an empty board", () => {
  const board = withEvent({ ...withWhole(emptyBoard(), judged()), run: "p" }, { prompt_id: "q", stage: "judged", total: 2, pictures: [] });
  assert.deepEqual([board.pictures.length, board.pictures[0].key], [2, ""]);
});

test("what Keep Better doesn't know of stays as the judge said it", () => {
  const board = withWhole(withWhole(emptyBoard(), judged()), improved());
  assert.deepEqual(board.costs, { student: 2, teacher: 20 });
  assert.deepEqual(board.calibration, { scores: [0, 1] });
  assert.deepEqual(board.pictures.map((p) => p.draft), [0.9, 0.1, null]);
});

test("the better picture is shown, the other behind it", () => {
  const [accepted, better, kept] = withWhole(emptyBoard(), improved()).pictures;
  assert.deepEqual([keptFile(accepted).filename, otherFile(accepted)], ["d0", null]);
  assert.deepEqual([keptFile(better).filename, otherFile(better).filename], ["i1", "d1"]);
  assert.deepEqual([keptFile(kept).filename, otherFile(kept).filename], ["d2", "i2"]);
});

test("what only the next run will do is told apart from what was done", () => {
  const [accepted, better] = withWhole(emptyBoard(), improved()).pictures;
  assert.deepEqual(stateOf(accepted, true, undefined), { state: "accepted", pending: false });
  assert.deepEqual(stateOf(accepted, true, "teacher"), { state: "rejected", pending: true });
  assert.deepEqual(stateOf(better, false, undefined), { state: "improved", pending: false });
  assert.deepEqual(stateOf(better, true, undefined), { state: "accepted", pending: true });
  assert.equal(stateOf({ ...accepted, decision: "" }, null, undefined).state, "waiting");
});

test("pairs to choose between are two different pictures of one prompt, improvements first", () => {
  const pairs = pairsOf(withWhole(emptyBoard(), improved()));
  assert.deepEqual(pairs.map(({ a, b }) => [a.file.filename, b.file.filename]), [["d1", "i1"], ["d2", "i2"], ["d0", "d1"], ["d1", "d2"]]);
});

test("a word said twice is taken back, and an empty list leaves the widget empty", () => {
  let words = choose(new Map(), KEYS[0], "accept");
  words = choose(words, KEYS[1], "teacher");
  assert.deepEqual(readOverrides(writeOverrides(words)), words);
  words = choose(choose(words, KEYS[0], "accept"), KEYS[1], "");
  assert.equal(writeOverrides(words), "");
});

test("what is no list of choices says nothing", () => {
  for (const text of ["", "8 pictures: 4 accepted", "{", "{}", '{"v":1,"by":{"x":"accept"}}', `{"v":1,"by":{"${KEYS[0]}":"maybe"}}`, null, 3]) {
    assert.equal(readOverrides(text).size, 0);
  }
});

test("a run that was cancelled while it judged is not taken for a verdict", () => {
  const live = withEvent(emptyBoard(), { prompt_id: "p", stage: "judged", total: 3, pictures: [{ index: 0, key: KEYS[0], score: 0.9 }] });
  assert.equal(isUnfinished(live), false);
  assert.equal(isUnfinished({ ...live, running: false }), true);
  assert.equal(isUnfinished(withWhole(live, judged())), false);
});
