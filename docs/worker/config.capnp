# A Worker whose AI binding calls `llama3 serve`:
#   npx workerd serve --experimental docs/worker/config.capnp      then: curl http://127.0.0.1:8787/
# The binding itself sends no token. If the server was started with --token, put the token in the header below.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "llama3", external = (
      address = "127.0.0.1:8000",
      http = (injectRequestHeaders = [(name = "Authorization", value = "Bearer TOKEN")]),
    )),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8787", http = (), service = "main")],
);

const worker :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2026-01-01",
  bindings = [(
    name = "AI",
    wrapped = (
      moduleName = "cloudflare-internal:ai-api",
      innerBindings = [(name = "fetcher", service = "llama3")],
    ),
  )],
);
