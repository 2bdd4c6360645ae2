// The drawing half: one of @grafana/ui's components for each type of panel, given what Grafana's own plugin gives it.
import { useLayoutEffect } from 'react';
import * as g from '@grafana/data';
import { BarGauge, BigValue, Gauge, Table, TimeSeries, useTheme2, VizRepeater } from '@grafana/ui';
import { lastValueFrom } from 'rxjs';
import { interpolate } from './data.js';
import './gauge.js';

const reduceOptions = { values: false, calcs: ['lastNotNull'], fields: '' };
const OPTIONS = {
  timeseries: { legend: { showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [] } },
  stat: { reduceOptions, graphMode: 'area', colorMode: 'value', justifyMode: 'auto', textMode: 'auto', wideLayout: true },
  gauge: { reduceOptions, showThresholdMarkers: true, showThresholdLabels: false },
  bargauge: { reduceOptions, displayMode: 'gradient', valueMode: 'color', namePlacement: 'auto', showUnfilled: true },
  table: { showHeader: true, frameIndex: 0 },
  text: { mode: 'markdown', content: '' },
};
const CUSTOM = {
  timeseries: {
    ...{ drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', spanNulls: false },
    ...{ showPoints: 'auto', pointSize: 5, barAlignment: 0, barWidthFactor: 0.6, stacking: { mode: 'none', group: 'A' } },
    ...{ axisPlacement: 'auto', axisGridShow: true, scaleDistribution: { type: 'linear' }, thresholdsStyle: { mode: 'off' } },
  },
  table: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false },
};
const thresholds = { mode: 'absolute', steps: [{ color: 'green', value: -Infinity }, { color: 'red', value: 80 }] };

// Grafana's registry of field options; what a panel's "custom" holds is taken as it stands.
const item = (id, process = g.identityOverrideProcessor) => ({ id, path: id, name: id, process, shouldApply: () => true });
const fromMinusInfinity = (value) =>
  value && { ...value, steps: value.steps.map((step, i) => (i ? step : { ...step, value: -Infinity })) };
class FieldOptions extends g.FieldConfigOptionsRegistry {
  getIfExists(id) {
    return id?.startsWith('custom.') ? { ...item(id), path: id.slice(7), isCustom: true } : super.getIfExists(id);
  }
}
const fieldConfigRegistry = new FieldOptions(() => [
  ...['color', 'mappings', 'noValue', 'unit', 'displayName', 'fieldMinMax'].map((id) => item(id)),
  ...['min', 'max', 'decimals'].map((id) => item(id, g.numberOverrideProcessor)),
  item('thresholds', fromMinusInfinity),
]);
const transformers = new Map(Object.values(g.standardTransformers).map((t) => [t.id, t])); // one is listed twice
g.standardTransformersRegistry.setInit(() => [...transformers].map(([id, transformation]) => ({ id, name: id, transformation })));

export const known = (type) => type in OPTIONS;

export async function prepare({ type, options, transformations = [], fieldConfig = {} }, frames, theme, timeZone) {
  const color = { mode: type === 'timeseries' ? 'palette-classic' : 'thresholds' };
  const config = { defaults: { color, thresholds, ...fieldConfig.defaults }, overrides: fieldConfig.overrides ?? [] };
  const transformed = await lastValueFrom(g.transformDataFrame(transformations, frames, { interpolate }));
  for (const field of transformed.flatMap((frame) => frame.fields)) {
    const unlabelled = field.type === 'time' && { axisLabel: undefined };
    field.config = { ...field.config, custom: { ...CUSTOM[type], ...fieldConfig.defaults?.custom, ...unlabelled } };
  }
  const given = { data: transformed, fieldConfig: config, fieldConfigRegistry, replaceVariables: interpolate, theme, timeZone };
  const legend = { ...OPTIONS[type].legend, ...options?.legend };
  return { type, data: g.applyFieldOverrides(given), fieldConfig: config, options: { ...OPTIONS[type], ...options, legend } };
}

