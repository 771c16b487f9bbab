import { drawMap, drawReports } from "./audit.js";
import { ask, element, events, find, rememberKey, showProblem } from "./shared.js";

const form = find("ask");
const fields = form.elements;
const PLAIN = [
  "query", "index", "k", "thinking", "n_thoughts", "pooling", "min_relevance", "where", "history", "thoughts",
];
const COMMON = new Set(
  "about after also and any are been but can could does each for from had has have how into its more most not one only other over such than that the their them then there these they this through very was were what when where which while who why will with would your".split(" "),
);
const VIEWS = ["search", "audit"];
let running = null;
let shown = null;
let view = "search";

// The state is in the link's fragment, which no server sees.

function readLink() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const name of PLAIN) if (state.has(name)) fields[name].value = state.get(name);
  fields.hybrid.checked = state.get("hybrid") === "true";
  view = VIEWS.includes(state.get("view")) ? state.get("view") : "search";
  return state.has("query");
}

function writeLink() {
  const state = new URLSearchParams();
  for (const name of PLAIN) {
    const field = fields[name];
    if (field.value && field.value !== field.defaultValue) state.set(name, field.value);
  }
  if (fields.hybrid.checked) state.set("hybrid", "true");
  if (view !== "search") state.set("view", view);
  const link = `#${state}`;
  if (link !== (location.hash || "#")) history.pushState(null, "", link);
}

const lines = (field) => field.value.split("\n").filter((line) => line.trim());

function turns() {
  return lines(fields.history).map((line) => {
    const [, role, content] = line.match(/^\s*(user|assistant|system)\s*:\s*(.*)$/i) ?? [null, "user", line];
    return { role: role.toLowerCase(), content };
  });
}

function request() {
  const body = { query: fields.query.value, history: turns() };
  if (fields.n_thoughts.value) body.thought_settings = { n_thoughts: Number(fields.n_thoughts.value) };
  const search = { ...body, k: Number(fields.k.value) || 5, hybrid: fields.hybrid.checked };
  if (fields.thinking.value) search.thinking = fields.thinking.value;
  if (fields.pooling.value) search.pooling = fields.pooling.value;
  if (fields.min_relevance.value) search.min_relevance = Number(fields.min_relevance.value);
  if (fields.index.value) search.index = fields.index.value;
  if (fields.where.value.trim()) search.where = parsed(fields.where.value);
  if (lines(fields.thoughts).length) search.thoughts = lines(fields.thoughts);
  return [body, search];
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The filter is not JSON (${error.message}); expected one like {"source": "notes.md"}.`);
  }
}

/** Show thoughts while they are written; their texts, and the milliseconds that they took. */
async function showThoughts(body, signal) {
  const started = performance.now();
  const list = find("thoughts");
  const items = [];
  const thoughts = [];
  find("thinking").hidden = false;
  for await (const [name, value] of events(await ask("v1/think", body, signal))) {
    if (name === "error") throw new Error(value.error.message);
    if (name === "done") return { thoughts, thinkMs: performance.now() - started };
    while (items.length <= value.index) {
      items.push(element("li"));
      list.append(items.at(-1));
    }
    const item = items[value.index];
    if (name === "piece") item.append(value.text);
    else {
      writeThought(item, value);
      if (!value.error) thoughts.push(value.text);
    }
  }
  throw new Error("The server ended before the thoughts were written.");
}

function writeThought(item, thought) {
  item.className = thought.error ? "failed" : "";
  const costs = thought.cached ? "from the cache" : thought.tokens ? `${thought.tokens} tokens` : "";
  item.replaceChildren(thought.error ?? thought.text, element("small", {}, costs));
}

const words = (text) => (text.toLowerCase().match(/[\p{L}\p{N}]{3,}/gu) ?? []).filter((word) => !COMMON.has(word));

/** A text as nodes, in which the words of the question and of the thoughts are marked. */
function marked(text, asked, thought) {
  return text.split(/([\p{L}\p{N}]{3,})/u).map((part) => {
    const word = part.toLowerCase();
    if (asked.has(word)) return element("mark", {}, part);
    return thought.has(word) ? element("mark", { className: "thought" }, part) : part;
  });
}

function hitItem(hit, move, nodes) {
  const name = hit.source || hit.id;
  const place = hit.metadata.title ?? hit.metadata.heading;
  const change = move ? changeOf(move) : "";
  const body = element("p", {}, ...nodes);
  const item = element("li", {},
    element("h3", {}, `${hit.rank}. ${place ? `${name}: ${place}` : name}`,
      element("span", { className: `change ${move?.change ?? ""}` }, change),
      element("span", { className: "score" }, scoreOf(hit))),
    body);
  if (hit.text.length > 400) {
    body.className = "long";
    const more = element("button", { type: "button", "aria-expanded": "false" }, "Show all");
    more.addEventListener("click", () => {
      const open = body.classList.toggle("long") === false;
      more.setAttribute("aria-expanded", String(open));
      more.textContent = open ? "Show less" : "Show all";
    });
    item.append(more);
  }
  return item;
}

/** The cosine; and how likely the passage is relevant, where the index tells it. */
function scoreOf(hit) {
  const likely = hit.probability == null ? "" : `${Math.round(hit.probability * 100)} % likely, `;
  return likely + hit.score.toFixed(3);
}

function changeOf(move) {
  const by = move.thoughts.length ? ` (thought ${move.thoughts.join(", ")})` : "";
  const from = move.before ? `was ${move.before}` : "";
  const texts = { new: `new${by}`, gone: "gone", up: `▲ ${from}${by}`, down: `▼ ${from}`, same: "=" };
  return texts[move.change];
}

/** Show what was found; `thinkMs` is what thinking took, where it was shown before. */
function show(found, thinkMs) {
  const { result, without, moves, timings } = found;
  const asked = new Set(words(result.query));
  const thought = new Set(result.thoughts.flatMap((each) => words(each.text)));
  const byId = new Map(moves.map((move) => [move.id, move]));
  if (!result.thoughts.length) find("thinking").hidden = true;
  else if (!find("thoughts").children.length) {
    find("thinking").hidden = false;
    for (const each of result.thoughts) {
      const item = element("li");
      writeThought(item, each);
      find("thoughts").append(item);
    }
  }
  result.thoughts.forEach(({ dropped }, place) => {
    const item = find("thoughts").children[place];
    if (!dropped || !item) return;
    item.className = "dropped";
    item.append(element("small", {}, `left out: ${dropped}`));
  });
  const draw = (hit, move) => hitItem(hit, move, marked(hit.text, asked, thought));
  find("with").replaceChildren(...result.hits.map((hit) => draw(hit, byId.get(hit.id))));
  find("without").replaceChildren(...without.map((hit) => {
    const move = byId.get(hit.id);
    return draw(hit, move?.change === "gone" ? move : null);
  }));
  find("rankings").hidden = false;
  find("verdict").textContent = verdict(found);
  find("timings").textContent = `Thinking ${ms(thinkMs ?? timings.think_ms)}, embedding ${ms(timings.embed_ms)}, searching `
    + `${ms(timings.search_ms)}; without thinking ${ms(timings.without_ms)}.`;
}

function verdict({ result, moves }) {
  if (!result.hits.length) return noneOf(result.search);
  if (!result.thoughts.length) return `Not thought about: ${result.search.reason}.`;
  const counts = ["new", "up", "down", "gone"].map((name) => [moves.filter((move) => move.change === name).length, name]);
  const some = counts.filter(([count]) => count).map(([count, name]) => `${count} ${name}`);
  return some.length ? `Thinking moved: ${some.join(", ")}.` : "Thinking moved nothing here.";
}

function noneOf({ left_out: count, left_out_probability: best }) {
  return count ? `No passage is likely enough: of ${count} the best is ${Math.round(best * 100)} % likely.` : "No passage matches.";
}

const ms = (value) => (value < 10 ? `${value.toFixed(1)} ms` : value < 1000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(1)} s`);

