// A plugin of miniflare, which runs Workers for `wrangler dev` and vitest. `env.AI` is Cloudflare's own client module;
// its requests go to `llama3 serve` at `options.address`, with `options.token` or LLAMA3_TOKEN if one is set.

// miniflare 4 hands over the list of this plugin's bindings; miniflare 5 the whole configuration of the Worker.
const bindings = (options) =>
  Array.isArray(options)
    ? options.map(({ name, options }) => ({ name, ...options }))
    : Object.entries(options?.config?.env ?? {})
        .filter(([, binding]) => binding.dev?.plugin?.name === "llama3-ai")
        .map(([name, binding]) => ({ name, ...binding.dev.options }));

const service = (name) => `llama3-ai:${name}`;

exports.plugins = {
  "llama3-ai": {
    getBindings: (options) =>
      bindings(options).map(({ name }) => ({
        name,
        wrapped: {
          moduleName: "cloudflare-internal:ai-api",
          innerBindings: [{ name: "fetcher", service: { name: service(name) } }],
        },
      })),
    getNodeBindings: () => ({}),
    getServices: ({ options }) =>
      bindings(options).map(({ name, address = "127.0.0.1:8000", token = process.env.LLAMA3_TOKEN }) => ({
        name: service(name),
        external: {
          address,
          http: { injectRequestHeaders: token ? [{ name: "Authorization", value: `Bearer ${token}` }] : [] },
        },
      })),
  },
};
