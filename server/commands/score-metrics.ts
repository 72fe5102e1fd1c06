/** Offline quality of one task's logits against 0/1 labels. */
export type TaskQuality = {
  readonly auc: number
  /** Normalised entropy: log loss over the entropy of the base rate. */
  readonly ne: number
  readonly logLoss: number
  readonly rows: number
}

/**
 * AUC (Mann-Whitney, ties at half), log loss in nats from the logits themselves, and NE.
 * @see He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", section 3.1 (NE)
 */
export function taskQuality(logits: Float64Array, labels: Uint8Array): TaskQuality {
  const rows = labels.length
  const positives = labels.reduce((sum, label) => sum + label, 0)
  let loss = 0
  for (let i = 0; i < rows; i++) {
    const z = logits[i] ?? Number.NaN
    // ln(1 + e^z) - y·z without overflow
    loss += Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))) - (labels[i] ?? 0) * z
  }
  const rate = positives / rows
  const entropy = -(rate * Math.log(rate) + (1 - rate) * Math.log1p(-rate))
  return {
    auc: auc(logits, labels, positives),
    ne: loss / rows / entropy,
    logLoss: loss / rows,
    rows,
  }
}

function auc(logits: Float64Array, labels: Uint8Array, positives: number): number {
  const order = Array.from(labels, (_, i) => i).sort((a, b) => (logits[a] ?? 0) - (logits[b] ?? 0))
  let rankSum = 0
  for (let start = 0; start < order.length; ) {
    let end = start
    while (end < order.length && logits[order[end] ?? 0] === logits[order[start] ?? 0]) end++
    const meanRank = (start + 1 + end) / 2
    for (let i = start; i < end; i++) rankSum += (labels[order[i] ?? 0] ?? 0) * meanRank
    start = end
  }
  const negatives = labels.length - positives
  return (rankSum - (positives * (positives + 1)) / 2) / (positives * negatives)
}
