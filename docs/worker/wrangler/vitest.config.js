import { cloudflareTest } from "@cloudflare/vitest-pool-workers";
import { defineConfig } from "vitest/config";

const wrangler = { configPath: "./wrangler.jsonc", environment: "local" };

export default defineConfig({ plugins: [cloudflareTest({ remoteBindings: false, wrangler })] });
