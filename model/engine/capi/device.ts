import { RankError } from '../../errors.js'

const VARIABLE = 'CUDA_VISIBLE_DEVICES'

/** The device that this process has: CUDA reads the variable once, when it starts. */
let shown: number | undefined

/**
 * Hides all GPUs but one from CUDA, before it starts.
 * @throws {RankError} ENGINE_UNAVAILABLE without the device, or when the process has another one
 */
export function showOnly(deviceId: number): void {
  if (shown === deviceId) return
  if (shown !== undefined) {
    throw new RankError(
      'ENGINE_UNAVAILABLE',
      `one process has one GPU: expected CUDA device ${shown} as before, got ${deviceId}`,
    )
  }
  process.env[VARIABLE] = onlyVisible(process.env[VARIABLE], deviceId)
  shown = deviceId
}

/** The variable's value that leaves the device at index `deviceId` of those that `visible` names. */
export function onlyVisible(visible: string | undefined, deviceId: number): string {
  if (visible === undefined) return String(deviceId)
  const device = visible.split(',')[deviceId]
  if (device !== undefined) return device
  throw new RankError(
    'ENGINE_UNAVAILABLE',
    `no CUDA device ${deviceId}: expected an index into ${VARIABLE}, which is ${visible}`,
  )
}