function busy(state) {
  find("results").setAttribute("aria-busy", String(state));
  find("stop").hidden = !state;
  find("go").hidden = state;
}

/** Show the chosen view; what stands behind the answers is asked for when somebody looks at it. */
async function showView() {
  for (const name of VIEWS) {
    if (name === view) find(`to-${name}`).setAttribute("aria-current", "page");
    else find(`to-${name}`).removeAttribute("aria-current");
  }
  find("results").hidden = view !== "search";
  find("audit").hidden = view !== "audit";
  if (view === "audit") await Promise.all([drawMap(shown), drawReports(again)]);
}

/** Ask a question of a report here. */
function again(query) {
  fields.query.value = query;
  view = "search";
  writeLink();
  showView().catch(showProblem);
  search();
}

/** Begin with what the link says. */
function begin() {
  form.reset();
  const asked = readLink();
  showView().catch(showProblem);
  if (asked) search();
}

async function search() {
  running?.abort();
  const mine = running = new AbortController();
  showProblem(null);
  find("thoughts").replaceChildren();
  find("verdict").textContent = find("timings").textContent = "";
  find("thinking").hidden = find("rankings").hidden = true;
  shown = null;
  busy(true);
  try {
    const [body, whole] = request();
    // Where thinking is to be decided by what is found, or there is none, nothing is shown before.
    const aloud = !whole.thoughts && !["never", "auto"].includes(fields.thinking.value);
    const { thoughts, thinkMs } = aloud ? await showThoughts(body, mine.signal) : whole;
    // What has been written is not written again.
    const asked = { ...whole, thoughts };
    show(await (await ask("v1/explain", asked, mine.signal)).json(), thinkMs);
    shown = asked;
    if (view === "audit") await drawMap(shown);
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error);
  } finally {
    if (running === mine) busy(false);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  writeLink();
  search();
});
fields.query.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    fields.query.focus();
  }
});
find("stop").addEventListener("click", () => running?.abort());
for (const name of VIEWS) {
  find(`to-${name}`).addEventListener("click", (event) => {
    event.preventDefault();
    view = name;
    writeLink();
    showView().catch(showProblem);
  });
}
addEventListener("popstate", begin);
rememberKey(find("key"));

const state = await (await fetch("ready")).json();
find("serves").textContent = state.model;
fields.index.append(...state.indexes.map((name) => element("option", {}, name)));
fields.query.focus();
begin();
