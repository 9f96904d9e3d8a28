// @ts-check
/** The scores as a histogram, the calibration behind them, and the threshold as a line that moves. */

import { make, makeSvg, short } from "./dom.js";
import { axisScores, finite } from "./gate.js";

const BINS = 30;

/**
 * The axis: all that is shown, with room at both ends.
 * @param {number[]} values
 * @returns {[number, number]}
 */
export function axisOf(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.06 || Math.max(Math.abs(low) * 0.05, 0.05);
  return [low - room, high + room];
}

/** @param {number[]} values @param {[number, number]} axis @returns {number[]} counts of BINS bins */
export function counts(values, [low, high]) {
  const bins = new Array(BINS).fill(0);
  for (const v of values) bins[Math.min(BINS - 1, Math.max(0, Math.floor(((v - low) / (high - low)) * BINS)))] += 1;
  return bins;
}

/**
 * @param {import("./state.js").Board} board
 * @param {{mode: string, line: number|null, states: string[], text: (line: number) => string,
 *   preview: (line: number|null) => void, commit: ((line: number) => void)|null}} look
 *   `states` one a picture; `text` says what a line there means; `commit` is null where the line can't be moved
 * @returns {HTMLElement|null} null where there is nothing to draw
 */
export function histogram(board, look) {
  const scores = axisScores(board, look.mode);
  const values = finite(scores);
  if (!values.length) return null;
  const plain = look.mode !== "expected gain" && !(board.threshold === null && board.pictures.some((p) => p.threshold !== null));
  const behind = plain && board.calibration ? board.calibration.scores : [];
  const line = look.line;
  const axis = axisOf([...values, ...behind, ...(line !== null && Number.isFinite(line) ? [line] : [])]);
  const place = (/** @type {number} */ v) => Math.min(100, Math.max(0, (100 * (v - axis[0])) / (axis[1] - axis[0])));
  const chart = makeSvg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", class: "ab-bars", "aria-hidden": "true" },
    ...area(behind, axis), ...bars(scores, look.states, axis));
  const plot = make("div", { class: "ab-plot" }, chart);
  if (line !== null) plot.append(handle(plot, axis, place, line, look));
  const what = look.mode === "expected gain" ? "score above the prompt's usual" : plain ? "score" : "score above the picture's threshold";
  return make("div", { class: "ab-histogram" }, plot,
    make("div", { class: "ab-axis" }, make("span", {}, short(axis[0])),
      make("span", {}, behind.length ? `${what}; grey: the calibration` : what), make("span", {}, short(axis[1]))));
}

/** @param {number[]} values @param {[number, number]} axis */
function area(values, axis) {
  if (!values.length) return [];
  const bins = counts(values, axis);
  const tallest = Math.max(...bins);
  const points = bins.map((n, i) => `${((i + 0.5) * 100) / BINS},${100 - (92 * n) / tallest}`);
  return [makeSvg("polygon", { points: `0,100 ${points.join(" ")} 100,100`, class: "ab-calibration" })];
}

/** Stacked by decision. @param {(number|null)[]} scores @param {string[]} states @param {[number, number]} axis */
function bars(scores, states, axis) {
  const kinds = ["accepted", "improved", "draft kept", "rejected", "waiting"];
  const stacks = kinds.map((kind) => counts(finite(scores.filter((_, i) => states[i] === kind)), axis));
  const tallest = Math.max(...stacks[0].map((_, bin) => stacks.reduce((sum, stack) => sum + stack[bin], 0)), 1);
  const base = new Array(BINS).fill(0);
  return kinds.flatMap((kind, k) => stacks[k].flatMap((n, bin) => {
    if (!n) return [];
    const height = (88 * n) / tallest;
    base[bin] += height;
    return [makeSvg("rect", { x: (bin * 100) / BINS + 0.25, width: 100 / BINS - 0.5, y: 100 - base[bin], height, "data-state": kind })];
  }));
}

/**
 * The threshold: by mouse, finger and keyboard.
 * @param {HTMLElement} plot
 * @param {[number, number]} axis
 * @param {(v: number) => number} place
 * @param {number} start
 * @param {{text: (line: number) => string, preview: (line: number|null) => void, commit: ((line: number) => void)|null}} look
 */
function handle(plot, axis, place, start, look) {
  let line = Math.min(axis[1], Math.max(axis[0], start));
  const { commit } = look;
  const grip = make("div", {
    class: "ab-line", role: commit ? "slider" : "img", tabindex: commit ? "0" : null, "aria-label": commit ? "Threshold" : `Threshold ${short(start)}`,
    "aria-orientation": commit ? "horizontal" : null, title: commit ? "Drag, or use the arrow keys: the threshold" : "The threshold",
  }, make("span", { class: "ab-grip", "aria-hidden": "true" }));
  const show = () => {
    grip.style.left = `${place(line)}%`;
    if (!commit) return;
    grip.setAttribute("aria-valuemin", String(axis[0]));
    grip.setAttribute("aria-valuemax", String(axis[1]));
    grip.setAttribute("aria-valuenow", String(line));
    grip.setAttribute("aria-valuetext", look.text(line));
  };
  const move = (/** @type {number} */ to) => {
    line = Math.min(axis[1], Math.max(axis[0], to));
    show();
    look.preview(line);
  };
  show();
  if (!commit) return grip;
  const at = (/** @type {PointerEvent} */ event) => {
    const box = plot.getBoundingClientRect();
    return axis[0] + ((event.clientX - box.left) / box.width) * (axis[1] - axis[0]);
  };
  grip.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    event.preventDefault();
    event.stopPropagation();
    grip.setPointerCapture(event.pointerId);
    grip.focus();
  });
  grip.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (grip.hasPointerCapture(event.pointerId)) move(at(event));
  });
  grip.addEventListener("pointerup", (/** @type {PointerEvent} */ event) => {
    if (!grip.hasPointerCapture(event.pointerId)) return;
    grip.releasePointerCapture(event.pointerId);
    commit(line);
  });
  grip.addEventListener("pointercancel", () => look.preview(null));
  grip.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = ((axis[1] - axis[0]) * (event.shiftKey ? 10 : 1)) / 100;
    const to = { ArrowLeft: line - step, ArrowDown: line - step, ArrowRight: line + step, ArrowUp: line + step,
      PageDown: line - 10 * step, PageUp: line + 10 * step, Home: axis[0], End: axis[1] }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
    commit(line);
  });
  return grip;
}
