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
  alias: {
    // their CommonJS builds: in the .mjs ones a default import of a CommonJS package is not its "default", by Node's rule
    '@grafana/data': './node_modules/@grafana/data/dist/cjs/index.cjs',
    '@grafana/ui': './node_modules/@grafana/ui/dist/cjs/index.cjs',
    'monaco-editor': './src/nothing.js', // an editor, that no panel needs
  },
  logLevel: 'warning',
});
