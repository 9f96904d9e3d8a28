// @ts-check
/**
 * The gate in the browser, for looking ahead while the threshold moves. It answers as gate/thresholds.py does; a test
 * compares the two. The next run's verdict is the server's.
 */

/** @typedef {import("./state.js").Board} Board */

/** @param {number|null} a @param {number|null} b */
const subtract = (a, b) => (a === null || b === null ? null : a - b);

/** Whether every picture is compared with its own threshold. @param {Board} board */
function isRelative(board) {
  return board.threshold === null && board.pictures.some((p) => p.threshold !== null);
}

/**
 * The scores as they lie on the histogram's axis: what one line can divide.
 * For "expected gain" the score above the prompt's baseline; where thresholds differ, above the picture's own.
 * @param {Board} board
 * @param {string} mode
 * @returns {(number|null)[]}
 */
export function axisScores(board, mode) {
  if (mode === "expected gain") return board.pictures.map((p) => subtract(p.draft, p.baseline));
  if (isRelative(board)) return board.pictures.map((p) => subtract(p.draft, p.threshold));
  return board.pictures.map((p) => p.draft);
}

/** @param {(number|null)[]} scores */
export const finite = (scores) => /** @type {number[]} */ (scores.filter((s) => s !== null && Number.isFinite(s)));

/**
 * The q-quantile (0..1) of ascending values, linear between ranks.
 * @param {number[]} ordered
 * @param {number} q
 */
export function quantile(ordered, q) {
  const place = q * (ordered.length - 1);
  const low = Math.floor(place);
  const high = Math.min(low + 1, ordered.length - 1);
  return ordered[low] + (place - low) * (ordered[high] - ordered[low]);
}

/**
 * What q the value is the quantile of: the inverse of `quantile`.
 * @param {number[]} ordered
 * @param {number} value
 */
export function rankOf(ordered, value) {
  if (value <= ordered[0]) return 0;
  const last = ordered.length - 1;
  if (value > ordered[last]) return 1;
  const high = ordered.findIndex((v) => v >= value);
  const step = ordered[high] - ordered[high - 1];
  return (high - 1 + (step > 0 ? (value - ordered[high - 1]) / step : 1)) / last;
}

/**
 * Who passes when the worst `count` are rejected; ties fall to the later picture, and what has no score never passes.
 * @param {(number|null)[]} scores
 * @param {number} count
 */
function withoutWorst(scores, count) {
  const order = scores.map((_, i) => i).sort((a, b) => (scores[a] ?? -Infinity) - (scores[b] ?? -Infinity) || b - a);
  const rejected = new Set(order.slice(0, count));
  return scores.map((s, i) => s !== null && !rejected.has(i));
}

/** What a percentile is taken of. @param {Board} board @param {string} mode */
function reference(board, mode) {
  const batch = finite(axisScores(board, mode)).sort((a, b) => a - b);
  return board.calibration && !isRelative(board) ? board.calibration.scores : batch;
}

/**
 * Who passes.
 * @param {Board} board
 * @param {string} mode one of the threshold's choices
 * @param {number} value in that mode's unit
 * @returns {boolean[]|null} one a picture; null where only the server can tell
 */
export function passing(board, mode, value) {
  const scores = axisScores(board, mode);
  const above = (/** @type {number} */ line) => scores.map((s) => s !== null && s >= line);
  switch (mode) {
    case "absolute":
      return isRelative(board) ? null : above(value);
    case "worst share":
      return withoutWorst(scores, Math.floor(value * scores.length + 0.5));
    case "percentile": {
      if (value <= 0) return above(-Infinity);
      if (value >= 100) return above(Infinity);
      const ordered = reference(board, mode);
      return ordered.length ? above(quantile(ordered, value / 100)) : above(Infinity);
    }
    case "budget": {
      const { student, teacher } = board.costs;
      if (student === null || !teacher) return null;
      const share = Math.min(1, Math.max(0, (value - student) / teacher));
      return withoutWorst(scores, Math.floor(share * scores.length + 1e-9));
    }
    case "expected gain":
      return scores.every((s) => s === null) ? null : above(-value);
    default:
      return null;
  }
}

/**
 * Where the line stands on the axis: at the worst picture that passes, or at the mode's own number.
 * @param {Board} board
 * @param {string} mode
 * @param {number} value
 * @returns {number|null} infinite where all or none pass; null where it is not known
 */
export function lineAt(board, mode, value) {
  if (mode === "absolute") return isRelative(board) ? null : value;
  if (mode === "expected gain") return -value;
  if (mode === "percentile" && value > 0 && value < 100) {
    const ordered = reference(board, mode);
    return ordered.length ? quantile(ordered, value / 100) : null;
  }
  const pass = passing(board, mode, value);
  if (pass === null) return isRelative(board) ? 0 : board.threshold;
  const scores = axisScores(board, mode);
  const kept = finite(scores.filter((_, i) => pass[i]));
  if (!kept.length) return Infinity;
  return pass.every((p, i) => p || scores[i] === null) ? -Infinity : Math.min(...kept);
}

const round = (/** @type {number} */ v) => Math.round(v * 1e4) / 1e4;

/**
 * What the widgets must say for the line to stand at `line`: the mode that is set keeps its unit. The modes that no number
 * of the artist's moves directly become "absolute".
 * @param {Board} board
 * @param {string} mode
 * @param {number} line on the axis
 * @returns {{mode: string, value: number}|null} null where no such number exists
 */
export function settingAt(board, mode, line) {
  const scores = axisScores(board, mode);
  const count = scores.filter((s) => s === null || s < line).length;
  switch (mode) {
    case "expected gain":
      return { mode, value: round(-line) };
    case "worst share":
      return { mode, value: round(count / Math.max(1, scores.length)) };
    case "percentile": {
      const ordered = reference(board, mode);
      return ordered.length ? { mode, value: round(100 * rankOf(ordered, line)) } : null;
    }
    case "budget": {
      const { student, teacher } = board.costs;
      if (student === null || !teacher) return null;
      return { mode, value: Math.ceil((student + (count / scores.length) * teacher) * 1e4 - 1e-6) / 1e4 };
    }
    default:
      return isRelative(board) ? null : { mode: "absolute", value: round(line) };
  }
}

/**
 * The average evaluations a picture, when so many of them go to the teacher.
 * @param {Board} board
 * @param {number} rejected
 * @returns {number|null} null where student's or teacher's cost is not known
 */
export function costOf(board, rejected) {
  const { student, teacher } = board.costs;
  if (student === null || teacher === null || !board.pictures.length) return null;
  return student + (rejected / board.pictures.length) * teacher;
}
