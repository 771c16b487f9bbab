import { ask, element, find, rememberKey, showProblem } from "./shared.js";

const page = await (await fetch("openapi.json")).json();

const schemaOf = (method) => {
  const named = method.requestBody?.content?.["application/json"]?.schema?.$ref;
  return named ? page.components.schemas[named.split("/").at(-1)] : null;
};

function operation(path, verb, method) {
  const box = element("section", {},
    element("h2", {}, `${verb.toUpperCase()} ${path}`),
    element("p", {}, method.description ?? method.summary ?? ""));
  const examples = schemaOf(method)?.examples ?? (verb === "get" && !path.includes("{") ? [undefined] : []);
  return examples.length ? [box, ...examples.map((example) => trial(path, example))] : [box];
}

function trial(path, example) {
  const text = example === undefined ? null : element("textarea", {
    value: JSON.stringify(example, null, 2), rows: JSON.stringify(example, null, 2).split("\n").length,
    spellcheck: false, "aria-label": `Body for ${path}`,
  });
  const said = element("pre", { hidden: true, tabIndex: 0 });
  const run = element("button", { type: "button", className: "run" }, "Run");
  run.addEventListener("click", async () => {
    showProblem(null);
    said.hidden = false;
    said.textContent = "";
    try {
      const answer = await ask(path.slice(1), text ? JSON.parse(text.value) : undefined);
      await read(answer, said);
    } catch (error) {
      said.textContent = error.message;
    }
  });
  return element("div", {}, ...(text ? [text] : []), run, said);
}

async function read(answer, said) {
  if (answer.headers.get("content-type").startsWith("application/json")) {
    said.textContent = JSON.stringify(await answer.json(), null, 2);
    return;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) said.append(part.value);
}

rememberKey(find("key"));
for (const [path, methods] of Object.entries(page.paths)) {
  for (const [verb, method] of Object.entries(methods)) find("operations").append(...operation(path, verb, method));
}
