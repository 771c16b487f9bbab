// What both pages use: elements made of text alone, and requests with the key, if there is one.

/** An element with properties and children; a string becomes text and never markup. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** An element of a picture. */
export function drawing(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export const find = (id) => document.getElementById(id);

const KEY = "o1-retriever-key";

/** Keep the key for this tab alone. */
export function rememberKey(input) {
  input.value = sessionStorage.getItem(KEY) ?? "";
  input.addEventListener("input", () => sessionStorage.setItem(KEY, input.value));
}

/** The answer to a request; an Error that says what the server said, where it is no success. */
export async function ask(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const asked = body === undefined
    ? { headers, signal }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const answer = await fetch(path, asked);
  if (answer.ok) return answer;
  const text = await answer.text();
  let said = `${answer.status} ${answer.statusText}`;
  try {
    said = JSON.parse(text).error.message;
  } catch {
    // no answer of ours: that of something between
  }
  throw new Error(said);
}

/** The events of an answer that is a stream of them, as [name, value]. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const whole = rest.split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const fields = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (fields.event) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

export function showProblem(error) {
  const place = find("problem");
  place.textContent = error ? error.message : "";
  place.hidden = !error;
}
