// @ts-check
/**
 * Apprentice in the browser: the Draft Board on the nodes that judge, and each node's result in words.
 *
 * What other packs broke with is left alone: no prototype of the graph library is changed, nothing is drawn on the canvas
 * (Vue nodes don't ask for it), and the running node is told by the server's events, not by the app's private state.
 * Without this file the nodes work as they are.
 */

// @ts-ignore: ComfyUI's own
import { api } from "../../scripts/api.js";
// @ts-ignore
import { app } from "../../scripts/app.js";
import { DraftBoard } from "./board/board.js";
import { asWideAsItsNode, make } from "./board/dom.js";
import { watchCache } from "./board/history.js";
import { readOverrides } from "./board/overrides.js";
import { showText } from "./results.js";
import { mendWhenRead } from "./saved_values.js";

const JUDGES = new Set(["ApprenticeJudge", "ApprenticeKeepBetter", "ApprenticeSampler", "ApprenticeExplore"]);
const SHOW = "Apprentice.Board.Show";
const TASTE = "Apprentice.Taste.Name";
const EMPTY = 64; // pixels of height, of a board without pictures and with
const FILLED = 400;

/** @type {Map<any, DraftBoard>} */
const boards = new Map();

/** @param {string} id @param {any} fallback */
const setting = (id, fallback) => app.extensionManager?.setting?.get(id) ?? fallback;

/** The node of an id as the server has it: "10:3" is node 3 in the subgraph that node 10 is. @param {string} id */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Undo, another tab and the queue's list make the nodes anew; the app then gives their results again. @param {Record<string, any>} outputs */
function refill(outputs) {
  for (const [node, board] of boards) {
    const inner = node.graph && node.graph !== (app.rootGraph ?? app.graph);
    const output = outputs?.[inner ? `${node.graph.id}:${node.id}` : node.id];
    if (!board.board.pictures.length && output?.apprentice_board) board.fill(output.apprentice_board);
  }
}

/** @param {any} node */
function addBoard(node) {
  const board = new DraftBoard(node, api, {
    grown: () => fit(node, board),
    taste: () => setting(TASTE, "my taste"),
    rename: (name) => app.extensionManager?.setting?.set(TASTE, name),
  });
  const height = () => (board.board.pictures.length ? FILLED : EMPTY);
  const widget = node.addDOMWidget("apprentice_board", "apprentice_board", board.element, {
    serialize: false, hideOnZoom: false, getMinHeight: height, getValue: () => "", setValue: () => {},
  });
  asWideAsItsNode(widget);
  widget.serialize = false; // neither in the prompt nor in the workflow: a saved file stays as it was
  boards.set(node, board);
  hide(board.widget("overrides"));
  watch(board);
  fit(node, board); // a file that is opened says another size afterwards
  const { onRemoved, onConfigure } = node;
  node.onRemoved = function (/** @type {any[]} */ ...args) {
    boards.delete(node);
    return onRemoved?.apply(this, args);
  };
  node.onConfigure = function (/** @type {any[]} */ ...args) {
    const result = onConfigure?.apply(this, args);
    const overrides = board.widget("overrides");
    // A file of version 0.4.0 may hold the node's old progress text in this place.
    if (overrides && !readOverrides(overrides.value).size) overrides.value = "";
    board.render(); // the widgets have their saved values now
    return result;
  };
}

/** A widget that the board writes for the artist. @param {any} widget */
function hide(widget) {
  if (!widget) return;
  widget.hidden = true;
  widget.options = { ...widget.options, hidden: true };
  widget.computeSize = () => [0, -4];
}

/** Look when the artist changes the gate's own widgets. @param {DraftBoard} board */
function watch(board) {
  if (!board.hasGate) return;
  let before = board.setting.mode;
  let look = board.written;
  for (const name of ["threshold", "value", "stop_after_judging"]) {
    const widget = board.widget(name);
    if (!widget) continue;
    const { callback } = widget;
    widget.callback = function (/** @type {any[]} */ ...args) {
      const result = callback?.apply(this, args);
      if (name === "threshold") board.modeChanged(before);
      else board.render();
      before = board.setting.mode;
      return result;
    };
  }
  // Other nodes' wires and undo change widgets without a word; the look is renewed when the artist comes to the board.
  const renew = () => {
    if (board.dragged !== null || look === board.written) return;
    look = board.written;
    before = board.setting.mode;
    board.render();
  };
  board.element.addEventListener("pointerenter", renew);
}

/** Room for what the board shows now; a node is never made smaller. @param {any} node @param {DraftBoard} board */
function fit(node, board) {
  board.element.style.minHeight = `${board.board.pictures.length ? FILLED : EMPTY}px`;
  const [width, height] = node.computeSize?.() ?? node.size;
  node.setSize?.([Math.max(node.size[0], width, board.board.pictures.length ? 400 : 0), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "Apprentice",
  settings: [
    {
      id: SHOW, name: "Show the Draft Board on Judge, Keep Better and Apprentice Sampler", type: "boolean", defaultValue: true,
      category: ["Apprentice", "Draft Board", "Show"], tooltip: "For nodes that are added, or opened, from now on.",
    },
    {
      id: TASTE, name: "The taste that clicks on the Draft Board teach", type: "text", defaultValue: "my taste",
      category: ["Apprentice", "Draft Board", "Taste"],
    },
  ],

  setup() {
    const style = new URL("./board/board.css", import.meta.url).href;
    document.head.append(make("link", { rel: "stylesheet", href: style }));
    api.addEventListener("apprentice.board", (/** @type {CustomEvent} */ { detail }) => boards.get(nodeOf(detail.node))?.live(detail));
    watchCache(api, (id) => boards.get(nodeOf(id)));
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, () => boards.forEach((board) => board.ended()));
    }
  },

  onNodeOutputsUpdated: refill,

  /** @param {any} node */
  nodeCreated(node) {
    if (!String(node.comfyClass ?? "").startsWith("Apprentice")) return;
    mendWhenRead(node);
    const judges = JUDGES.has(node.comfyClass) && setting(SHOW, true);
    if (judges) addBoard(node);
    const { onExecuted } = node;
    node.onExecuted = function (/** @type {any} */ output) {
      const result = onExecuted?.apply(this, [output]);
      const whole = output?.apprentice_board?.[0];
      if (whole && boards.has(node)) boards.get(node)?.done(whole);
      else if (output?.apprentice_text && !boards.has(node)) showText(node, output.apprentice_text.join("\n"));
      return result;
    };
  },
});
