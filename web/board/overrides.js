// @ts-check
/** The artist's choices by hand, as the node's `overrides` widget holds them: {"v": 1, "by": {key: "accept" | "teacher"}}. */

/** @typedef {"accept"|"teacher"} Word */

/**
 * @param {unknown} text the widget's value
 * @returns {Map<string, Word>} empty where it says nothing, as another node's text does
 */
export function readOverrides(text) {
  if (typeof text !== "string" || !text.trimStart().startsWith("{")) return new Map();
  try {
    const { by } = JSON.parse(text);
    const words = Object.entries(by).filter(([key, word]) => /^[0-9a-f]{16}$/.test(key) && (word === "accept" || word === "teacher"));
    return new Map(/** @type {[string, Word][]} */ (words));
  } catch {
    return new Map();
  }
}

/** What was said when it ran. @param {import("./state.js").Board} board @returns {Map<string, Word>} */
export const wordsOf = (board) => new Map(/** @type {[string, Word][]} */ (board.pictures.filter((p) => p.override).map((p) => [p.key, p.override])));

/** @param {Map<string, Word>} words */
export function writeOverrides(words) {
  return words.size ? JSON.stringify({ v: 1, by: Object.fromEntries(words) }) : "";
}

/**
 * The same choices after one more: said twice, the word is taken back, and the gate decides again.
 * @param {Map<string, Word>} words
 * @param {string} key
 * @param {Word|""} word "" takes back whatever was said
 */
export function choose(words, key, word) {
  const next = new Map(words);
  if (word === "" || words.get(key) === word) next.delete(key);
  else next.set(key, word);
  return next;
}
