// @ts-check
/** Preference mode: two pictures of one prompt, and the artist clicks the better. The clicks teach a taste (ApprenticeTaste). */

import { address, make } from "./dom.js";
import { pairsOf } from "./state.js";

const NAME = /^[\p{L}\p{N}][\p{L}\p{N} ._-]{0,63}$/u;

/**
 * @param {any} api ComfyUI's
 * @param {import("./state.js").Board} board
 * @param {{name: string, rename: (name: string) => void, close: () => void}} options
 * @returns {HTMLElement}
 */
export function duel(api, board, options) {
  const pairs = pairsOf(board);
  let at = 0;
  let busy = false; // a key that is held down is one click
  /** @type {number[]} places of the pairs that were clicked here */
  const clicked = [];
  const field = make("div", { class: "ab-duel" });
  const say = make("span", { class: "ab-say", "aria-live": "polite" });
  const name = make("input", {
    class: "ab-name", value: options.name, "aria-label": "Name of the taste", title: "The taste that these clicks teach",
    onchange: () => { options.rename(name.value.trim()); clicked.length = 0; count(); },
    onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
  });

  const ask = async (/** @type {string} */ what, /** @type {any} */ init = {}, named = what !== "") => {
    if (!NAME.test(name.value.trim())) throw new Error("The taste needs a name of letters and digits.");
    const route = named ? `/${encodeURIComponent(name.value.trim())}${what}` : "";
    const answer = await api.fetchApi(`/apprentice/taste${route}`, init);
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(content.error ?? `ComfyUI answered ${answer.status}: restart it, if Apprentice is newer than it.`);
    return content;
  };
  const copy = make("a", { class: "ab-button", download: "taste.jsonl", title: "A copy of the file with your clicks" }, "Copy");
  const forget = make("button", { type: "button", class: "ab-button", title: "Delete the file with these clicks", onclick: () => erase() }, "Forget");
  const told = (/** @type {any} */ content) => {
    say.textContent = `${content.clicks} clicks on ${content.pictures} pictures`;
    copy.href = api.apiURL(`/apprentice/taste/${encodeURIComponent(name.value.trim())}/file`);
    copy.hidden = forget.hidden = !content.pictures;
  };
  const tried = (/** @type {() => Promise<void>} */ work) => work().catch((error) => { say.textContent = error.message; });
  const guard = async (/** @type {() => Promise<void>} */ work) => {
    if (busy) return;
    busy = true;
    await tried(work);
    busy = false;
  };
  const count = () => tried(async () => {
    const { names } = await ask("");
    told(names[name.value.trim()] ?? { clicks: 0, pictures: 0 });
  });
  const choose = (/** @type {string} */ better, /** @type {string} */ worse) => guard(async () => {
    told(await ask("/clicks", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ better, worse }) }));
    clicked.push(at);
    go(at + 1);
  });
  const undo = () => guard(async () => {
    told(await ask("/undo", { method: "POST" }));
    go(clicked.pop() ?? at);
  });
  const erase = () => guard(async () => {
    if (!window.confirm(`Delete all clicks of the taste "${name.value.trim()}"?`)) return;
    await ask("", { method: "DELETE" }, true);
    clicked.length = 0;
    await count();
  });
  const go = (/** @type {number} */ place) => {
    at = place;
    show();
    /** @type {any} */ (field.querySelector(".ab-contender"))?.focus();
  };

  const skip = () => !busy && at < pairs.length && go(at + 1);

  const contender = (/** @type {{key: string, file: any}} */ one, /** @type {{key: string}} */ other, /** @type {string} */ side) =>
    make("button", {
      type: "button", class: "ab-contender", "aria-label": `The ${side} picture is better`, onclick: () => choose(one.key, other.key),
    }, make("img", { src: address(api, one.file), alt: `the ${side} picture`, draggable: "false" }));
  const show = () => {
    field.dataset.over = String(at >= pairs.length);
    if (at >= pairs.length) {
      const why = pairs.length ? "That was the last pair of this batch: draw more, or go back." : "There are no two pictures of one prompt on the board yet.";
      field.replaceChildren(make("p", { class: "ab-empty" }, why));
      return;
    }
    const { a, b, prompt } = pairs[at];
    const [left, right] = at % 2 ? [b, a] : [a, b]; // the teacher's picture is not always on the same side
    field.replaceChildren(
      make("div", { class: "ab-pair" }, contender(left, right, "left"), contender(right, left, "right")),
      make("div", { class: "ab-prompt" }, `${at + 1} of ${pairs.length}: which is better? ${prompt}`));
  };
  const onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.target === name || event.ctrlKey || event.metaKey) return;
    const side = { ArrowLeft: 0, ArrowRight: 1 }[event.key];
    if (side !== undefined) /** @type {any} */ (field.querySelectorAll(".ab-contender")[side])?.click();
    else if (event.key === "ArrowDown") skip();
    else return;
    event.preventDefault();
  };
  show();
  count();
  return make("div", { class: "ab-taste", role: "group", "aria-label": "Preference mode", onkeydown }, field,
    make("div", { class: "ab-foot" }, name,
      make("button", { type: "button", class: "ab-button", title: "Neither, or can't tell (arrow down)", onclick: skip }, "Skip"),
      make("button", { type: "button", class: "ab-button", title: "Take the last click back", onclick: undo }, "Undo"), copy, forget, say,
      make("button", { type: "button", class: "ab-button", onclick: options.close }, "Back to the board")));
}
