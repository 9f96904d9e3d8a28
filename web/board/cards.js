// @ts-check
/** The pictures: thumbnails with score, decision and the artist's word. */

import { address, make, short } from "./dom.js";
import { keptFile, otherFile } from "./state.js";

/** @typedef {import("./state.js").Picture} Picture */

/** How each decision looks and what it is called: never by colour alone. */
export const DECISIONS = {
  waiting: { mark: "…", words: "waiting for the judge" },
  accepted: { mark: "✓", words: "accepted" },
  rejected: { mark: "↻", words: "for the teacher" },
  improved: { mark: "▲", words: "improved by the teacher" },
  "draft kept": { mark: "=", words: "draft kept, the teacher's was not better" },
};

/**
 * What the board shows of a picture now.
 * @param {Picture} picture
 * @param {boolean|null} passes what the gate would say with the widgets as they are
 * @param {import("./overrides.js").Word|undefined} word
 * @returns {{state: keyof typeof DECISIONS, pending: boolean}} pending: only the next run will do so
 */
export function stateOf(picture, passes, word) {
  if (!picture.decision) return { state: "waiting", pending: false };
  const accepted = picture.decision === "accepted";
  const next = word ? word === "accept" : (passes ?? accepted);
  const pending = next !== accepted;
  if (!pending) return { state: /** @type {any} */ (picture.decision), pending };
  return { state: next ? "accepted" : "rejected", pending };
}

/** @param {keyof typeof DECISIONS} state @param {string|undefined} word a pencil where it was said by hand */
export const markOf = (state, word) => `${word ? "✎ " : ""}${DECISIONS[state].mark}`;

/** In words, for whoever doesn't see it. @param {Picture} picture @param {ReturnType<typeof stateOf>} shown @param {string|undefined} word */
function label(picture, shown, word) {
  const score = picture.draft === null ? "no score" : `score ${short(picture.draft)}`;
  const better = picture.decision === "improved" ? `, now ${short(picture.score)}` : "";
  const how = `${DECISIONS[shown.state].words}${shown.pending ? " in the next run" : ""}${word ? ", by hand" : ""}`;
  return `Picture ${picture.index + 1}: ${score}${better}, ${how}${picture.prompt ? `. ${picture.prompt.slice(0, 200)}` : ""}`;
}

/**
 * @param {any} api ComfyUI's
 * @param {Picture} picture
 * @param {boolean|null} passes
 * @param {import("./overrides.js").Word|undefined} word
 * @param {{choose: ((picture: Picture, word: "accept"|"teacher"|"") => void)|null, open: (picture: Picture) => void}} actions
 *   `choose` is null where nothing can be chosen by hand
 * @returns {HTMLElement}
 */
export function card(api, picture, passes, word, actions) {
  const shown = stateOf(picture, passes, word);
  const { words } = DECISIONS[shown.state];
  const [kept, other] = [keptFile(picture), otherFile(picture)];
  const choose = actions.choose && picture.decision && picture.key ? actions.choose : null;
  const hint = choose ? "\nClick: accept. Shift-click: to the teacher. Again: back to the gate." : "";
  const thumb = make(
    "button",
    {
      type: "button", class: "ab-thumb", "data-index": picture.index, "aria-label": label(picture, shown, word),
      "aria-pressed": choose ? String(Boolean(word)) : null,
      title: `${words}${shown.pending ? " (next run)" : ""}${word ? " (by hand)" : ""}\n${picture.prompt}${hint}`,
      onclick: (/** @type {MouseEvent} */ event) => {
        if (choose) choose(picture, event.shiftKey ? "teacher" : "accept");
        else actions.open(picture);
      },
      onkeydown: (/** @type {KeyboardEvent} */ event) => onKey(event, picture, choose, actions.open),
    },
    kept ? make("img", { class: "ab-picture", src: address(api, kept, true), alt: "", draggable: "false", loading: "lazy" }) : null,
    other ? make("img", { class: "ab-picture ab-other", src: address(api, other, true), alt: "", draggable: "false" }) : null,
    make("span", { class: "ab-score" }, picture.decision === "improved" ? `${short(picture.draft)} → ${short(picture.score)}` : short(picture.draft)),
    make("span", { class: "ab-mark" }, markOf(shown.state, word)),
  );
  const zoom = make("button", {
    type: "button", class: "ab-zoom", "aria-label": `Open picture ${picture.index + 1} large`, title: "Open large",
    tabindex: "-1", onclick: () => actions.open(picture),
  }, "⤢");
  return make("div", { class: "ab-card", role: "listitem", "data-state": shown.state, "data-pending": shown.pending }, thumb, zoom);
}

/**
 * @param {KeyboardEvent} event
 * @param {Picture} picture
 * @param {((picture: Picture, word: "accept"|"teacher"|"") => void)|null} choose
 * @param {(picture: Picture) => void} open
 */
function onKey(event, picture, choose, open) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (choose && key === "a") choose(picture, "accept");
  else if (choose && key === "t") choose(picture, "teacher");
  else if (choose && (key === "g" || key === "delete" || key === "backspace")) choose(picture, "");
  else if (key === "o") open(picture);
  else if (!moved(event)) return;
  event.preventDefault();
}

/** Arrows go from picture to picture. @param {KeyboardEvent} event */
function moved(event) {
  const cards = [.../** @type {HTMLElement} */ (event.currentTarget).closest(".ab-grid").querySelectorAll(".ab-thumb")];
  const at = cards.indexOf(/** @type {HTMLElement} */ (event.currentTarget));
  const top = (/** @type {any} */ c) => c.offsetParent.offsetTop;
  const columns = cards.filter((c) => top(c) === top(cards[0])).length || 1;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step === undefined) return false;
  /** @type {any} */ (cards[Math.min(cards.length - 1, Math.max(0, at + step))]).focus();
  return true;
}
