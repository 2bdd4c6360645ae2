// A dashboard's JSON, laid out as Grafana lays it out: 24 columns, rows of 30 px with 8 px between.
import { createRoot } from 'react-dom/client';
import { createTheme, LoadingState, ThemeContext } from '@grafana/data';
import { ErrorBoundary, GlobalStyles, Icon, PanelChrome, PortalContainer } from '@grafana/ui';
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import '@fontsource/roboto-mono/400.css';
import { interpolate, loadAnnotations, loadVariables, queryPanel, timeRange } from './data.js';
import { known, Panel, prepare } from './panels.jsx';

const [GAP, CELL, PADDING] = [8, 30, 16];
const theme = createTheme({ colors: { mode: new URLSearchParams(location.search).get('theme') ?? 'dark' } });

// A collapsed row keeps its panels inside it: they are drawn as if it were open, and what follows moves down.
function flatten(panels) {
  let down = 0;
  return panels.flatMap((panel) => {
    const at = (p, by) => ({ ...p, gridPos: { ...p.gridPos, y: p.gridPos.y + by } });
    const header = at(panel, down);
    if (panel.type !== 'row' || !panel.panels?.length) {
      return [header];
    }
    const top = Math.min(...panel.panels.map((p) => p.gridPos.y));
    const inner = panel.panels.map((p) => at(p, header.gridPos.y + 1 - top));
    down += Math.max(...panel.panels.map((p) => p.gridPos.y + p.gridPos.h)) - top;
    return [header, ...inner];
  });
}

async function load(panel, range, timeZone) {
  const { x, y, w, h } = panel.gridPos;
  const column = (innerWidth - 2 * PADDING + GAP) / 24;
  const box = { left: x * column, top: y * (CELL + GAP), width: w * column - GAP, height: h * (CELL + GAP) - GAP };
  const base = { panel, box, title: interpolate(panel.title), frames: [], errors: [] };
  if (panel.type === 'row') {
    return base;
  }
  if (!known(panel.type)) {
    return { ...base, errors: [`The preview does not draw panels of type ${panel.type}`] };
  }
  const { frames, errors } = await queryPanel(panel, range, Math.round(box.width));
  return { ...base, frames, errors, prepared: await prepare(panel, frames, theme, timeZone) };
}

function Box({ loaded, range, timeZone, annotations }) {
  const { panel, box, title, errors, prepared } = loaded;
  if (panel.type === 'row') {
    return (
      <div style={{ position: 'absolute', ...box, display: 'flex', alignItems: 'center', gap: 8, fontWeight: 500 }}>
        <Icon name="angle-down" /> {title}
      </div>
    );
  }
  return (
    <div style={{ position: 'absolute', ...box }}>
      <PanelChrome
        {...{ width: box.width, height: box.height, title, hoverHeader: !title && !errors.length }}
        description={interpolate(panel.description)}
        displayMode={panel.transparent ? 'transparent' : 'default'}
        padding={panel.type === 'table' ? 'none' : 'md'}
        statusMessage={errors.join('\n')}
        loadingState={errors.length ? LoadingState.Error : LoadingState.Done}
      >
        {(width, height) =>
          errors.length ? (
            <div style={{ height, overflow: 'auto', color: theme.colors.error.text }}>{errors.join('\n')}</div>
          ) : (
            <ErrorBoundary onError={(error) => errors.push(error.message)}>
              {({ error }) =>
                error ? <div style={{ color: theme.colors.error.text }}>{error.message}</div>
                  : <Panel {...{ ...prepared, type: panel.type, title, range, timeZone, width, height, annotations }} />}
            </ErrorBoundary>
          )
        }
      </PanelChrome>
    </div>
  );
}

function Dashboard({ dashboard, variables, range, panels, ...rest }) {
  const { colors, shape, typography } = theme;
  const chip = { border: `1px solid ${colors.border.medium}`, borderRadius: shape.radius.default, padding: '5px 8px', background: colors.background.primary };
  const format = (time) => time.format('YYYY-MM-DD HH:mm:ss');
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ padding: PADDING, fontSize: typography.body.fontSize, background: colors.background.canvas }}>
        <div style={{ display: 'flex', alignItems: 'center', gap: 8, marginBottom: PADDING, flexWrap: 'wrap' }}>
          <span style={{ ...typography.h4, marginRight: 8 }}>{dashboard.title}</span>
          {variables.filter((v) => !v.hide).map(({ name, label }) => (
            <span key={name} style={chip}>
              <span style={{ color: colors.text.secondary }}>{label}</span>&ensp;{interpolate(`\${${name}:text}`)}
            </span>
          ))}
          <span style={{ ...chip, marginLeft: 'auto' }}>{format(range.from)} to {format(range.to)}</span>
        </div>
        <div style={{ position: 'relative', height: Math.max(...panels.map(({ box }) => box.top + box.height)) }}>
          {panels.map((loaded, i) => <Box key={i} {...{ loaded, range, ...rest }} />)}
        </div>
      </div>
      <PortalContainer />
    </ThemeContext.Provider>
  );
}

async function main() {
  const dashboard = await (await fetch('/dashboard.json')).json();
  const timeZone = dashboard.timezone || 'browser';
  const range = timeRange(dashboard);
  const variables = await loadVariables(dashboard, range);
  const annotations = await loadAnnotations(dashboard, range);
  const panels = await Promise.all(flatten(dashboard.panels).map((panel) => load(panel, range, timeZone)));
  // text is measured on a canvas before it is laid out
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
  createRoot(document.getElementById('root')).render(<Dashboard {...{ dashboard, variables, range, panels, timeZone, annotations }} />);
  await new Promise((resolve) => setTimeout(resolve, 500));
  return panels.filter(({ panel }) => panel.type !== 'row').map(({ panel, title, frames, errors }) => ({
    ...{ type: panel.type, title, errors, series: frames.filter((f) => f.length).length, queried: Boolean(panel.targets?.length) },
  }));
}

window.drawn = main();
