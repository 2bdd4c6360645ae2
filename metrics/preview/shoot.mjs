// Serves the page on the loopback with Prometheus behind it, and has headless Chromium photograph it.
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const usage = `node shoot.mjs [option ...] DASHBOARD.json OUT.png
  --prometheus URL       http://127.0.0.1:9090
  --from TIME --to TIME  as in Grafana, or -5m; the dashboard's own
  --var NAME=VALUE       a variable, may be repeated; All for all
  --scrape-interval 15s  as the data source in Grafana is told it; sets $__interval and $__rate_interval
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
if (!out || !existsSync(join(here, 'dist/app.js'))) {
  console.error(out ? 'Build the page first: npm run build' : usage);
  process.exit(2);
}

const page = '<!doctype html><link rel="stylesheet" href="app.css"><body style="margin: 0"><div id="root"></div><script type="module" src="app.js"></script>';
const types = { '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml' };
const server = createServer(async (request, response) => {
  const { pathname, search } = new URL(request.url, 'http://localhost');
  try {
    if (pathname.startsWith('/api/')) {
      const answer = await fetch(given.prometheus.replace(/\/$/, '') + pathname + search);
      response.writeHead(answer.status, { 'content-type': 'application/json' }).end(await answer.text());
    } else if (pathname === '/') {
      response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(page);
    } else if (pathname === '/dashboard.json') {
      response.end(readFileSync(dashboard));
    } else {
      const folder = pathname.startsWith('/public/') ? 'node_modules/@grafana/ui/dist' : 'dist';
      const body = readFileSync(join(here, folder, normalize(pathname)));
      response.writeHead(200, { 'content-type': types[extname(pathname)] ?? 'text/plain' }).end(body);
    }
  } catch (error) {
    const missing = error.code === 'ENOENT';
    const message = missing ? `no ${pathname}` : `${given.prometheus}: ${error.cause?.message ?? error.message}`;
    response.writeHead(missing ? 404 : 502).end(JSON.stringify({ status: 'error', error: message }));
  }
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const query = new URLSearchParams(['from', 'to', 'theme', 'scrape-interval'].filter((k) => given[k]).map((k) => [k, given[k]]));
for (const [, name, value] of given.var.map((pair) => /^(\w+)=(.*)$/s.exec(pair))) {
  query.append(`var-${name}`, value);
}
const quiet = ['quic', 'background-networking', 'component-update', 'sync'].map((what) => `--disable-${what}`);
const browser = await chromium.launch({
  executablePath: given.browser,
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', ...quiet],
});
let failed = false;
try {
  const tab = await browser.newPage({ viewport: { width: Number(given.width), height: 900 } });
  tab.on('pageerror', (error) => {
    failed = true;
    console.error(error.message);
  });
  await tab.goto(`http://127.0.0.1:${server.address().port}/?${query}`);
  const panels = await tab.evaluate(() => window.drawn);
  await tab.waitForLoadState('networkidle'); // the icons
  await tab.screenshot({ path: out, fullPage: true });
  for (const { type, title, series, errors, queried } of panels) {
    failed ||= errors.length > 0 || (given['need-data'] && queried && !series);
    const state = errors.length ? `ERROR ${errors.join('; ')}` : queried ? (series ? `${series} series` : 'No data') : 'drawn';
    console.log(`${type.padEnd(12)}${title}: ${state}`);
  }
} finally {
  await browser.close();
  server.close();
}
process.exitCode = failed ? 1 : 0;
