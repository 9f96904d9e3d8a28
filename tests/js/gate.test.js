// Run by tests/unit/test_board_gate.py, which hands in what gate/thresholds.py answers; or by hand: node --test tests/js
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { costOf, lineAt, passing, rankOf, quantile, settingAt } from "../../web/board/gate.js";
import { emptyBoard } from "../../web/board/state.js";
import { changedMode, DEFAULTS } from "../../web/board/units.js";

const cases = process.env.APPRENTICE_GATE_CASES ? JSON.parse(readFileSync(process.env.APPRENTICE_GATE_CASES, "utf8")) : null;

function boardOf(scores, more = {}) {
  const pictures = scores.map((draft, index) => ({ index, draft, threshold: more.thresholds?.[index] ?? null, baseline: more.baselines?.[index] ?? null }));
  return { ...emptyBoard(), pictures, ...more };
}

test("the browser's gate decides as Python's does", { skip: !cases && "its cases are made by the Python test" }, () => {
  for (const c of cases.gates) {
    const board = boardOf(c.scores, { costs: c.costs, calibration: c.calibration && { scores: c.calibration }, baselines: c.baselines });
    assert.deepEqual(passing(board, c.mode, c.value), c.accepted, JSON.stringify(c));
  }
  assert.deepEqual(DEFAULTS, cases.defaults);
});

test("a setting that the line was dragged to rejects what lies below the line", () => {
  const scores = [0.1, 0.9, null, 0.4, 0.5, 0.5, 0.2];
  for (const mode of ["absolute", "worst share", "budget"]) {
    const board = boardOf(scores, { costs: { student: 4, teacher: 40 }, threshold: 0.45 });
    for (const line of [-1, 0.15, 0.3, 0.45, 0.6, 2]) {
      const set = settingAt(board, mode, line);
      assert.equal(set.mode, mode);
      assert.deepEqual(passing(board, mode, set.value), scores.map((s) => s !== null && s >= line), `${mode} ${line}`);
    }
  }
});

test("a percentile's line and the value that it was dragged to are inverse", () => {
  const ordered = [0, 0.1, 0.1, 0.4, 0.9];
  for (const q of [0, 0.3, 0.5, 0.77, 1]) assert.ok(Math.abs(quantile(ordered, rankOf(ordered, quantile(ordered, q))) - quantile(ordered, q)) < 1e-12);
  const board = boardOf([0.2, 0.3], { calibration: { scores: ordered } });
  assert.deepEqual(settingAt(board, "percentile", 0.25), { mode: "percentile", value: 62.5 });
  assert.equal(settingAt(boardOf([null]), "percentile", 1), null);
});

test("modes that no number moves directly become absolute when the line is dragged", () => {
  for (const mode of ["running", "guaranteed"]) assert.deepEqual(settingAt(boardOf([0.1, 0.9]), mode, 0.5), { mode: "absolute", value: 0.5 });
});

test("pictures with thresholds of their own are divided by how far they are above them", () => {
  const board = boardOf([10, 1, 12], { thresholds: [9, 2, 9], threshold: null });
  assert.deepEqual(passing(board, "worst share", 1 / 3), [true, false, true]);
  assert.equal(settingAt(board, "absolute", 0), null);
  assert.equal(lineAt(board, "running", 0.5), 0);
});

test("costs are the student's plus the teacher's share, and unknown where one is", () => {
  assert.equal(costOf(boardOf([1, 2], { costs: { student: 4, teacher: 40 } }), 1), 24);
  assert.equal(costOf(boardOf([1, 2], { costs: { student: 4, teacher: null } }), 1), null);
});

test("another mode does not keep a number of another unit", () => {
  const board = boardOf([0.1, 0.2, 0.3, 0.4], { threshold: 0.3, costs: { student: null, teacher: null } });
  assert.equal(changedMode(board, "worst share", "absolute", 0.5), 0.3);
  assert.equal(changedMode(board, "absolute", "worst share", 0.25), 0.5);
  assert.equal(changedMode(board, "worst share", "budget", 0.5), 16);
  assert.equal(changedMode(emptyBoard(), "worst share", "percentile", 0.5), 30);
  assert.equal(changedMode(emptyBoard(), "worst share", "absolute", 0.5), 0);
});
