/** How measurements have lately compared with predictions. */
export type Average = {
  /** Measured over predicted; 1 until something is measured. */
  ratio(): number
  add(measured: number, predicted: number): void
}

/** One run that waited for a pause of the machine must not pass for the machine. */
const MAX_RATIO = 8

/**
 * Ratio of two moving averages, so that a run counts by its length.
 *
 * @param weight - the share of the newest measurement
 */
export function createAverage(weight: number): Average {
  let measuredMean = 0
  let predictedMean = 0
  return {
    ratio: () => (predictedMean > 0 ? measuredMean / predictedMean : 1),
    add(measured, predicted) {
      // From a ratio of 1, which the first measurement moves by no more than `weight`.
      if (predictedMean === 0) measuredMean = predictedMean = predicted
      const within = Math.min(Math.max(measured, predicted / MAX_RATIO), predicted * MAX_RATIO)
      measuredMean += weight * (within - measuredMean)
      predictedMean += weight * (predicted - predictedMean)
    },
  }
}
