// The Prometheus half: time range, variables, queries, and data frames as Grafana's Prometheus data source makes them.
import { createDataFrame, dateTime, FieldType, rangeUtil } from '@grafana/data';

const params = new URLSearchParams(location.search);
export const scrapeMs = rangeUtil.intervalToMs(params.get('scrape-interval') ?? '15s'); // Grafana's own default
const ALL = '$__all';

export async function api(path, query) {
  const response = await fetch(`/api/v1/${path}?${new URLSearchParams(query)}`);
  const body = await response.json().catch(() => ({ error: `Prometheus answered ${response.status}` }));
  if (body.status !== 'success') {
    throw new Error(body.error);
  }
  return body.data;
}

export function timeRange(dashboard) {
  const point = (text) => (/^\d+$/.test(text) ? dateTime(Number(text)) : text.replace(/^-/, 'now-'));
  const raw = { from: point(params.get('from') ?? dashboard.time.from), to: point(params.get('to') ?? dashboard.time.to) };
  return { ...rangeUtil.convertRawToRange(raw), raw };
}

// --- variables ---

const variables = {};
const REFERENCE = /\$(\w+)|\[\[(\w+)\]\]|\$\{(\w+)(?:\.([^:}]+))?(?::(\w+))?\}/g;
const escapeRegex = (text) => text.replace(/[\\^$*+?.()|[\]{}'"]/g, '\\$&');
const FORMATS = {
  text: (values, variable) => (variable.all ? 'All' : values.join(' + ')),
  raw: (values) => values.join(','),
  csv: (values) => values.join(','),
  pipe: (values) => values.join('|'),
  regex: (values) => (values.length > 1 ? `(${values.map(escapeRegex).join('|')})` : escapeRegex(values[0] ?? '')),
  // in a PromQL string, where a backslash is itself escaped
  promql: (values, variable) =>
    variable.multi ? FORMATS.regex(values).replace(/\\/g, '\\\\') : (values[0] ?? '').replace(/[\\'"]/g, '\\$&'),
};

export function interpolate(text, scoped = {}, format = 'text') {
  return text?.replace(REFERENCE, (whole, plain, brackets, braces, path, ownFormat) => {
    const name = plain ?? brackets ?? braces;
    if (name in scoped) {
      return scoped[name];
    }
    if (name === '__field' && scoped.__dataContext) {
      const { field } = scoped.__dataContext.value;
      return path?.startsWith('labels.') ? (field.labels?.[path.slice(7).replace(/^\["?|"?\]$/g, '')] ?? '') : field.name;
    }
    const variable = variables[name];
    if (!variable) {
      return whole;
    }
    const as = ownFormat ?? format;
    return variable.all && variable.allValue && as !== 'text' ? variable.allValue : FORMATS[as](variable.values, variable);
  });
}

async function variableOptions(variable, range) {
  const query = typeof variable.query === 'string' ? variable.query : (variable.query?.query ?? '');
  const window = { start: range.from.valueOf() / 1000, end: range.to.valueOf() / 1000 };
  if (variable.type === 'datasource') {
    return ['Prometheus'];
  }
  if (['textbox', 'constant'].includes(variable.type)) {
    return [variable.current?.value || query];
  }
  if (variable.type !== 'query') {
    return query.split(/\s*,\s*/); // custom, interval
  }
  const expr = interpolate(query, {}, 'promql');
  const [, metric, label] = /^label_values\((?:(.+),)?\s*(\w+)\s*\)$/s.exec(expr) ?? [];
  let options;
  if (label) {
    options = await api(`label/${label}/values`, { ...window, ...(metric && { 'match[]': metric.trim() }) });
  } else if (expr.startsWith('query_result(')) {
    const { result } = await api('query', { query: expr.slice(13, -1), time: window.end });
    options = result.map((r) => `${verbose(r.metric)} ${r.value[1]} ${r.value[0] * 1000}`);
  } else {
    throw new Error(`the preview knows no variable query like ${expr}`);
  }
  if (variable.regex) {
    const regex = new RegExp(variable.regex.replace(/^\/|\/\w*$/g, ''));
    options = options.map((option) => regex.exec(option)).filter(Boolean).map((match) => match[1] ?? match[0]);
  }
  const sorted = [...new Set(options)].sort((a, b) => a.localeCompare(b, 'en', { numeric: variable.sort > 2 }));
  return [2, 4, 6, 8].includes(variable.sort) ? sorted.reverse() : sorted;
}

// In order, since one may refer to those before it. A choice is the address's, else the dashboard's, else the first.
export async function loadVariables(dashboard, range) {
  for (const variable of dashboard.templating?.list ?? []) {
    const options = await variableOptions(variable, range);
    const { name, allValue, includeAll, multi, hide, label, skipUrlSync } = variable;
    let values = params.getAll(`var-${name}`);
    if (!values.length) {
      values = [variable.current?.value ?? []].flat().filter((v) => v === ALL || options.includes(v));
    }
    if (!values.length) {
      values = includeAll ? [ALL] : options.slice(0, 1);
    }
    const all = includeAll && values.some((v) => v === ALL || v === 'All');
    variables[name] = { name, label: label || name, hide, all, allValue, multi: multi || includeAll, values: all ? options : values };
  }
  return Object.values(variables);
}

// --- queries ---

const verbose = ({ __name__: name = '', ...labels }) => {
  const pairs = Object.entries(labels).map(([k, v]) => `${k}="${v}"`);
  return pairs.length || !name ? `${name}{${pairs.join(', ')}}` : name;
};

function legend(target, metric) {
  const format = interpolate(target.legendFormat ?? '');
  if (format === '__auto' && Object.keys(metric).length) {
    return undefined; // getFieldDisplayName finds the label that differs
  }
  const name = format && format !== '__auto' ? format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, l) => metric[l] ?? '') : verbose(metric);
  return name === '{}' ? target.expr : name;
}

const number = (text) => (text.endsWith('Inf') ? Number(`${text}inity`) : Number(text));

function seriesFrames(target, result, step) {
  return result.map(({ metric, value, values = [value] }) => {
    const displayNameFromDS = legend(target, metric);
    return createDataFrame({
      refId: target.refId,
      name: displayNameFromDS,
      fields: [
        { name: 'Time', type: FieldType.time, values: values.map((v) => v[0] * 1000), config: { interval: step } },
        { name: 'Value', type: FieldType.number, values: values.map((v) => number(v[1])), labels: metric, config: { displayNameFromDS } },
      ],
    });
  });
}

function tableFrame(target, result, valueName) {
  const rows = result.flatMap(({ metric, value, values = [value] }) => values.map((v) => ({ metric, v })));
  const labels = [...new Set(rows.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const column = (name, type, get) => ({ name, type, config: {}, values: rows.map(get) });
  return createDataFrame({
    refId: target.refId,
    fields: [
      column('Time', FieldType.time, ({ v }) => v[0] * 1000),
      ...labels.map((label) => column(label, FieldType.string, ({ metric }) => metric[label] ?? '')),
      column(valueName, FieldType.number, ({ v }) => number(v[1])),
    ],
  });
}

export async function queryRange(expr, range, points, minInterval) {
  const min = Math.max(minInterval ? rangeUtil.intervalToMs(minInterval) : scrapeMs, 1);
  const { intervalMs } = rangeUtil.calculateInterval(range, points, `${min}ms`);
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const step = Math.max(intervalMs, Math.ceil((to - from) / 11000));
  const rate = Math.max(step + min, 4 * min);
  const scoped = {
    ...{ __interval: `${step}ms`, __interval_ms: step, __rate_interval: `${rate}ms`, __rate_interval_ms: rate },
    ...{ __range: `${Math.round((to - from) / 1000)}s`, __range_s: Math.round((to - from) / 1000), __range_ms: to - from },
    ...{ __from: from, __to: to },
  };
  const query = interpolate(expr, scoped, 'promql');
  const align = (ms) => (Math.floor(ms / step) * step) / 1000;
  return {
    step,
    instant: () => api('query', { query, time: to / 1000 }),
    range: () => api('query_range', { query, start: align(from), end: align(to), step: step / 1000 }),
  };
}

export async function queryPanel(panel, range, width) {
  const targets = (panel.targets ?? []).filter((t) => !t.hide);
  const tables = targets.filter((t) => t.format === 'table').length;
  const answers = targets.map(async (target) => {
    if (typeof target.expr !== 'string') {
      throw new Error(`query ${target.refId} is none for Prometheus`);
    }
    const minInterval = interpolate(target.interval || panel.interval);
    const ask = await queryRange(target.expr, range, panel.maxDataPoints ?? width, minInterval);
    const kinds = [...(target.range || !target.instant ? ['range'] : []), ...(target.instant ? ['instant'] : [])];
    const results = (await Promise.all(kinds.map((kind) => ask[kind]()))).map(({ result, resultType }) =>
      resultType === 'scalar' ? [{ metric: {}, value: result }] : result
    );
    if (target.format === 'table') {
      return results.filter((r) => r.length).map((r) => tableFrame(target, r, tables > 1 ? `Value #${target.refId}` : 'Value'));
    }
    return results.flatMap((r) => seriesFrames(target, r, ask.step));
  });
  const settled = await Promise.allSettled(answers);
  return {
    frames: settled.flatMap((s) => s.value ?? []),
    errors: settled.flatMap((s) => (s.reason ? [s.reason.message] : [])),
  };
}

// Runs of consecutive points that are not 0 are regions; with useValueForTime each value is itself a time.
export async function loadAnnotations(dashboard, range) {
  const list = (dashboard.annotations?.list ?? []).filter((a) => a.enable !== false && (a.expr || a.target?.expr));
  const found = list.map(async (a) => {
    const ask = await queryRange(a.expr ?? a.target.expr, range, 1000, a.step || '60s');
    const { result } = await ask.range();
    return result.flatMap(({ values }) => {
      if (a.useValueForTime === true || a.useValueForTime === 'on') {
        return [...new Set(values.map((v) => Number(v[1])))].map((time) => ({ time, color: a.iconColor }));
      }
      const regions = [];
      for (const time of values.filter((v) => number(v[1])).map((v) => v[0] * 1000)) {
        const last = regions.at(-1);
        if (last && time - last.end <= ask.step) {
          last.end = time;
        } else {
          regions.push({ time, end: time, color: a.iconColor });
        }
      }
      return regions;
    });
  });
  return (await Promise.all(found)).flat();
}
