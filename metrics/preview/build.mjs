// One script and one style sheet, with the fonts inside, since headless Chromium has neither Grafana's server nor a network.
import { build } from 'esbuild';

await build({
  absWorkingDir: import.meta.dirname,
  entryPoints: { app: 'src/main.jsx' },
  outdir: 'dist',
  bundle: true,
  format: 'esm',
  jsx: 'automatic',
  loader: { '.woff': 'empty', '.woff2': 'dataurl', '.ttf': 'empty', '.svg': 'dataurl' },
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  alias: { 'monaco-editor': './src/nothing.js' }, // an editor, half of the bundle
  logLevel: 'warning',
});
