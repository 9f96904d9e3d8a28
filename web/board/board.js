// @ts-check
/** The Draft Board of one node: what it knows, what it shows, and what it writes into the node's widgets. */

import { card, markOf, stateOf } from "./cards.js";
import { make, short } from "./dom.js";
import { duel } from "./duel.js";
import { costOf, lineAt, passing, settingAt } from "./gate.js";
import { histogram } from "./histogram.js";
import { choose, readOverrides, wordsOf, writeOverrides } from "./overrides.js";
import { emptyBoard, isUnfinished, withEvent, withWhole } from "./state.js";
import { changedMode } from "./units.js";
import { openViewer } from "./viewer.js";

export class DraftBoard {
  /**
   * @param {any} node the node of the graph
   * @param {any} api ComfyUI's
   * @param {{grown: () => void, taste: () => string, rename: (taste: string) => void}} host `grown` is called when the board
   *   needs another height; the taste's name is one of ComfyUI's settings
   */
  constructor(node, api, host) {
    this.node = node;
    this.api = api;
    this.host = host;
    this.board = emptyBoard();
    /** @type {HTMLElement|null} preference mode, while it is on: it keeps its pairs, whatever the board is told meanwhile */
    this.taste = null;
    /** @type {number|null} where the line is while it is dragged */
    this.dragged = null;
    this.element = make("div", {
      class: "ab-board", role: "group", "aria-label": "Draft Board",
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        // Delete and the like are meant for a picture here, not for the node; shortcuts with Ctrl stay ComfyUI's.
        if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
      },
      oncontextmenu: (/** @type {Event} */ event) => event.stopPropagation(),
    });
    this.element.dataset.filled = "false";
    this.render();
  }

  /** @param {string} name */
  widget(name) {
    return this.node.widgets?.find((/** @type {any} */ w) => w.name === name);
  }

  /** @param {string} name @param {unknown} value */
  write(name, value) {
    const widget = this.widget(name);
    if (!widget) return;
    widget.value = value;
    this.node.graph?.setDirtyCanvas?.(true, true);
  }

  /** Whether this node has a gate of its own to move; Keep Better has none. */
  get hasGate() {
    return Boolean(this.widget("threshold") && this.widget("overrides"));
  }

  /** Whether a wire gives what a widget says otherwise: then the widget's value is nobody's. @param {string} name */
  wired(name) {
    return Boolean(this.node.inputs?.some((/** @type {any} */ i) => (i.widget?.name ?? i.name) === name && (i.link ?? null) !== null));
  }

  /** Whether pictures can be chosen by hand here. */
  get choosable() {
    return this.hasGate && !this.wired("overrides");
  }

  get words() {
    if (this.wired("overrides")) return wordsOf(this.board);
    return readOverrides(this.widget("overrides")?.value);
  }

  /** Mode and value as the widgets have them now; what comes over a wire, as the last run had it. */
  get setting() {
    if (!this.hasGate) return { mode: this.board.mode, value: this.board.value };
    const mode = this.wired("threshold") ? this.board.mode : String(this.widget("threshold").value);
    return { mode, value: this.wired("value") ? this.board.value : Number(this.widget("value")?.value) };
  }

  /** What the widgets say now, to see whether something else has changed it. */
  get written() {
    return JSON.stringify([this.setting, this.widget("overrides")?.value, this.widget("stop_after_judging")?.value]);
  }

  /** @param {any} event the server's, while it runs */
  live(event) {
    this.board = withEvent(this.board, event);
    this.render();
  }

  /** @param {any} whole the node's result */
  done(whole) {
    this.board = withWhole(this.board, whole);
    if (this.taste?.querySelector("[data-over='true']")) this.teach(); // it waits for more pictures
    this.render();
  }

  /** Anew, from results that were there before. @param {any[]} wholes the judge's first; none where they are gone */
  fill(wholes) {
    this.board = wholes.reduce(withWhole, emptyBoard());
    this.render();
  }

  /** When a run ends without a result: cancelled, or failed. */
  ended() {
    if (!this.board.running) return;
    this.board = { ...this.board, running: false };
    this.render();
  }

  /** The artist changed the kind of threshold: a number of another unit would mean something else. @param {string} before */
  modeChanged(before) {
    const { mode, value } = this.setting;
    if (before !== mode && !this.wired("value")) this.write("value", changedMode(this.board, before, mode, value));
    this.render();
  }

  /** @param {import("./state.js").Picture} picture @param {"accept"|"teacher"|""} word */
  choose(picture, word) {
    this.write("overrides", writeOverrides(choose(this.words, picture.key, word)));
    this.render();
  }

  /** @param {number} line */
  commit(line) {
    const setting = settingAt(this.board, this.setting.mode, line);
    this.dragged = null;
    if (setting) {
      this.write("threshold", setting.mode);
      this.write("value", setting.value);
    }
    this.render();
  }

  /** Mode and value that the next run would have: the widgets', or the line's while it is dragged. */
  get next() {
    return this.dragged === null ? this.setting : settingAt(this.board, this.setting.mode, this.dragged);
  }

  /** Who would pass by that. @returns {(boolean|null)[]} */
  passes() {
    const set = this.next;
    const pass = set && passing(this.board, set.mode, set.value);
    return this.board.pictures.map((p, i) => (pass ? pass[i] : p.passes));
  }

  /** Everything anew; what had the focus keeps it. */
  render() {
    if (this.taste && this.taste.parentElement === this.element) return;
    const focused = focusOf(this.element);
    this.element.replaceChildren(...this.parts());
    if (focused) /** @type {any} */ (this.element.querySelector(focused))?.focus();
    const filled = String(this.board.pictures.length > 0);
    if (this.element.dataset.filled !== filled) {
      this.element.dataset.filled = filled;
      this.host.grown();
    }
  }

  /** @returns {Node[]} */
  parts() {
    const { board } = this;
    if (this.taste) return [this.taste];
    if (!board.pictures.length) {
      const why = this.hasGate ? "The drafts appear here as they are judged." : "Drafts and improvements appear here.";
      return [make("p", { class: "ab-empty" }, why), ...(this.hasGate ? [this.foot()] : [])];
    }
    const passes = this.passes();
    const words = this.words;
    const actions = { choose: this.choosable ? (...a) => this.choose(...a) : null, open: (...a) => this.open(...a) };
    const cards = board.pictures.map((p, i) => card(this.api, p, passes[i], words.get(p.key), actions));
    const grid = make("div", { class: "ab-grid", role: "list", "aria-label": "Pictures" }, ...cards);
    return [grid, this.chart(passes), this.say(passes), this.foot()].filter((part) => part !== null);
  }

  /** @param {(boolean|null)[]} passes */
  chart(passes) {
    const { mode, value } = this.setting;
    const words = this.words;
    const line = this.dragged ?? lineAt(this.board, mode, value);
    const there = this.hasGate && !this.wired("value") && this.board.pictures.some((p) => p.draft !== null) && settingAt(this.board, mode, 0);
    const movable = there && (there.mode === mode || !this.wired("threshold"));
    return histogram(this.board, {
      mode, line, states: this.board.pictures.map((p, i) => stateOf(p, passes[i], words.get(p.key)).state),
      text: (at) => this.ahead(settingAt(this.board, mode, at)),
      preview: (at) => { this.dragged = at; this.refresh(); },
      commit: movable ? (...a) => this.commit(...a) : null,
    });
  }

  /** While the line is dragged: all but the chart, which holds the pointer. */
  refresh() {
    const passes = this.passes();
    const words = this.words;
    this.element.querySelectorAll(".ab-card").forEach((element, i) => {
      const p = this.board.pictures[i];
      const shown = stateOf(p, passes[i], words.get(p.key));
      /** @type {HTMLElement} */ (element).dataset.state = shown.state;
      element.toggleAttribute("data-pending", shown.pending);
      /** @type {HTMLElement} */ (element.querySelector(".ab-mark")).textContent = markOf(shown.state, words.get(p.key));
    });
    this.element.querySelector(".ab-say")?.replaceWith(this.say(passes));
  }

  /** What a setting would do, in words. @param {{mode: string, value: number}|null} setting */
  ahead(setting) {
    const pass = setting && passing(this.board, setting.mode, setting.value);
    if (!setting || !pass) return "";
    const words = this.words;
    const rejected = this.board.pictures.filter((p, i) => (words.has(p.key) ? words.get(p.key) === "teacher" : !pass[i])).length;
    const cost = costOf(this.board, rejected);
    const price = cost === null ? "" : `, ${short(cost)} evaluations a picture`;
    return `${setting.mode} ${short(setting.value)}: ${rejected} of ${pass.length} to the teacher${price}`;
  }

  /** @param {(boolean|null)[]} passes */
  say(passes) {
    const { board } = this;
    const words = this.words;
    const pending = board.pictures.some((p, i) => stateOf(p, passes[i], words.get(p.key)).pending);
    const set = this.next;
    const changed = pending || this.dragged !== null || (set && (set.mode !== board.mode || set.value !== board.value));
    const done = board.pictures.filter((p) => p.decision || p.draft !== null).length;
    let text = board.summary;
    if (board.running) text = board.stage === "improved" ? "The teacher's pictures are judged…" : `${done} of ${board.total} judged…`;
    else if (isUnfinished(board)) text = "The run ended before the verdict: queue again.";
    else if (changed && set) text = `Next run: ${this.ahead(set) || `${set.mode} ${short(set.value)}`}. Queue to apply it; drafts and scores are kept.`;
    else if (board.stopped) text = `${board.summary} Stopped after judging: choose, switch the stop off, and queue again.`;
    return make("div", { class: "ab-say", role: "status" }, text);
  }

  foot() {
    const by = this.words.size;
    const stop = this.wired("stop_after_judging") ? null : this.widget("stop_after_judging");
    return make("div", { class: "ab-foot" },
      stop ? make("label", { class: "ab-check", title: "Run to the judge and no further: the teacher is not loaded" },
        make("input", { type: "checkbox", class: "ab-stop", ...(stop.value ? { checked: true } : {}),
          onchange: (/** @type {any} */ event) => { this.write("stop_after_judging", event.target.checked); this.render(); } }),
        "Stop after judging") : null,
      by && this.choosable ? make("button", { type: "button", class: "ab-button ab-reset", title: this.listed(),
        onclick: () => { this.write("overrides", ""); this.render(); } }, `Reset ${by} by hand`) : null,
      this.board.pictures.length ? make("button", { type: "button", class: "ab-button ab-to-taste", title: "Click the better of two: teaches a taste",
        onclick: () => { this.teach(); /** @type {any} */ (this.taste?.querySelector(".ab-contender"))?.focus(); } }, "Teach a taste") : null);
  }

  /** Preference mode, on the pictures that are there now. */
  teach() {
    const close = () => { this.taste = null; this.render(); };
    this.taste = duel(this.api, this.board, { name: this.host.taste(), rename: this.host.rename, close });
    this.element.replaceChildren(this.taste);
  }

  /** All choices by hand, those of pictures that aren't on the board too. */
  listed() {
    const places = new Map(this.board.pictures.map((p) => [p.key, `#${p.index + 1}`]));
    return [...this.words].map(([key, word]) => `${places.get(key) ?? key}: ${word === "accept" ? "accepted" : "to the teacher"}`).join("\n");
  }

  /** @param {import("./state.js").Picture} picture */
  open(picture) {
    openViewer(this.api, () => this.board.pictures, picture.index, {
      choose: this.choosable ? (...a) => this.choose(...a) : null, word: (p) => this.words.get(p.key),
    });
  }
}

/** A selector of what has the focus within `element`, to find its successor by. @param {HTMLElement} element */
function focusOf(element) {
  const active = /** @type {HTMLElement} */ (document.activeElement);
  if (!active || !element.contains(active)) return null;
  if (active.dataset.index !== undefined) return `.ab-thumb[data-index="${active.dataset.index}"]`;
  return active.classList.length ? `.${[...active.classList].join(".")}` : null;
}
