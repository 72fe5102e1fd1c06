import type { Scope } from './key-file.js'

/** What a route asks for: a key of that scope; `open`: no key; `probe`: no client certificate either. */
export type Access = Scope | 'open' | 'probe'

/**
 * Who may call what, the first that fits; paths are routes as they are registered. The page and
 * /docs hold nothing that is not in the sources, and the page must load to ask for a key.
 */
const RULES: readonly (readonly [methods: RegExp, route: RegExp, access: Access])[] = [
  [/^(GET|HEAD)$/, /^\/(livez|readyz|v2\/health\/(live|ready))$/, 'probe'],
  [/^(GET|HEAD)$/, /^\/($|docs(\/|$)|playground\/:file$)/, 'open'],
  [/^(GET|HEAD)$/, /^\/metrics$/, 'metrics'],
  [/^(GET|HEAD)$/, /^\/(v1|v2)\/models(\/|$)/, 'rank'],
  [/^POST$/, /^\/v2\/models\/.+\/infer$/, 'rank'],
  [/./, /^\/(v1|v2)\/(models|repository|admin)(\/|$)/, 'admin'],
  [/./, /^\/(v1|v2|playground)(\/|$)/, 'rank'],
]

/** What a route asks of a key; a route that no rule knows is for admins. */
export function accessOf(method: string, route: string): Access {
  const rule = RULES.find(([methods, routes]) => methods.test(method) && routes.test(route))
  return rule?.[2] ?? 'admin'
}
