// What the scripts here share: questions, a tool, and how they report.
export const MODEL = "@hf/meta-llama/meta-llama-3-8b-instruct";
export const QUESTION = [{ role: "user", content: "What is RoPE?" }];
export const WEATHER = [{ role: "user", content: "What is the weather in Paris?" }]; // makes the demo call the tool
// With these the demo does not stop before max_tokens.
export const LONG = { messages: [{ role: "user", content: "Go on" }], max_tokens: 1500, temperature: 5, seed: 14 };
export const RESULT = "12 degrees, sunny";

export const SCHEMA = {
  type: "object",
  properties: { about: { enum: ["RoPE", "the sampler"] }, known: { type: "boolean" } },
  required: ["about", "known"],
  additionalProperties: false,
};

export const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
export const TOOL = {
  type: "function",
  function: { name: "get_weather", description: "The weather of a city", parameters: CITY },
};

// What the function throws: the names of its classes, and its own fields.
export async function thrown(run) {
  try {
    return { returned: await run() };
  } catch (error) {
    const classes = [];
    for (let c = error.constructor; c?.name; c = Object.getPrototypeOf(c)) classes.push(c.name);
    return { classes, message: error.message, status: error.status ?? error.statusCode, code: error.code };
  }
}

// Each check's result by its name. A check that throws has an error and no result.
export async function results(checks) {
  const found = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      found[name] = { result: (await check()) ?? null };
    } catch (error) {
      found[name] = { error: String(error.stack) };
    }
  }
  return found;
}
