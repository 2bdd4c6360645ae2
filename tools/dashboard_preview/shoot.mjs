// Serves the page on the loopback with Prometheus behind it, and has headless Chromium photograph it.
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const USAGE = `node shoot.mjs [option ...] DASHBOARD.json OUT.png
  --prometheus URL       http://127.0.0.1:9090
  --from TIME --to TIME  -5m, now, or milliseconds; the dashboard's own
  --var NAME=VALUE       a variable, may be repeated; All for all
  --scrape-interval 15s  as Grafana's data source is told it (timeInterval): makes $__interval and $__rate_interval
  --width 1600           in pixels
  --theme dark           or light
  --need-data            a panel without data is an error, too
  --browser PATH         /usr/bin/chromium`;
const text = { type: 'string' };
const { values: given, positionals } = parseArgs({
  args: process.argv.slice(2).join('\0').replace(/\0(?=-\d)/g, '=').split('\0').filter(Boolean), // --from -5m is --from=-5m
  allowPositionals: true,
  options: {
    prometheus: { ...text, default: 'http://127.0.0.1:9090' },
    width: { ...text, default: '1600' },
    browser: { ...text, default: '/usr/bin/chromium' },
    var: { ...text, multiple: true, default: [] },
    'need-data': { type: 'boolean' },
    ...{ from: text, to: text, theme: text, 'scrape-interval': text },
  },
});
const here = import.meta.dirname;
const [dashboard, out] = positionals;
const wrong =
  (!out && USAGE) ||
  (!existsSync(dashboard) && `There is no ${dashboard}`) ||
  (!existsSync(join(here, 'dist/app.js')) && 'There is no page yet: npm run build');
if (wrong) {
  console.error(wrong);
  process.exit(2);
}

const page = `<!doctype html><link rel="stylesheet" href="app.css"><link rel="icon" href="data:,">
  <body style="margin: 0"><div id="root"></div><script type="module" src="app.js"></script>`;
const types = { '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml' };

async function answer(path, search) {
  if (path.startsWith('/api/')) {
    const reply = await fetch(given.prometheus.replace(/\/$/, '') + path + search);
    return [reply.status, 'application/json', await reply.text()];
  }
  const folder = path.startsWith('/public/') ? 'node_modules/@grafana/ui/dist' : 'dist'; // its icons
  const file = path === '/dashboard.json' ? dashboard : join(here, folder, path);
  return path === '/' ? [200, 'text/html; charset=utf-8', page] : [200, types[extname(file)] ?? 'text/plain', readFileSync(file)];
}

const server = createServer(async (request, response) => {
  const { pathname, search } = new URL(request.url, 'http://localhost');
  const failure = (error) => [502, 'application/json', JSON.stringify({ error: String(error.cause?.message ?? error.message) })];
  const [status, type, body] = await answer(pathname, search).catch(failure);
  response.writeHead(status, { 'content-type': type }).end(body);
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const query = new URLSearchParams(['from', 'to', 'theme', 'scrape-interval'].filter((k) => given[k]).map((k) => [k, given[k]]));
for (const pair of given.var) {
  query.append(`var-${pair.split('=', 1)}`, pair.slice(pair.indexOf('=') + 1));
}
const off = ['gpu', 'quic', 'background-networking', 'component-update', 'sync'].map((what) => `--disable-${what}`);
const args = ['--headless', '--no-sandbox', '--no-first-run', ...off];
const browser = await chromium.launch({ executablePath: given.browser, args });
try {
  const tab = await browser.newPage({ viewport: { width: Number(given.width), height: 900 } });
  await tab.goto(`http://127.0.0.1:${server.address().port}/?${query}`);
  const panels = await tab.evaluate(() => window.drawn);
  await tab.waitForLoadState('networkidle'); // the icons
  await tab.screenshot({ path: out, fullPage: true });
  for (const { type, title, frames, errors, queried } of panels) {
    const state = errors.length ? `ERROR ${errors.join('; ')}` : !queried ? 'drawn' : frames ? `${frames} series` : 'No data';
    console.log(`${type.padEnd(12)}${title}: ${state}`);
    process.exitCode ||= errors.length || (given['need-data'] && queried && !frames) ? 1 : 0;
  }
} catch (error) {
  console.error(error.message.split('\n', 1)[0].replace('page.evaluate: Error: ', ''));
  process.exitCode = 1;
} finally {
  await browser.close();
  server.close();
}
