// @ts-check
/** One picture large: before and after under one slider, what is known of it, and the choice by hand as plain buttons. */

import { address, make, short } from "./dom.js";
import { DECISIONS } from "./cards.js";

/** @typedef {import("./state.js").Picture} Picture */

/**
 * Open it; it closes by Escape, its button, or a click beside the picture.
 * @param {any} api ComfyUI's
 * @param {() => Picture[]} pictures as they are now
 * @param {number} start place of the first
 * @param {{choose: ((picture: Picture, word: "accept"|"teacher"|"") => void)|null, word: (picture: Picture) => string|undefined}} by
 * @returns {HTMLDialogElement}
 */
export function openViewer(api, pictures, start, by) {
  let at = start;
  const stage = make("div", { class: "ab-stage" });
  const caption = make("div", { class: "ab-caption", "aria-live": "polite" });
  const actions = make("div", { class: "ab-actions" });
  const close = make("button", { type: "button", class: "ab-button", onclick: () => dialog.close() }, "Close");
  const dialog = make("dialog", {
    class: "ab-viewer", "aria-label": "Picture",
    onclose: () => dialog.remove(),
    onclick: (/** @type {MouseEvent} */ event) => event.target === dialog && dialog.close(),
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      event.stopPropagation(); // ComfyUI's own shortcuts are not meant
      const slider = /** @type {HTMLElement} */ (event.target).matches("input");
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined || slider) return;
      go(step);
      event.preventDefault();
    },
  }, stage, caption, make("div", { class: "ab-foot" },
    make("button", { type: "button", class: "ab-button", "aria-label": "Picture before", onclick: () => go(-1) }, "‹"),
    make("button", { type: "button", class: "ab-button", "aria-label": "Next picture", onclick: () => go(1) }, "›"), actions, close));

  const go = (/** @type {number} */ step) => {
    at = (at + step + pictures().length) % pictures().length;
    show();
  };
  const show = () => {
    const picture = pictures()[at];
    stage.replaceChildren(...layers(api, picture));
    caption.replaceChildren(...facts(picture, by.word(picture)));
    actions.replaceChildren(...choices(picture, by, show));
  };
  show();
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
  return dialog;
}

/** @param {any} api @param {Picture} picture */
function layers(api, picture) {
  const image = (/** @type {any} */ file, /** @type {string} */ alt, more = "") =>
    make("img", { src: address(api, file), alt, class: `ab-large ${more}`, draggable: "false", style: `aspect-ratio: ${file.width} / ${file.height}` });
  if (!picture.before || !picture.after) {
    const file = picture.before ?? picture.after;
    return file ? [image(file, picture.prompt || "the picture")] : [make("p", {}, "This picture was not kept for the board.")];
  }
  const after = image(picture.after, "the teacher's picture", "ab-after");
  const slider = make("input", {
    type: "range", min: "0", max: "100", value: "50", class: "ab-compare", "aria-label": "Draft on the left, the teacher's picture on the right",
    oninput: () => after.style.setProperty("--ab-from", `${slider.value}%`),
  });
  after.style.setProperty("--ab-from", "50%");
  return [make("div", { class: "ab-both" }, image(picture.before, "the draft"), after), slider,
    make("div", { class: "ab-axis" }, make("span", {}, "draft"), make("span", {}, "the teacher's"))];
}

/** @param {Picture} picture @param {string|undefined} word */
function facts(picture, word) {
  const parts = [`#${picture.index + 1}`, `score ${short(picture.draft)}`];
  if (picture.afterScore !== null) parts.push(`the teacher's ${short(picture.afterScore)}`);
  if (picture.threshold !== null) parts.push(`threshold ${short(picture.threshold)}`);
  parts.push(picture.decision ? DECISIONS[/** @type {keyof typeof DECISIONS} */ (picture.decision)].words : "waiting");
  if (word) parts.push(word === "accept" ? "accepted by hand" : "sent to the teacher by hand");
  if (picture.seed) parts.push(`seed ${picture.seed}`);
  if (picture.nfe !== null) parts.push(`${short(picture.nfe)} evaluations`);
  return [make("div", {}, parts.join(" · ")), make("div", { class: "ab-prompt" }, picture.prompt)];
}

/** @param {Picture} picture @param {any} by @param {() => void} show */
function choices(picture, by, show) {
  if (!by.choose || !picture.key || !picture.decision) return [];
  const word = by.word(picture) ?? "";
  return [["accept", "Accept"], ["teacher", "To the teacher"], ["", "Let the gate decide"]].map(([said, text]) =>
    make("button", {
      type: "button", class: "ab-button", "aria-pressed": String(said === word),
      onclick: () => { by.choose(picture, said); show(); },
    }, text));
}
