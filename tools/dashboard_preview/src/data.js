// The Prometheus half: time range, variables, queries, and data frames as Grafana's Prometheus data source makes them.
import { createDataFrame, dateTime, FieldType, rangeUtil } from '@grafana/data';

const params = new URLSearchParams(location.search);
const scrapeInterval = params.get('scrape-interval') ?? '15s'; // Grafana's own default
const ALL = '$__all';

async function api(path, query) {
  const response = await fetch(`/api/v1/${path}?${new URLSearchParams(query)}`);
  const body = await response.json().catch(() => ({ error: `Prometheus answered ${response.status}` }));
  if (body.status !== 'success') {
    throw new Error(body.error);
  }
  return body.data;
}

export function timeRange(dashboard) {
  const [from, to] = ['from', 'to'].map((end) => {
    const text = params.get(end) ?? dashboard.time[end];
    return /^\d+$/.test(text) ? dateTime(Number(text)) : text.replace(/^-/, 'now-');
  });
  return rangeUtil.convertRawToRange({ from, to });
}

// --- variables ---

const variables = {};
const escapeRegex = (text) => text.replace(/[\\^$*+?.()|[\]{}'"]/g, '\\$&');
const FORMATS = {
  text: ({ all, values }) => (all ? 'All' : values.join(' + ')),
  raw: ({ values }) => values.join(','),
  regex: ({ all, allValue, values }) =>
    (all && allValue) || (values.length > 1 ? `(${values.map(escapeRegex).join('|')})` : values.map(escapeRegex).join('')),
  // in a PromQL string, where a backslash is itself escaped
  promql: (variable) => {
    const { all, allValue, multi, values } = variable;
    return (all && allValue) || (multi ? FORMATS.regex(variable) : values.join('')).replace(/\\/g, '\\\\');
  },
};

export function interpolate(text, scoped = {}, format = 'text') {
  return text?.replace(/\$(\w+)|\$\{(\w+)(?::(\w+))?\}/g, (whole, plain, name = plain, ownFormat = format) => {
    const write = FORMATS[ownFormat];
    return scoped[name] ?? (name in variables && write ? write(variables[name]) : whole);
  });
}

async function options(variable, range) {
  const { type, current, sort, regex } = variable;
  const query = variable.query?.query ?? variable.query ?? '';
  if (type === 'datasource') {
    return ['Prometheus'];
  }
  if (type === 'textbox' || type === 'constant') {
    return [current?.value || query];
  }
  if (type !== 'query') {
    return query.split(/\s*,\s*/); // custom, interval
  }
  const [, metric, label] = /^label_values\((?:(.+),)?\s*(\w+)\s*\)$/s.exec(interpolate(query, {}, 'promql')) ?? [];
  if (!label || regex) {
    throw new Error(`the preview knows no variable like ${variable.name}: label_values(...) without a regex`);
  }
  const window = { start: range.from.valueOf() / 1000, end: range.to.valueOf() / 1000 };
  const values = await api(`label/${label}/values`, { ...window, ...(metric && { 'match[]': metric.trim() }) });
  values.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  return sort && sort % 2 === 0 ? values.reverse() : values;
}

// In order, since one may refer to those before it. A choice is the address's, else the dashboard's, else the first.
export async function loadVariables(dashboard, range) {
  for (const variable of dashboard.templating?.list ?? []) {
    const { name, allValue, includeAll, multi, hide, label } = variable;
    const possible = await options(variable, range);
    const saved = [variable.current?.value ?? []].flat().filter((v) => v === ALL || possible.includes(v));
    const first = includeAll ? [ALL] : possible.slice(0, 1);
    const chosen = [params.getAll(`var-${name}`), saved, first].find((values) => values.length) ?? [];
    const all = includeAll && chosen.some((v) => v === ALL || v === 'All');
    const values = all ? possible : chosen;
    variables[name] = { name, label: label || name, hide, all, allValue, multi: multi || includeAll, values };
  }
  return Object.values(variables);
}

// --- queries ---

function prepareQuery(expr, range, points, minInterval) {
  const { intervalMs } = rangeUtil.calculateInterval(range, points, minInterval || scrapeInterval);
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const step = Math.max(intervalMs, Math.ceil((to - from) / 11000)); // more points Prometheus refuses
  const scrape = rangeUtil.intervalToMs(minInterval || scrapeInterval);
  const rate = Math.max(step + scrape, 4 * scrape);
  const seconds = Math.round((to - from) / 1000);
  const scoped = { __interval: `${step}ms`, __rate_interval: `${rate}ms`, __range: `${seconds}s`, __range_s: seconds };
  const query = interpolate(expr, scoped, 'promql');
  const align = (ms) => (Math.floor(ms / step) * step) / 1000;
  return {
    step,
    instant: () => api('query', { query, time: to / 1000 }),
    range: () => api('query_range', { query, start: align(from), end: align(to), step: step / 1000 }),
  };
}

function legend(target, { __name__: name = '', ...labels }) {
  const format = target.legendFormat ?? '';
  if (format === '__auto') {
    return name || Object.keys(labels).length ? undefined : target.expr; // else from the label that differs
  }
  if (format) {
    return interpolate(format).replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => ({ ...labels, __name__: name })[label] ?? '');
  }
  const pairs = Object.entries(labels).map(([k, v]) => `${k}="${v}"`);
  return pairs.length ? `${name}{${pairs.join(', ')}}` : name || target.expr;
}

const number = (text) => Number(text.replace(/Inf$/, 'Infinity'));
const column = (name, type, values, rest) => ({ name, type, values, config: {}, ...rest });

function seriesFrames(target, result, step) {
  return result.map(({ metric, value, values = [value] }) => {
    const name = legend(target, metric);
    const fields = [
      column('Time', FieldType.time, values.map((v) => v[0] * 1000), { config: { interval: step } }),
      column('Value', FieldType.number, values.map((v) => number(v[1])), { labels: metric, config: { displayNameFromDS: name } }),
    ];
    return createDataFrame({ refId: target.refId, name, fields });
  });
}

function tableFrame(target, result, valueName) {
  const rows = result.flatMap(({ metric, value, values = [value] }) => values.map(([time, text]) => ({ metric, time, text })));
  const labels = [...new Set(rows.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const fields = [
    column('Time', FieldType.time, rows.map(({ time }) => time * 1000)),
    ...labels.map((label) => column(label, FieldType.string, rows.map(({ metric }) => metric[label] ?? ''))),
    column(valueName, FieldType.number, rows.map(({ text }) => number(text))),
  ];
  return rows.length ? [createDataFrame({ refId: target.refId, fields })] : [];
}

export async function queryPanel(panel, range, width) {
  const targets = (panel.targets ?? []).filter((t) => !t.hide);
  const severalTables = targets.filter((t) => t.format === 'table').length > 1;
  const answers = targets.map(async (target) => {
    if (!target.expr) {
      throw new Error(`Query ${target.refId} has no PromQL`);
    }
    const query = prepareQuery(target.expr, range, panel.maxDataPoints ?? width, target.interval || panel.interval);
    const asked = target.instant && !target.range ? [query.instant()] : [query.range(), ...(target.instant ? [query.instant()] : [])];
    const result = (await Promise.all(asked)).flatMap((data) =>
      data.resultType === 'scalar' ? [{ metric: {}, value: data.result }] : data.result
    );
    return target.format === 'table'
      ? tableFrame(target, result, severalTables ? `Value #${target.refId}` : 'Value')
      : seriesFrames(target, result, query.step);
  });
  const settled = await Promise.allSettled(answers);
  return { frames: settled.flatMap((s) => s.value ?? []), errors: settled.flatMap((s) => s.reason?.message ?? []) };
}

// Points above 0 are events, and a region if no more than a step apart.
export async function loadAnnotations(dashboard, range) {
  const enabled = (dashboard.annotations?.list ?? []).filter((a) => a.enable !== false && (a.target?.expr || a.expr));
  const found = enabled.map(async (annotation) => {
    const step = annotation.target?.interval || annotation.step || '60s';
    const { result } = await prepareQuery(annotation.target?.expr || annotation.expr, range, 100, step).range();
    return result.flatMap(({ values }) => {
      const regions = [];
      for (const [time] of values.filter((v) => number(v[1]) > 0)) {
        const last = regions.at(-1);
        if (last && time * 1000 - last.end <= rangeUtil.intervalToMs(step)) {
          last.end = time * 1000;
        } else {
          regions.push({ start: time * 1000, end: time * 1000, color: annotation.iconColor });
        }
      }
      return regions;
    });
  });
  return (await Promise.all(found)).flat();
}
