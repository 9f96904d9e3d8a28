// @ts-check
/** What a board knows: put together from what arrives while it runs, and from the whole at the end. */

/**
 * @typedef {{filename: string, subfolder: string, type: string, width: number, height: number, thumb: string}} File
 * @typedef {Object} Picture
 * @property {number} index
 * @property {string} key name of the draft, for choices by hand
 * @property {number|null} score of what is kept; null where it can't be told, or not yet
 * @property {number|null} draft the draft's own score
 * @property {number|null} threshold
 * @property {number|null} baseline
 * @property {boolean|null} passes what the gate alone says; null while it is judged
 * @property {string} decision "" while it is judged
 * @property {string} override what was said by hand when it ran
 * @property {string} prompt
 * @property {string} seed
 * @property {number|null} nfe
 * @property {File|null} before the draft
 * @property {File|null} after the teacher's picture
 * @property {number|null} afterScore of the teacher's picture, where it is known
 * @property {string} afterKey its name
 *
 * @typedef {Object} Board
 * @property {string} stage "", "judged" or "improved"
 * @property {string} run the prompt's id
 * @property {number} total
 * @property {boolean} running
 * @property {Picture[]} pictures in the batch's order
 * @property {string} mode
 * @property {number} value
 * @property {number|null} threshold
 * @property {string} oracle
 * @property {string} summary
 * @property {boolean} stopped
 * @property {{student: number|null, teacher: number|null}} costs network evaluations a picture
 * @property {{scores: number[]}|null} calibration
 */

/** @returns {Board} */
export function emptyBoard() {
  return {
    stage: "", run: "", total: 0, running: false, pictures: [], mode: "", value: 0, threshold: null, oracle: "", summary: "",
    stopped: false, costs: { student: null, teacher: null }, calibration: null,
  };
}

/**
 * A picture as it arrives, over what was there before.
 * @param {any} told as the server tells it, perhaps in part
 * @param {string} stage
 * @param {Picture|undefined} before
 * @returns {Picture}
 */
function picture(told, stage, before) {
  const decided = told.decision !== undefined;
  const teachers = stage === "improved" && !decided && told.improved !== undefined;  // the score is the teacher's picture's
  const score = told.score ?? null;
  return {
    index: told.index,
    key: teachers ? (before?.key ?? "") : (told.key ?? before?.key ?? ""),
    score: teachers ? (before?.score ?? null) : score,
    draft: teachers ? (before?.draft ?? null) : (told.draft_score ?? score),
    threshold: told.threshold ?? before?.threshold ?? null,
    baseline: told.baseline ?? before?.baseline ?? null,
    passes: told.passes ?? before?.passes ?? null,
    decision: told.decision ?? before?.decision ?? "",
    override: told.override ?? before?.override ?? "",
    prompt: told.prompt ?? before?.prompt ?? "",
    seed: told.seed === undefined || told.seed === null ? (before?.seed ?? "") : String(told.seed),
    nfe: told.nfe ?? before?.nfe ?? null,
    before: told.draft ?? before?.before ?? null,
    after: told.improved ?? before?.after ?? null,
    afterScore: teachers ? score : told.decision === "improved" ? score : (before?.afterScore ?? null),
    afterKey: teachers ? (told.key ?? "") : told.improved_key || (before?.afterKey ?? ""),
  };
}

/**
 * After a live event. Another run, or the judge's first word, begins anew.
 * @param {Board} board
 * @param {any} event
 * @returns {Board}
 */
export function withEvent(board, event) {
  const anew = event.prompt_id !== board.run || (event.stage === "judged" && board.stage === "improved");
  const kept = anew ? [] : board.pictures;
  /** @type {Picture[]} */
  const pictures = Array.from({ length: event.total }, (_, i) => kept[i] ?? picture({ index: i }, "judged", undefined));
  for (const told of event.pictures) pictures[told.index] = picture(told, event.stage, kept[told.index]);
  const facts = anew ? { ...emptyBoard(), mode: board.mode, value: board.value, calibration: board.calibration } : board;
  return { ...facts, stage: event.stage, run: event.prompt_id, total: event.total, running: true, pictures };
}

/**
 * After the node's result: all is known. What Keep Better does not know of, the judge's calibration and costs, stays.
 * @param {Board} board
 * @param {any} whole
 * @returns {Board}
 */
export function withWhole(board, whole) {
  const same = board.pictures.length === whole.pictures.length;
  const keptCalibration = whole.stage === "improved" && same ? board.calibration : null;
  return {
    ...board, stage: whole.stage, total: whole.pictures.length, running: false, mode: whole.mode, value: whole.value,
    threshold: whole.threshold, oracle: whole.oracle, summary: whole.summary, stopped: whole.stopped,
    costs: {
      student: whole.costs?.student ?? (same ? board.costs.student : null),
      teacher: whole.costs?.teacher ?? (same ? board.costs.teacher : null),
    },
    calibration: whole.calibration ?? keptCalibration,
    pictures: whole.pictures.map((/** @type {any} */ told, /** @type {number} */ i) =>
      picture(told, whole.stage, whole.stage === "improved" && same ? board.pictures[i] : undefined)),
  };
}

/** Whether the run ended, cancelled or failed, before there was a verdict. @param {Board} board */
export const isUnfinished = (board) => !board.running && board.pictures.some((p) => !p.decision);

/** Which of the two pictures stays. @param {Picture} p @returns {File|null} */
export const keptFile = (p) => (p.decision === "improved" ? (p.after ?? p.before) : (p.before ?? p.after));

/** The other one, where there is one. @param {Picture} p @returns {File|null} */
export const otherFile = (p) => (p.before && p.after ? (p.decision === "improved" ? p.before : p.after) : null);

/**
 * Pairs to choose between for a taste: draft and improvement first, then drafts of one prompt, each picture beside the next.
 * @param {Board} board
 * @returns {{prompt: string, a: {key: string, file: File}, b: {key: string, file: File}}[]}
 */
export function pairsOf(board) {
  const pairs = [];
  /** @type {Map<string, {key: string, file: File}[]>} */
  const byPrompt = new Map();
  for (const p of board.pictures) {
    if (p.before && p.after && p.afterKey) {
      pairs.push({ prompt: p.prompt, a: { key: p.key, file: p.before }, b: { key: p.afterKey, file: p.after } });
    }
    if (p.before) byPrompt.set(p.prompt, [...(byPrompt.get(p.prompt) ?? []), { key: p.key, file: p.before }]);
  }
  for (const [prompt, drafts] of byPrompt) {
    for (let i = 0; i + 1 < drafts.length; i++) pairs.push({ prompt, a: drafts[i], b: drafts[i + 1] });
  }
  return pairs.filter(({ a, b }) => a.key !== b.key);
}
