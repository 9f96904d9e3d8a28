// @ts-check
/** What a number means in each of the threshold's modes; as gate/thresholds.py's UNITS, which a test compares. */

import { lineAt, settingAt } from "./gate.js";

/** A good number to begin with; null where it depends on the oracle's scale. @type {Record<string, number|null>} */
export const DEFAULTS = {
  absolute: null, "worst share": 0.3, percentile: 30, budget: 16, "expected gain": 0, running: 0.3, guaranteed: 0.1,
};

/**
 * The number to put beside another mode: what leaves the line where it is, or else the mode's own good start.
 * @param {import("./state.js").Board} board
 * @param {string} before
 * @param {string} mode
 * @param {number} value what stood beside the mode before
 * @returns {number}
 */
export function changedMode(board, before, mode, value) {
  const line = board.pictures.length ? lineAt(board, before, value) : null;
  const same = line !== null && Number.isFinite(line) && before !== "expected gain" ? settingAt(board, mode, line) : null;
  if (same?.mode === mode && mode !== "expected gain") return same.value;
  return DEFAULTS[mode] ?? (Number.isFinite(board.threshold ?? NaN) ? Number(board.threshold) : 0);
}
