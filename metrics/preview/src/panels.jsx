// The drawing half: one of @grafana/ui's components for each type of panel, given what Grafana's own plugin gives it.
import { useLayoutEffect } from 'react';
import * as g from '@grafana/data';
import { BarGauge, BigValue, Gauge, Table, TimeSeries, useTheme2, VizRepeater } from '@grafana/ui';
import { lastValueFrom } from 'rxjs';
import { interpolate } from './data.js';
import './gauge.js';

const legend = { showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [] };
const reduceOptions = { values: false, calcs: ['lastNotNull'], fields: '' };
const gradient = { displayMode: 'gradient', valueMode: 'color', namePlacement: 'auto', showUnfilled: true };
const DEFAULTS = {
  timeseries: {
    options: { legend },
    custom: {
      ...{ drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', spanNulls: false },
      ...{ showPoints: 'auto', pointSize: 5, barAlignment: 0, barWidthFactor: 0.6, stacking: { mode: 'none', group: 'A' } },
      ...{ axisPlacement: 'auto', axisGridShow: true, scaleDistribution: { type: 'linear' }, thresholdsStyle: { mode: 'off' } },
    },
  },
  stat: { options: { graphMode: 'area', colorMode: 'value', justifyMode: 'auto', textMode: 'auto', wideLayout: true, reduceOptions } },
  gauge: { options: { showThresholdMarkers: true, showThresholdLabels: false, sizing: 'auto', reduceOptions } },
  bargauge: { options: { ...gradient, sizing: 'auto', minVizWidth: 8, minVizHeight: 16, maxVizHeight: 300, reduceOptions } },
  table: { options: { showHeader: true, frameIndex: 0 }, custom: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false } },
  text: { options: { mode: 'markdown', content: '' } },
};
const baseIsLowest = (thresholds) =>
  thresholds && { ...thresholds, steps: thresholds.steps.map((s, i) => ({ ...s, value: i === 0 ? -Infinity : s.value })) };

// Grafana's registry of field options: all that a panel's "custom" may hold is taken as it stands.
const item = (id, process = g.identityOverrideProcessor) => ({ id, path: id, name: id, process, shouldApply: () => true });
class FieldOptions extends g.FieldConfigOptionsRegistry {
  getIfExists(id) {
    const custom = id?.startsWith('custom.');
    return custom ? { ...item(id), path: id.slice(7), isCustom: true } : super.getIfExists(id);
  }
}
const fieldOptions = new FieldOptions(() => [
  ...['color', 'mappings', 'links', 'noValue', 'unit', 'filterable', 'fieldMinMax', 'description'].map((id) => item(id)),
  ...['min', 'max', 'decimals'].map((id) => item(id, g.numberOverrideProcessor)),
  item('thresholds', baseIsLowest),
  item('displayName', g.displayNameOverrideProcessor),
]);
const transformers = new Map(Object.values(g.standardTransformers).map((t) => [t.id, t])); // one is listed twice
g.standardTransformersRegistry.setInit(() => [...transformers].map(([id, transformation]) => ({ id, name: id, transformation })));

export const known = (type) => type in DEFAULTS;

export async function prepare(panel, frames, theme, timeZone) {
  const { options, custom } = DEFAULTS[panel.type];
  const given = panel.fieldConfig ?? {};
  const defaults = {
    color: { mode: panel.type === 'timeseries' ? 'palette-classic' : 'thresholds' },
    thresholds: { mode: 'absolute', steps: [{ color: 'green', value: -Infinity }, { color: 'red', value: 80 }] },
    ...given.defaults,
  };
  const transformed = await lastValueFrom(g.transformDataFrame(panel.transformations ?? [], frames, { interpolate }));
  for (const field of transformed.flatMap((frame) => frame.fields)) {
    const unlabelled = field.type === 'time' && { axisLabel: undefined };
    field.config = { ...field.config, custom: { ...custom, ...given.defaults?.custom, ...unlabelled } };
  }
  const data = g.applyFieldOverrides({
    ...{ data: transformed, fieldConfig: { defaults, overrides: given.overrides ?? [] }, fieldConfigRegistry: fieldOptions },
    ...{ replaceVariables: interpolate, theme, timeZone },
  });
  return { data, options: { ...options, ...panel.options }, fieldConfig: { defaults, overrides: given.overrides ?? [] } };
}

