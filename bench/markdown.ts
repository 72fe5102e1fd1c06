/** A Markdown table, one string per line. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)]
}

/** Three significant digits, all of them above 100; what was not measured is a dash. */
export function figure(value: number | undefined): string {
  // JSON has null for what was not a number.
  if (value === undefined || !Number.isFinite(value)) return '–'
  return Math.abs(value) >= 100 ? count(value) : value.toPrecision(3)
}

/** A whole number with its thousands marked. */
export function count(value: number): string {
  return Math.round(value).toLocaleString('en-US')
}

/** A row of a table of targets: what, figure, target, whether it was met. */
export function verdict(what: string, got: string, target: string, isMet: boolean): string[] {
  return [what, got, target, isMet ? 'met' : '**missed**']
}
