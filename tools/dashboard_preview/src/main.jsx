// A dashboard's JSON, laid out as Grafana lays it out: 24 columns, rows of 30 px with 8 px between.
import { createRoot } from 'react-dom/client';
import { createTheme, LoadingState, ThemeContext } from '@grafana/data';
import { ErrorBoundary, GlobalStyles, Icon, PanelChrome } from '@grafana/ui';
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import '@fontsource/roboto-mono/400.css';
import { interpolate, loadAnnotations, loadVariables, queryPanel, timeRange } from './data.js';
import { known, Panel, prepare } from './panels.jsx';

const [GAP, CELL, PADDING] = [8, 30, 16];
const theme = createTheme({ colors: { mode: new URLSearchParams(location.search).get('theme') ?? 'dark' } });
const { colors, typography } = theme;

async function load(panel, range, timeZone) {
  const { x, y, w, h } = panel.gridPos;
  const column = (innerWidth - 2 * PADDING + GAP) / 24;
  const box = { left: x * column, top: y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
  const unknown = ['repeat', 'timeFrom', 'timeShift'].filter((key) => panel[key]);
  if (panel.type !== 'row' && !known(panel.type)) {
    unknown.push(`type ${panel.type}`);
  }
  const loaded = { panel, box, title: interpolate(panel.title), errors: unknown.map((what) => `The preview does not know ${what}`) };
  if (panel.type === 'row' || unknown.length) {
    return loaded;
  }
  const { frames, errors } = await queryPanel(panel, range, Math.round(box.width));
  const prepared = await prepare(panel, frames, theme, timeZone).catch((error) => void errors.push(error.message));
  return { ...loaded, frames, errors, prepared };
}

const Failed = ({ messages }) => <div style={{ color: colors.error.text, overflow: 'auto' }}>{messages.join('\n')}</div>;

function Box({ panel, box, title, errors, prepared, ...shared }) {
  if (panel.type === 'row') {
    const hidden = panel.panels?.length ? `(${panel.panels.length} panels)` : '';
    return (
      <div style={{ position: 'absolute', ...box, display: 'flex', alignItems: 'center', gap: 8, fontWeight: 500 }}>
        <Icon name={hidden ? 'angle-right' : 'angle-down'} /> {title} <span style={{ color: colors.text.secondary }}>{hidden}</span>
      </div>
    );
  }
  return (
    <div style={{ position: 'absolute', ...box }}>
      <PanelChrome
        {...{ width: box.width, height: box.height, title, hoverHeader: !title && !errors.length }}
        {...{ statusMessage: errors.join('\n'), loadingState: errors.length ? LoadingState.Error : LoadingState.Done }}
        description={interpolate(panel.description)}
        displayMode={panel.transparent ? 'transparent' : 'default'}
        padding={panel.type === 'table' ? 'none' : 'md'}
      >
        {(width, height) =>
          errors.length ? <Failed messages={errors} /> : (
            <ErrorBoundary onError={(error) => errors.push(error.message)}>
              {({ error }) =>
                error ? <Failed messages={[error.message]} /> : <Panel {...{ ...prepared, ...shared, title, width, height }} />
              }
            </ErrorBoundary>
          )
        }
      </PanelChrome>
    </div>
  );
}

const Chip = ({ label, children, ...style }) => (
  <span style={{ border: `1px solid ${colors.border.medium}`, background: colors.background.primary, padding: '5px 8px', ...style }}>
    <span style={{ color: colors.text.secondary, marginRight: label && 8 }}>{label}</span>
    {children}
  </span>
);

function Dashboard({ dashboard, variables, panels, ...shared }) {
  const [from, to] = [shared.range.from, shared.range.to].map((time) => time.format('YYYY-MM-DD HH:mm:ss'));
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ padding: PADDING, fontSize: typography.body.fontSize, background: colors.background.canvas }}>
        <div style={{ display: 'flex', alignItems: 'center', gap: 8, marginBottom: PADDING, flexWrap: 'wrap' }}>
          <span style={{ ...typography.h4, marginRight: 8 }}>{dashboard.title}</span>
          {variables.filter((v) => !v.hide).map(({ name, label }) => (
            <Chip key={name} label={label}>{interpolate(`\${${name}:text}`)}</Chip>
          ))}
          <Chip marginLeft="auto">{from} to {to}</Chip>
        </div>
        <div style={{ position: 'relative', height: Math.max(...panels.map(({ box }) => box.top + box.height)) }}>
          {panels.map((panel, i) => <Box key={i} {...{ ...panel, ...shared }} />)}
        </div>
      </div>
    </ThemeContext.Provider>
  );
}

async function main() {
  const dashboard = await (await fetch('/dashboard.json')).json();
  const timeZone = dashboard.timezone || 'browser';
  const range = timeRange(dashboard);
  const variables = await loadVariables(dashboard, range);
  const annotations = await loadAnnotations(dashboard, range);
  const panels = await Promise.all(dashboard.panels.map((panel) => load(panel, range, timeZone)));
  // text is measured on a canvas before it is laid out
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
  const everything = { dashboard, variables, panels, annotations, range, timeZone };
  createRoot(document.getElementById('root')).render(<Dashboard {...everything} />);
  await new Promise((resolve) => setTimeout(resolve, 500)); // charts are drawn after they are mounted
  return panels.filter(({ panel }) => panel.type !== 'row').map(({ panel, title, frames = [], errors }) => ({
    ...{ type: panel.type, title, errors, frames: frames.filter((frame) => frame.length).length, queried: panel.type !== 'text' },
  }));
}

window.drawn = main();