function Annotations({ config, annotations }) {
  const theme = useTheme2();
  useLayoutEffect(() => {
    config.addHook('draw', ({ ctx, bbox, valToPos }) => {
      ctx.save();
      ctx.clip(new Path2D(`M${bbox.left} ${bbox.top}h${bbox.width}v${bbox.height}h${-bbox.width}z`));
      ctx.setLineDash([5, 5]);
      for (const { start, end, color } of annotations) {
        const paint = theme.visualization.getColorByName(color ?? 'red');
        const [left, right] = [start, end].map((time) => valToPos(time, 'x', true));
        Object.assign(ctx, { strokeStyle: paint, fillStyle: g.colorManipulator.alpha(paint, 0.1), lineWidth: 1 });
        ctx.fillRect(left, bbox.top, right - left, bbox.height);
        ctx.stroke(new Path2D([left, right].map((x) => `M${x} ${bbox.top}v${bbox.height}`).join('')));
      }
      ctx.restore();
    });
  }, [config]);
  return null;
}

function Graph({ data, options, range, timeZone, width, height, annotations }) {
  const finite = (field) => ({ ...field, values: field.values.map((v) => (Number.isFinite(v) ? v : null)) });
  const frames = data.map((frame) => ({ ...frame, fields: frame.fields.map((f) => (f.type === 'number' ? finite(f) : f)) }));
  return (
    <TimeSeries {...{ frames, width, height, timeZone, timeRange: range, legend: options.legend, options }}>
      {(config) => <Annotations {...{ config, annotations }} />}
    </TimeSeries>
  );
}

// Each series is reduced to a value, and the component repeated for each value.
function Values({ type, title, data, options, fieldConfig, range, timeZone, width, height }) {
  const theme = useTheme2();
  for (const field of data.flatMap((frame) => frame.fields)) {
    if (type === 'gauge' && /^percent(unit)?$/.test(field.config.unit)) {
      const { min = 0, max = field.config.unit === 'percent' ? 100 : 1 } = field.config;
      field.state = { ...field.state, range: { min, max, delta: max - min } };
      field.display = g.getDisplayProcessor({ field, theme, timeZone });
    }
  }
  const values = g.getFieldDisplayValues({
    ...{ data, theme, timeZone, fieldConfig, reduceOptions: options.reduceOptions, replaceVariables: interpolate },
    ...{ sparkline: type === 'stat' && options.graphMode !== 'none', percentChange: options.showPercentChange },
  });
  const named = options.textMode === 'auto' && (fieldConfig.defaults.displayName || !title);
  const renderValue = ({ value, ...size }) => {
    const props = { ...options, ...size, theme, field: value.field, value: value.display };
    if (type === 'gauge') {
      return <Gauge {...props} />;
    }
    if (type === 'bargauge') {
      const display = value.view?.getFieldDisplayProcessor(value.colIndex);
      return <BarGauge {...{ ...props, display, valueDisplayMode: options.valueMode, itemSpacing: 10 }} />;
    }
    const sparkline = value.sparkline && { ...value.sparkline, timeRange: range };
    const layout = { parentOrientation: size.orientation, disableWideLayout: !options.wideLayout };
    return <BigValue {...{ ...props, ...layout, sparkline }} textMode={named ? 'value_and_name' : options.textMode} />;
  };
  const bars = type === 'bargauge';
  const { minVizWidth = 8, minVizHeight = 16, maxVizHeight = 300 } = options.sizing === 'manual' ? options : {};
  return (
    <VizRepeater
      {...{ width, height, source: data, getValues: () => values, renderValue, ...(bars && { minVizWidth, minVizHeight, maxVizHeight }) }}
      {...{ autoGrid: !bars, itemSpacing: bars ? 10 : 3, orientation: options.orientation ?? 'auto' }}
      getAlignmentFactors={g.getDisplayValueAlignmentFactors}
    />
  );
}

export function Panel(props) {
  const { type, data, options, fieldConfig, width, height, range } = props;
  if (type === 'text') {
    const html = options.mode === 'markdown' ? g.renderTextPanelMarkdown : g.textUtil.sanitizeTextPanelContent;
    return <div className="markdown-html" dangerouslySetInnerHTML={{ __html: html(interpolate(options.content)) }} />;
  }
  if (['stat', 'gauge', 'bargauge'].includes(type)) {
    return <Values {...props} />; // these say themselves that there is no data
  }
  if (!data.some((frame) => frame.length)) {
    return <div style={{ height, display: 'grid', placeItems: 'center', fontSize: 20 }}>No data</div>;
  }
  if (type === 'timeseries') {
    return <Graph {...props} />;
  }
  const { sortBy: initialSortBy, showHeader, cellHeight, frameIndex } = options;
  const frame = data[frameIndex] ?? data[0];
  return <Table {...{ width, height, data: frame, noHeader: !showHeader, initialSortBy, cellHeight, timeRange: range, fieldConfig }} />;
}
