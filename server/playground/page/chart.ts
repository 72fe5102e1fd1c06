/// <reference lib="dom" />
import { svg } from './dom.js'
import { type Line, type Point, ticks } from './fit.js'
import { digits } from './format.js'

export type ChartData = {
  /** The line goes through these. */
  readonly points: readonly Point[]
  /** Each measurement; those beyond the scale are not drawn. */
  readonly seen: readonly Point[]
  readonly line: Line | undefined
  readonly label: string
}

const HEIGHT = 320
const LEFT = 52
const RIGHT = 14
const TOP = 22
const BOTTOM = 44

/** Milliseconds (y) against candidates (x), both from 0, `width` pixels wide. */
export function costChart({ points, seen, line, label }: ChartData, width: number): SVGSVGElement {
  const last = Math.max(...points.map(({ x }) => x))
  const xs = ticks(last, width < 480 ? 3 : 5).filter((value) => value <= last)
  const end = line === undefined ? 0 : line.intercept + line.slope * last
  const ys = ticks(Math.max(end, ...points.map(({ y }) => y)))
  const maxY = ys.at(-1) ?? 1
  const x = (value: number) => LEFT + (value / last) * (width - LEFT - RIGHT)
  const y = (value: number) => HEIGHT - BOTTOM - (value / maxY) * (HEIGHT - TOP - BOTTOM)
  return svg(
    'svg',
    { viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': label },
    svg('text', { x: 0, y: 12 }, 'ms'),
    ...ys.flatMap((value) => [
      svg('line', { class: 'grid', x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg('text', { x: LEFT - 8, y: y(value) + 4, 'text-anchor': 'end' }, short(value)),
    ]),
    ...xs.map((value) =>
      svg(
        'text',
        {
          x: x(value),
          y: HEIGHT - BOTTOM + 18,
          'text-anchor': x(value) > width - 40 ? 'end' : 'middle',
        },
        short(value),
      ),
    ),
    svg(
      'text',
      { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 6, 'text-anchor': 'middle' },
      'candidates',
    ),
    ...(line === undefined
      ? []
      : [
          svg('line', {
            class: 'fit',
            x1: x(0),
            y1: y(Math.max(0, line.intercept)),
            x2: x(last),
            y2: y(end),
          }),
        ]),
    ...seen
      .filter((point) => point.y <= maxY)
      .map((point) => svg('circle', { class: 'seen', cx: x(point.x), cy: y(point.y), r: 3 })),
    ...points.map((point) =>
      svg('circle', { class: 'point', cx: x(point.x), cy: y(point.y), r: 5 }),
    ),
  )
}

/** The last values as a line without axes, newest at the right. */
export function sparkline(values: readonly number[], label: string): SVGSVGElement {
  const max = Math.max(...values, Number.MIN_VALUE)
  const step = 200 / Math.max(1, values.length - 1)
  const points = values.map((value, i) => `${i * step},${31 - (value / max) * 28}`).join(' ')
  return svg(
    'svg',
    { viewBox: '0 0 200 34', preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
    svg('polyline', { class: 'trend', points, 'vector-effect': 'non-scaling-stroke' }),
  )
}

function short(value: number): string {
  return value === 0 ? '0' : digits(value, 2)
}
