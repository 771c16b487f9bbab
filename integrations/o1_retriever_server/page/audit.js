// What stands behind the answers: a question among its passages in a plane, and the reports of `o1-retriever eval`.
import { ask, drawing, element, find } from "./shared.js";

const NAMES = { query: "question", mean: "with thoughts" };
const short = (text) => (text.length > 160 ? `${text.slice(0, 160)}…` : text);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
const FIRST = 3;
let drawn = null;

/** Draw the vectors of a search; null where nothing has been asked yet. */
export async function drawMap(asked) {
  find("map").hidden = !asked;
  if (!asked) find("map-said").textContent = "Ask a question above: then it is drawn here, with its thoughts and its passages.";
  if (!asked || asked === drawn) return;
  const { points, shown } = await (await ask("v1/map", asked)).json();
  drawn = asked;
  const at = placing(points), size = innerWidth < 704 ? 2 : 1;
  const placed = points.map((point) => ({ ...point, ...at(point) }));
  const of = (kind) => placed.find((point) => point.kind === kind);
  const way = of("mean") ? [drawing("line", { x1: of("query").x, y1: of("query").y, x2: of("mean").x, y2: of("mean").y })] : [];
  find("plane").replaceChildren(...way, ...placed.map((point) => dot(point, size)), ...named(placed, size));
  find("map-key").replaceChildren(...placed.filter(({ kind }) => kind !== "mean").map((point) => element("li", {},
    element("b", { className: point.kind }, nameOf(point)), ` ${short(point.label)}`)));
  find("map-said").textContent = "Where the question lies alone (diamond), with each of its thoughts (T1 to Tn), with all of them (square), and the "
    + `passages by their ranks (rings). Of how they differ, ${(100 * shown).toFixed(0)} % is in this plane.`;
}

const nameOf = ({ kind, number }) => NAMES[kind] ?? (kind === "thought" ? `T${number}` : `${number}`);

/** From a point of the server to its place in the picture: the same scale both ways, centred. */
function placing(points) {
  const range = (values) => [Math.min(...values), Math.max(...values)];
  const [left, right] = range(points.map(({ x }) => x));
  const [low, high] = range(points.map(({ y }) => y));
  const scale = Math.min(460 / (right - left || 1), 350 / (high - low || 1));
  return ({ x, y }) => ({ x: 280 + scale * (x - (left + right) / 2), y: 210 - scale * (y - (low + high) / 2) });
}

