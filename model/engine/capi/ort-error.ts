/** What ONNX Runtime says went wrong; its codes are OrtErrorCode's. */
export class OrtError extends Error {
  override readonly name = 'OrtError'
  readonly code: number
  constructor(code: number, message: string) {
    super(message)
    this.code = code
  }
}

/** An error as messages between threads carry it. */
export type PlainError = { readonly code: number; readonly message: string }

export function plainError(error: unknown): PlainError {
  const code = error instanceof OrtError ? error.code : 0
  return { code, message: error instanceof Error ? error.message : String(error) }
}

export function fromPlain({ code, message }: PlainError): OrtError {
  return new OrtError(code, message)
}