function Annotations({ config, list }) {
  const theme = useTheme2();
  useLayoutEffect(() => {
    config.addHook('draw', (u) => {
      u.ctx.save();
      u.ctx.setLineDash([5, 5]);
      for (const { time, end = time, color } of list) {
        const [left, right] = [time, end].map((t) => u.valToPos(t, 'x', true));
        const paint = theme.visualization.getColorByName(color ?? 'red');
        Object.assign(u.ctx, { strokeStyle: paint, fillStyle: g.colorManipulator.alpha(paint, 0.1), lineWidth: 1 });
        u.ctx.fillRect(left, u.bbox.top, right - left, u.bbox.height);
        for (const x of left === right ? [left] : [left, right]) {
          u.ctx.beginPath();
          u.ctx.moveTo(x, u.bbox.top);
          u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
          u.ctx.stroke();
        }
      }
      u.ctx.restore();
    });
  }, [config]);
  return null;
}

function Graph({ data, options, range, timeZone, width, height, annotations }) {
  const finite = (field) => (field.type === 'number' ? { ...field, values: field.values.map((v) => (Number.isFinite(v) ? v : null)) } : field);
  const frames = data.map((frame) => ({ ...frame, fields: frame.fields.map(finite) }));
  return (
    <TimeSeries {...{ frames, width, height, timeZone, timeRange: range, legend: options.legend, options }}>
      {(config) => <Annotations config={config} list={annotations} />}
    </TimeSeries>
  );
}

// Stat, gauge and bar gauge reduce each series to a value, and repeat their component for each value.
function Values({ type, title, data, options, fieldConfig, range, timeZone, width, height }) {
  const theme = useTheme2();
  for (const field of data.flatMap((frame) => frame.fields).filter((f) => type === 'gauge' && /^percent(unit)?$/.test(f.config.unit))) {
    const [min, max] = [field.config.min ?? 0, field.config.max ?? (field.config.unit === 'percent' ? 100 : 1)];
    field.state = { ...field.state, range: { min, max, delta: max - min } };
    field.display = g.getDisplayProcessor({ field, theme, timeZone });
  }
  const values = g.getFieldDisplayValues({
    ...{ data, theme, timeZone, fieldConfig, reduceOptions: options.reduceOptions, replaceVariables: interpolate },
    ...{ sparkline: type === 'stat' && options.graphMode !== 'none', percentChange: options.showPercentChange },
  });
  const named = fieldConfig.defaults.displayName || !title;
  const draw = {
    stat: ({ value, ...size }) => (
      <BigValue
        {...{ ...options, ...size, theme, value: value.display, disableWideLayout: !options.wideLayout }}
        sparkline={value.sparkline && { ...value.sparkline, timeRange: range }}
        textMode={options.textMode === 'auto' && named ? 'value_and_name' : options.textMode}
      />
    ),
    gauge: ({ value, ...size }) => <Gauge {...{ ...options, ...size, theme, value: value.display, field: value.field }} />,
    bargauge: ({ value, ...size }) => (
      <BarGauge
        {...{ ...options, ...size, theme, value: value.display, field: value.field, valueDisplayMode: options.valueMode }}
        display={value.view?.getFieldDisplayProcessor(value.colIndex)}
        itemSpacing={options.displayMode === 'lcd' ? 2 : 10}
      />
    ),
  }[type];
  const { sizing, minVizWidth, minVizHeight, maxVizHeight } = options;
  const limits = type === 'stat' || sizing !== 'manual' ? {} : { minVizWidth, minVizHeight, maxVizHeight };
  return (
    <VizRepeater
      {...{ width, height, source: data, getValues: () => values, renderValue: draw, ...limits }}
      getAlignmentFactors={g.getDisplayValueAlignmentFactors}
      autoGrid={type !== 'bargauge'}
      itemSpacing={type === 'bargauge' ? 10 : 3}
      orientation={options.orientation ?? 'auto'}
    />
  );
}

export function Panel(props) {
  const { type, data, options, fieldConfig, width, height, range } = props;
  const empty = !data.some((frame) => frame.length);
  if (type === 'text') {
    const html = options.mode === 'markdown' ? g.renderTextPanelMarkdown : g.textUtil.sanitizeTextPanelContent;
    return <div className="markdown-html" style={{ overflow: 'auto', height }} dangerouslySetInnerHTML={{ __html: html(interpolate(options.content)) }} />;
  }
  if (empty && ['timeseries', 'table'].includes(type)) {
    return <div style={{ height, display: 'grid', placeItems: 'center', fontSize: 20 }}>No data</div>;
  }
  if (type === 'timeseries') {
    return <Graph {...props} />;
  }
  if (type === 'table') {
    const { sortBy, showHeader, cellHeight, frameIndex } = options;
    const frame = data[frameIndex] ?? data[0];
    return <Table {...{ width, height, data: frame, noHeader: !showHeader, initialSortBy: sortBy, cellHeight, timeRange: range, fieldConfig }} />;
  }
  return <Values {...props} />;
}