function dot({ kind, label, x, y }, size) {
  const r = 6 * size;
  const shape = {
    query: () => drawing("path", { d: `M${x} ${y - 1.5 * r}l${1.5 * r} ${1.5 * r}l${-1.5 * r} ${1.5 * r}l${-1.5 * r} ${-1.5 * r}z` }),
    mean: () => drawing("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r }),
    thought: () => drawing("circle", { cx: x, cy: y, r }),
    passage: () => drawing("circle", { cx: x, cy: y, r: r - 1 }),
  }[kind]();
  shape.setAttribute("class", kind);
  shape.append(Object.assign(drawing("title", {}), { textContent: label }));
  return shape;
}

/** The names beside the dots, moved down where they would lie on another dot or name. */
function named(placed, size) {
  const line = 13 * size;
  const taken = placed.map(({ x, y }) => ({ x: x - 7 * size, y: y + 4 * size, width: 14 * size }));
  return [...placed].sort((one, other) => one.y - other.y).map((point) => {
    const x = point.x + 11 * size, name = nameOf(point), width = 8 * size * name.length;
    let y = point.y + 4 * size;
    while (taken.some((other) => Math.abs(other.y - y) < line && x < other.x + other.width && other.x < x + width)) y += line;
    taken.push({ x, y, width });
    return Object.assign(drawing("text", { x, y, "font-size": line }), { textContent: name });
  });
}

/** Show the reports that the server has; `again` asks one of their questions here. */
export async function drawReports(again) {
  const found = await (await ask("v1/reports")).json();
  find("reports").replaceChildren(...(found.length ? found.map((each) => report(each, again)) : [element("p", {},
    "This server was started without a report. Type: ", element("code", {}, "o1-retriever eval --data FOLDER --control --report REPORT"),
    " and ", element("code", {}, "o1-retriever serve --report REPORT"))]));
}

function report(found, again) {
  const { collection, split, queries, documents, measure, systems, helped, hurt } = found;
  const audited = systems.filter(({ controls }) => controls.length);
  const ends = audited.flatMap(({ controls }) => controls.flatMap(({ low, high }) => [low, high]));
  const range = [Math.min(0, ...ends), Math.max(0, ...ends)];
  return element("section", { className: "report" },
    element("h3", {}, `${collection}, ${split}`),
    element("p", { className: "quiet" }, `${queries} queries, ${documents} documents, compared by ${measure}.`),
    ...(audited.length ? audited.map((each) => audit(each, measure, range)) : [element("p", {}, "It has no controls: the report was made without --control.")]),
    element("h4", {}, "All systems"),
    table(`All systems of ${collection}`, ["system", measure, "95 %"],
      systems.map(({ name, mean, interval: [low, high] }) => [name, mean.toFixed(3), `${low.toFixed(3)} to ${high.toFixed(3)}`])),
    element("div", { className: "columns" },
      questions("Thinking helps most", helped, again), questions("Thinking hurts most", hurt, again)));
}

function audit({ name, mean, verdict, controls }, measure, range) {
  const rows = controls.map((each) => [each.name, signed(each.difference), whisker(each, range),
    `${signed(each.low)} to ${signed(each.high)}`, each.p_corrected < 0.001 ? "< 0.001" : each.p_corrected.toFixed(3),
    each.mean.toFixed(3), signed(each.effect), `${each.wins}, ${each.losses}`]);
  return element("section", {},
    element("h4", {}, `${name}: ${mean.toFixed(3)}`),
    element("p", { className: "verdict" }, verdict ?? ""),
    table(`${name} against controls`, ["own thoughts against", "gain", "", "95 %", "p", `its ${measure}`, "effect", "won, lost"], rows));
}

/** A gain with its interval on a line on which all of a report have the same scale. */
function whisker({ difference, low, high }, [least, most]) {
  const at = (value) => 4 + 152 * (value - least) / (most - least || 1);
  const picture = drawing("svg", { viewBox: "0 0 160 16", class: low > 0 ? "whisker good" : high < 0 ? "whisker bad" : "whisker", "aria-hidden": "true" });
  picture.append(
    drawing("line", { x1: at(0), x2: at(0), y1: 0, y2: 16, class: "zero" }),
    drawing("line", { x1: at(low), x2: at(high), y1: 8, y2: 8 }),
    drawing("circle", { cx: at(difference), cy: 8, r: 4 }));
  return picture;
}

function table(name, heads, rows) {
  const row = (cells) => element("tr", {}, ...cells.map((cell, place) => (place ? element("td", {}, cell) : element("th", { scope: "row" }, cell))));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": name }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map(row))));
}

function questions(title, found, again) {
  const list = (some) => element("ol", { className: "hits" }, ...some.map((each) => question(each, again)));
  const rest = found.slice(FIRST);
  return element("section", {}, element("h4", {}, title),
    found.length ? list(found.slice(0, FIRST)) : element("p", { className: "quiet" }, "None."),
    ...(rest.length ? [element("details", {}, element("summary", {}, `${rest.length} more`), list(rest))] : []));
}

function question({ query, before, after, why, thoughts }, again) {
  const ask = element("button", { type: "button" }, "Ask it here");
  ask.addEventListener("click", () => again(query));
  return element("li", {},
    element("h5", {}, query, element("span", { className: "score" }, `${before.toFixed(3)} → ${after.toFixed(3)}`)),
    element("p", { className: "quiet" }, why ?? ""),
    element("ul", {}, ...thoughts.map((text) => element("li", {}, text))),
    ask);
}
