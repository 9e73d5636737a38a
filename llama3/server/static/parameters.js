// The parameters of a request: their fields on the page, with the model page's ranges and defaults.
// A field that is left empty is not sent.
const NUMBERS = [
  // name, explanation, minimum, maximum, step, placeholder: what applies if the field is empty
  ["max_tokens", "longest answer, in tokens", 1, 8192, 1, "256"],
  ["temperature", "0: greedy; higher: more random", 0, 5, "any", "0.6"],
  ["top_p", "total probability of the candidate tokens", 0.001, 1, "any", "off"],
  ["top_k", "number of candidate tokens", 1, 50, 1, "off"],
  ["seed", "same seed, same answer", 1, 9999999999, 1, "random"],
  ["repetition_penalty", "above 1: fewer repetitions", 0, 2, "any", "off"],
  ["frequency_penalty", "for each occurrence in the answer", -2, 2, "any", "off"],
  ["presence_penalty", "once for a token in the answer", -2, 2, "any", "off"],
];
const TEXTS = ["system", "schema", "tools", "lora"];
const STORAGE_KEY = "llama3.settings";

export const field = (name) => document.getElementById(name);

// Make the number fields, and keep the values of all fields in the browser's storage.
export function build() {
  for (const [name, explanation, minimum, maximum, step, placeholder] of NUMBERS) {
    const label = document.createElement("label");
    label.htmlFor = name;
    const code = Object.assign(document.createElement("code"), { textContent: name });
    label.append(code, `${explanation} (${minimum} to ${maximum})`);
    const input = Object.assign(document.createElement("input"), {
      id: name, type: "number", min: minimum, max: maximum, step, placeholder,
    });
    field("numbers").append(label, input);
  }
  const stored = JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "{}");
  for (const name of names()) field(name).value = stored[name] ?? "";
  document.querySelector("aside").addEventListener("input", () => {
    const values = Object.fromEntries(names().map((name) => [name, field(name).value]));
    localStorage.setItem(STORAGE_KEY, JSON.stringify(values));
  });
}

const names = () => [...NUMBERS.map(([name]) => name), ...TEXTS];

// The parameters that are set. Throws an Error that names the first field that is wrong.
export function read() {
  const parameters = {};
  for (const [name, , minimum, maximum] of NUMBERS) {
    const input = field(name);
    if (!input.validity.valid) throw new Error(`${name}: expected a number from ${minimum} to ${maximum}`);
    if (input.value !== "") parameters[name] = Number(input.value);
  }
  if (field("lora").value) parameters.lora = field("lora").value;
  const schema = readJson("schema", "response_format");
  if (schema) parameters.response_format = { type: "json_schema", json_schema: schema };
  const tools = readJson("tools", "tools");
  if (tools) parameters.tools = tools;
  return parameters;
}

// The JSON value of a text field; null if it is empty.
function readJson(id, name) {
  const text = field(id).value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: not JSON: ${error.message}`);
  }
}
